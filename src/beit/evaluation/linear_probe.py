"""What a linear model reads off the frozen features after every block.

Three methods: the paper's linear classifiers trained by AdamW, a quick logistic regression, and
the vote of nearest neighbours. Which block is best is decided on a held-out part of the *training*
pictures; the test pictures are looked at once, for every block, after the choice. In a model of
masked images it is a block in the middle, so the last one alone says little.
Legend: L blocks, N pictures, n chosen of them, D width, C classes.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.evaluation.neighbours import Features, neighbour_predictions
from beit.randomness import sample_generator, step_seed

NEIGHBOURS = 20  # that vote, as DINO reports
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # scikit-learn's C: larger is a weaker penalty
HELD_OUT = 0.2
_STREAM = "linear-probe"
_CHUNK = 4096  # pictures at a time, of a prediction
_EPSILON = 1e-6

Half = NDArray[np.float16]
Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


class LayerFeatures(NamedTuple):
    """Pictures as vectors after every block, with their classes."""

    features: Half  # (L, N, D), possibly mapped from the disk
    labels: Integers  # (N,)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.features)

    def layer(self, number: int, rows: Integers) -> Floats:
        """(n, D) features of some pictures after one block."""
        return np.asarray(self.features[number][rows], dtype=np.float32)


class Split(NamedTuple):
    """What is fitted and what is measured: rows of the training and of the measured pictures."""

    train: LayerFeatures
    rows: Integers  # of `train`
    test: LayerFeatures
    test_rows: Integers  # of `test`

    @property
    def truth(self) -> Integers:
        """(n,) the right classes of the measured pictures."""
        return self.test.labels[self.test_rows]


@dataclass(frozen=True)
class LinearSettings:
    """How the paper's variant is trained; the reference's values but for the rates.

    Departure: the reference's one rate, 1e-3, leaves classifiers on few pictures, and so in few
    steps, far from done; here several are tried, and each block takes its best on held-out ones.
    """

    epochs: int = 100
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)  # peaks at a batch of 256; scale with it
    batch: int = 256
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, len(self.rates)) < 1 or self.weight_decay < 0:
            raise UserError(f"a linear probe cannot be trained like this: {self}")
        if min(self.rates) <= 0:
            raise UserError(f"a linear probe cannot be trained at these rates: {self.rates}")


@dataclass(frozen=True)
class LayerScore:
    """Top-1 accuracies, as shares, of the features after one block."""

    held_out: float  # learned from the rest of the training pictures; for choosing
    test: float  # learned from all training pictures
    penalty: float | None = None  # scikit-learn's C, where one was chosen on the held-out part
    rate: float | None = None  # of AdamW, likewise


@dataclass(frozen=True)
class MethodResult:
    """One method after every block."""

    method: str
    layers: tuple[LayerScore, ...]

    @property
    def best(self) -> int:
        """The block, 0-based, that is best on held-out training pictures; of equals the first."""
        return max(range(len(self.layers)), key=lambda layer: self.layers[layer].held_out)

    @property
    def best_on_test(self) -> int:
        """The block that turned out best on the test pictures: no honest choice, only shown."""
        return max(range(len(self.layers)), key=lambda layer: self.layers[layer].test)


@dataclass(frozen=True)
class ProbeResult:
    """All methods, and what they were measured on."""

    methods: tuple[MethodResult, ...]
    train: int  # pictures, those held out included
    held_out: int
    test: int
    most_frequent: float  # share of the commonest class among the test pictures


class How(NamedTuple):
    """What the methods need to know beside the pictures."""

    settings: LinearSettings
    seed: int
    device: torch.device


def probe_layers(
    train: LayerFeatures,
    test: LayerFeatures,
    methods: Sequence[str],
    *,
    settings: LinearSettings | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ProbeResult:
    """Measure the features after every block.

    Args:
        train: Pictures to learn from.
        test: Pictures to measure on.
        methods: Some of `METHODS`.
        settings: Of the paper's variant.
        seed: Decides the held-out part, the first weights and the order of the pictures.
        device: Where to train and to look for neighbours; the CPU by default.

    Raises:
        UserError: There are no test pictures, a single class, or too few pictures to hold any out.
    """
    if not len(test.labels):
        raise UserError("There is no test picture to measure on: the data set is empty.")
    if len(np.unique(train.labels)) < 2:
        raise UserError("A probe needs training pictures of two classes; there is only one.")
    kept, held = hold_out(train.labels, seed)
    choice = Split(train, kept, train, held)
    final = Split(train, np.arange(len(train.labels)), test, np.arange(len(test.labels)))
    how = How(settings or LinearSettings(), seed, device or torch.device("cpu"))
    results = (MethodResult(name, tuple(METHODS[name](choice, final, how))) for name in methods)
    commonest = float(np.bincount(test.labels).max() / len(test.labels))
    return ProbeResult(tuple(results), len(train.labels), len(held), len(test.labels), commonest)


def hold_out(labels: Integers, seed: int, share: float = HELD_OUT) -> tuple[Integers, Integers]:
    """Set some pictures of each class aside, by the seed: (kept rows, held-out rows), sorted.

    A class gives one at least and never its last.

    Raises:
        UserError: No class has two pictures.
    """
    held: list[Integers] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        generator = sample_generator(seed, epoch=0, index=int(label), stream="probe-held-out")
        held.append(generator.permutation(members)[:count])
    aside = np.sort(np.concatenate(held)).astype(np.int64)
    if not len(aside):
        raise UserError(
            "A probe holds training pictures out to choose the block by; "
            "give two pictures of a class at least."
        )
    return np.setdiff1d(np.arange(len(labels)), aside), aside


def _neighbours(choice: Split, final: Split, how: How) -> list[LayerScore]:
    """The weighted vote of the most similar training pictures, by cosine."""
    pairs = zip(_voted(choice, how), _voted(final, how), strict=True)
    return [LayerScore(held_out, test) for held_out, test in pairs]


def _voted(split: Split, how: How) -> list[float]:
    count = min(NEIGHBOURS, len(split.rows))
    labels = torch.from_numpy(split.train.labels[split.rows]).to(how.device)
    accuracies = []
    for layer in range(split.train.depth):
        known, asked = (
            torch.from_numpy(features.layer(layer, rows)).to(how.device)
            for features, rows in ((split.train, split.rows), (split.test, split.test_rows))
        )
        voted = neighbour_predictions(Features(known, labels), asked, [count])[count]
        accuracies.append(float(np.mean(voted.cpu().numpy() == split.truth)))
    return accuracies


def _quick(choice: Split, final: Split, how: How) -> list[LayerScore]:
    """Logistic regression on standardised features; the penalty is chosen on the held-out part."""
    scores = []
    for layer in range(choice.train.depth):
        accuracies = _fit_logistic(choice, layer, PENALTIES)
        held_out = max(accuracies)
        penalty = PENALTIES[accuracies.index(held_out)]  # of equals the strongest
        scores.append(LayerScore(held_out, _fit_logistic(final, layer, [penalty])[0], penalty))
    return scores


def _fit_logistic(split: Split, layer: int, penalties: Sequence[float]) -> list[float]:
    """The accuracy for each penalty, from the strongest to the weakest, each begun at the last."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = split.train.layer(layer, split.rows)
    test = split.test.layer(layer, split.test_rows)
    centre, scale = standardisation(train)
    train, test = (train - centre) * scale, (test - centre) * scale
    model = LogisticRegression(max_iter=1_000, warm_start=True)
    accuracies = []
    with warnings.catch_warnings():
        # A fit that hardly has a penalty may have no end; where it stopped is judged like others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in penalties:
            model.set_params(C=penalty).fit(train, split.train.labels[split.rows])
            accuracies.append(float(np.mean(model.predict(test) == split.truth)))
    return accuracies


