"""`beit demo`: the whole story on scikit-learn's digits, or half of it on anybody's pictures."""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beit.batch import ImageBatch
from beit.commands.assembly.build import masked_image_model
from beit.commands.assembly.saved_models import load_masked_image_model
from beit.commands.assembly.stage import RunRequest, prepared_batches
from beit.commands.looking.reporting import few_label_table, write_report
from beit.commands.training.pretrain import pretrain
from beit.data.checking.labels import draw_labels
from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.sources.opening import Source, open_source
from beit.data.sources.subset import Subset
from beit.data.views.augment import prepare
from beit.data.views.views import ViewSettings
from beit.engine.fit import fit
from beit.engine.settings import FitSettings
from beit.evaluation.few_labels import logistic_regression_accuracy
from beit.evaluation.neighbours import Features, mean_pooled_features
from beit.files import atomic_write_text, json_of_measured
from beit.machine import allowed_cores
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.recipes.models import PretrainRecipe
from beit.recipes.named import pretrain_recipe
from beit.recipes.overrides import replace
from beit.report.tables import text_table
from beit.tasks.classify import ClassifyTask

LABELS_A_CLASS = (2, 5, 20)
DRAWS = 5
LONGER = 2  # how much more training the second row from scratch gets


@dataclass(frozen=True)
class FineTuning:
    """How a few labels are learned; the same for both encoders, whatever they start from."""

    steps: int = 200
    batch: int = 24
    learning_rate: float = 3e-3
    scale: tuple[float, float] = (0.8, 1.0)


def demo(data: str, out: Path, *, seed: int = 0, resume: bool = False) -> dict[str, Any]:
    """Run the demo and return what it found.

    Args:
        data: "digits" for the whole story; any other source for tokenizer and pre-training only,
            since nothing is known of its labels.
        out: The run folder.
        seed: The key of every draw.
        resume: Go on with the demo in `out`.
    """
    started = time.monotonic()
    whole_story = data == "digits"
    recipe = demo_recipe(seed) if whole_story else taste_recipe(seed)
    _say(f"training a tokenizer, then pre-training recipe {recipe.name!r} on {data}, no labels")
    result = pretrain(recipe, RunRequest(data, out, resume=resume))
    if whole_story:
        result["few_labels"] = few_labels(out, seed)
        text = json_of_measured(result["few_labels"], indent=2)
        atomic_write_text(out / "few_labels.json", text)
    page = write_report(out)
    result |= {"report": str(page), "seconds": round(time.monotonic() - started, 1)}
    if whole_story:
        print(text_table(few_label_table(result["few_labels"])))
    elif found := result["validation"]:
        print(
            f"masked tokens predicted: {found['accuracy']:.1%} right; copying the nearest visible "
            f"patch: {found['neighbour_copy_accuracy']:.1%}; the most frequent token: "
            f"{found['most_frequent_accuracy']:.1%}"
        )
    print(f"\nreport: {page} ({result['seconds']:.0f} s in all)")
    return result


def demo_recipe(seed: int) -> PretrainRecipe:
    """The recipe of the whole story."""
    changes = {"engine.seed": seed, "tokenizer.engine.seed": seed}
    return replace(pretrain_recipe("digits"), changes)


def taste_recipe(seed: int) -> PretrainRecipe:
    """`tiny`, cut to minutes: enough to see both stages work, not to be used for anything."""
    changes = {
        "engine.seed": seed,
        "optim.steps": 300,
        "optim.warmup_steps": 30,
        "tokenizer.engine.seed": seed,
        "tokenizer.optim.steps": 400,
        "tokenizer.optim.warmup_steps": 20,
    }
    return replace(pretrain_recipe("tiny"), changes)


def few_labels(run: Path, seed: int) -> dict[str, dict[str, list[float]]]:
    """Accuracy on held-out scans with few labels, over several draws of the labels.

    The draws are independent, so they are shared out over processes of one thread each.

    Returns:
        For each number of labels a class, each method's accuracies (shares) over the draws.
    """
    context = get_context("spawn")
    found: dict[str, dict[str, list[float]]] = {}
    with ProcessPoolExecutor(allowed_cores(), context, torch.set_num_threads, (1,)) as pool:
        jobs = {
            count: [pool.submit(_draw, run, seed, count, draw) for draw in range(DRAWS)]
            for count in LABELS_A_CLASS
        }
        for count, draws in jobs.items():
            _say(f"learning from {count} labels a class, {DRAWS} draws")
            results = [job.result() for job in draws]
            found[str(count)] = {m: [result[m] for result in results] for m in results[0]}
    return found


