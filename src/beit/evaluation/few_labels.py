"""Learning from few labels: logistic regression."""

import math

import numpy as np
from numpy.typing import ArrayLike


def logistic_regression_accuracy(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    inverse_penalty: float = 1.0,
) -> float:
    """Fit a multinomial logistic regression and return its accuracy on the test pictures.

    Features are centred and divided by one common deviation, both of the training draw; dividing
    each by its own would blow up pixels that hardly ever vary, and make raw pixels a weaker rival
    than they are. The penalty is fixed and not tuned (C = 1, scikit-learn's default): with two
    labels a class there is nothing to tune it on, and every set of features gets the same.

    Args:
        train_x: (n, D) features of the labelled draw.
        train_y: (n,) classes.
        test_x: (T, D).
        test_y: (T,).
        inverse_penalty: C, the larger the weaker the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = np.asarray(train_x, dtype=np.float64), np.asarray(test_x, dtype=np.float64)
    centre = train.mean(axis=0)
    scale = max(float((train - centre).std()), 1e-12)
    model = LogisticRegression(C=inverse_penalty, max_iter=5_000)
    model.fit((train - centre) / scale, np.asarray(train_y))
    predicted = model.predict((test - centre) / scale)
    accuracy = float(np.mean(predicted == np.asarray(test_y)))
    assert math.isfinite(accuracy), "there are test pictures"
    return accuracy