def standardisation(features: Floats) -> tuple[Floats, Floats]:
    """What to subtract and then multiply by for mean 0 and deviation 1: (D,) each."""
    centre = features.mean(axis=0, dtype=np.float64)
    variance = features.var(axis=0, dtype=np.float64)
    scale = 1 / np.sqrt(variance + _EPSILON)
    return centre.astype(np.float32), scale.astype(np.float32)


def _paper(choice: Split, final: Split, how: How) -> list[LayerScore]:
    """Linear classifiers trained by AdamW, all blocks at once; the held-out part takes the rate."""
    tried = _trained(choice, how)
    chosen = [
        max(tried, key=lambda rate: tried[rate][layer]) for layer in range(choice.train.depth)
    ]
    wanted = tuple(rate for rate in tried if rate in chosen)
    ended = _trained(final, how._replace(settings=replace(how.settings, rates=wanted)))
    return [
        LayerScore(tried[rate][layer], ended[rate][layer], rate=rate)
        for layer, rate in enumerate(chosen)
    ]


def _trained(split: Split, how: How) -> dict[float, list[float]]:
    """For each rate the accuracy after every block."""
    every = train_heads(split.train, split.rows, how.settings, how.seed, how.device)
    return {
        rate: (heads.predict(split.test, split.test_rows) == split.truth).mean(axis=1).tolist()
        for rate, heads in every.items()
    }