def _draw(run: Path, seed: int, per_class: int, draw: int) -> dict[str, float]:
    return _comparison(run, seed).draw(per_class, draw)


@lru_cache(maxsize=1)
def _comparison(run: Path, seed: int) -> "_Comparison":
    return _Comparison(demo_recipe(seed), load_masked_image_model(run).encoder, seed)


class _Comparison:
    """The four ways to learn from a draw of labels, on the same pictures."""

    def __init__(self, recipe: PretrainRecipe, trained: Encoder, seed: int) -> None:
        self.seed = seed
        self.recipe = recipe
        self.settings = FineTuning()
        self.trained = trained
        self.fresh = masked_image_model(recipe, vocabulary=2).encoder
        self.train, self.test = open_source("digits", "train"), open_source("digits", "val")
        self.labels = np.array([self.train.label(i) for i in range(len(self.train))])
        self.test_labels = np.array([self.test.label(i) for i in range(len(self.test))])
        self.pixels = _pixels(self.train), _pixels(self.test)
        self.features = self._features(self.train), self._features(self.test)

    def draw(self, per_class: int, draw: int) -> dict[str, float]:
        """One draw of labels, learned in each way: accuracy on the held-out scans."""
        places = draw_labels(self.labels, per_class, self.seed, draw)
        few, many = self.settings.steps, LONGER * self.settings.steps
        return {
            "from scratch": self._fine_tuned(self.fresh, places, draw, few),
            f"from scratch, {LONGER} x longer": self._fine_tuned(self.fresh, places, draw, many),
            "pre-trained": self._fine_tuned(self.trained, places, draw, few),
            "logistic regression, pixels": self._logistic(self.pixels, places),
            "logistic regression, frozen features": self._logistic(self.features, places),
        }

    def _logistic(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]], places: NDArray[np.int64]
    ) -> float:
        train, test = data
        return logistic_regression_accuracy(
            train[places], self.labels[places], test, self.test_labels
        )

    def _fine_tuned(
        self, start: Encoder, places: NDArray[np.int64], draw: int, steps: int
    ) -> float:
        torch.manual_seed(self.seed + draw)
        encoder = copy.deepcopy(start)
        head = ClassifierHead(encoder.config.width, len(self.train.classes))
        task = ClassifyTask(Classifier(encoder, head))
        settings = self.settings
        fit(
            task,
            self._batches(Subset(self.train, places), draw),
            FitSettings(
                total_steps=steps,
                global_batch=settings.batch,
                learning_rate=settings.learning_rate,
                warmup_steps=steps // 10,
                clip=3.0,
                seed=self.seed + draw,
                log_every=steps,
            ),
            prepare=prepare,
        )
        return self._accuracy(task)

    def _batches(self, source: Source, draw: int) -> Callable[[int], Iterator[ImageBatch]]:
        size = self.recipe.encoder.image_size
        views = ViewSettings(patch_view=size, scale=self.settings.scale, jitter=0.0, flip=False)
        loader = LoaderSettings(self.settings.batch, seed=self.seed + draw)
        return lambda seen: training_batches(source, views, None, loader, seen)

    def _evaluation(self, source: Source) -> Iterator[ImageBatch]:
        size = self.recipe.encoder.image_size
        views = ViewSettings(patch_view=size, random=False, centre_share=1.0)
        return prepared_batches(source, views, batch_size=500, device=torch.device("cpu"))

    @torch.inference_mode()
    def _accuracy(self, task: ClassifyTask) -> float:
        task.eval()
        right = 0
        for batch in self._evaluation(self.test):
            assert batch.patch_view is not None and batch.label is not None
            right += int((task.model(batch.patch_view).argmax(-1) == batch.label).sum())
        return right / len(self.test)

    def _features(self, source: Source) -> NDArray[np.float64]:
        last = self.trained.config.depth - 1
        found: dict[int, Features] = mean_pooled_features(
            self.trained, self._evaluation(source), torch.device("cpu"), [last]
        )
        return found[last].features.double().numpy()


def _pixels(source: Source) -> NDArray[np.float64]:
    """The scans themselves, 64 grey values each."""
    return np.stack([np.asarray(source.read(i))[..., 0].ravel() for i in range(len(source))]) / 255


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)