class LinearHeads(NamedTuple):
    """A linear classifier a block, on standardised features."""

    weight: Tensor  # (L, D, C)
    bias: Tensor  # (L, 1, C)
    centre: Tensor  # (L, 1, D)
    scale: Tensor  # (L, 1, D)

    def copied(self) -> "LinearHeads":
        """The same with weights of its own, to be trained."""
        weight, bias = (part.detach().clone() for part in (self.weight, self.bias))
        return self._replace(weight=weight.requires_grad_(), bias=bias.requires_grad_())

    def standardised(self, features: LayerFeatures, rows: Integers) -> Tensor:
        """(L, n, D) of some pictures."""
        batch = torch.from_numpy(features.features[:, rows]).to(self.weight.device)
        return (batch.float() - self.centre) * self.scale

    def logits(self, standardised: Tensor) -> Tensor:
        """(L, n, C)."""
        return torch.baddbmm(self.bias, standardised, self.weight)

    @torch.no_grad()
    def predict(self, features: LayerFeatures, rows: Integers) -> Integers:
        """(L, n) classes of some pictures."""
        parts = np.array_split(rows, max(1, math.ceil(len(rows) / _CHUNK)))
        batches = (self.standardised(features, part) for part in parts)
        found = [self.logits(batch).argmax(-1).cpu().numpy() for batch in batches]
        return np.concatenate(found, axis=1)


def train_heads(
    train: LayerFeatures, rows: Integers, settings: LinearSettings, seed: int, device: torch.device
) -> dict[float, LinearHeads]:
    """Train a linear classifier for every block in one computation, as the reference does.

    The losses of blocks (and rates) are added, and AdamW treats every number by itself, so each
    learns as if it were alone; all begin with the same weights and see the same batches.

    Departure: the features are kept ones of the largest centre crops, where the reference encodes
    new random resized crops and flips in every epoch, and 224 of 256 pixels to evaluate; they
    are the mean over patches of normalised tokens, standardised, where the reference puts the
    special token beside the mean and scales nothing.
    The rate follows its cosine to the last epoch, whose weights count; the reference reports the
    best of all epochs on the test pictures.

    Returns:
        For each rate of the settings a classifier a block.
    """
    first = _fresh_heads(train, rows, seed, device)
    every = {rate: first.copied() for rate in settings.rates}
    optimiser = torch.optim.AdamW(
        [{"params": [heads.weight, heads.bias]} for heads in every.values()],
        weight_decay=settings.weight_decay,
    )
    labels = torch.from_numpy(train.labels).to(device)
    for epoch in range(settings.epochs):
        factor = settings.batch / 256 * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for group, rate in zip(optimiser.param_groups, every, strict=True):
            group["lr"] = rate * factor
        order = sample_generator(seed, epoch, 0, f"{_STREAM}-order").permutation(rows)
        for start in range(0, len(order), settings.batch):
            part = order[start : start + settings.batch]
            batch = first.standardised(train, part)  # (L, n, D)
            truth = labels[torch.from_numpy(part)].expand(len(batch), -1).flatten()
            losses = [_summed(heads.logits(batch), truth) for heads in every.values()]
            optimiser.zero_grad()
            torch.autograd.backward(torch.stack(losses).sum() / len(part))
            optimiser.step()
    return {rate: heads.copied() for rate, heads in every.items()}


def _summed(logits: Tensor, truth: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), truth, reduction="sum")


def _fresh_heads(
    train: LayerFeatures, rows: Integers, seed: int, device: torch.device
) -> LinearHeads:
    statistics = [standardisation(train.layer(layer, rows)) for layer in range(train.depth)]
    centre, scale = (
        torch.from_numpy(np.stack(column))[:, None].to(device)
        for column in zip(*statistics, strict=True)
    )
    classes = int(train.labels[rows].max()) + 1
    generator = torch.Generator().manual_seed(step_seed(seed, 0, stream=_STREAM))
    drawn = 0.01 * torch.randn(centre.shape[2], classes, generator=generator)
    weight = drawn.expand(train.depth, -1, -1).to(device)
    bias = torch.zeros(train.depth, 1, classes, device=device)
    return LinearHeads(weight, bias, centre, scale)


METHODS: dict[str, Callable[[Split, Split, How], list[LayerScore]]] = {
    "neighbours": _neighbours,
    "quick": _quick,
    "paper": _paper,
}
