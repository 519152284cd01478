"""How long a step, and a picture in it, takes: timed here, or counted for a named machine."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from beit.commands.assembly.build import (
    Precision,
    choose_precision,
    encoder_config_of,
    fit_settings,
    mask_plan,
    pretrain_task,
    tokenize_task,
    tokenizer_config,
    view_settings,
)
from beit.commands.assembly.stage import EVALUATION_BATCH
from beit.commands.planning.calibration import (
    Call,
    Cost,
    Shape,
    cost,
    matrix_rate,
    random_batch,
    steps_of,
    timed,
)
from beit.commands.planning.counting import reading_work, trained_work
from beit.commands.planning.machines import Machine, this_machine
from beit.commands.planning.planned import (
    Planned,
    batch_shape,
    evaluation,
    fresh_task,
    has_tokens,
    looks,
)
from beit.data.views.augment import prepare
from beit.engine.settings import FitSettings
from beit.evaluation.codebook import codebook_report
from beit.recipes.downstream_models import SegmentRecipe
from beit.recipes.models import PretrainRecipe, TokenizerRecipe
from beit.recipes.overrides import replace
from beit.tasks.segment import SegmentTask
from beit.tokenizer.counting import TokenizerWork, count_tokenizer_work
from beit.tokenizer.dvae import DiscreteVAE

SHALLOW = (2, 4)  # blocks of the models that stand for one too large to time
_TYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_GUESS = 0.3  # share of the peak, for deciding whether a model is too large
_WHOLE = 2  # pictures that a segmenter is timed on, each seen through many windows
NOTHING = Cost(0.0, 0.0)


@dataclass(frozen=True)
class Pace:
    """What a recipe's parts cost on one device, and how that was found.

    Attributes:
        machine: The device.
        precision: Of the products in a step.
        step: A training step without a tokenizer.
        tokens: Asking the frozen tokenizer for the codes of a step.
        tokenizer: A training step of the tokenizer.
        evaluation: Seconds a picture of an evaluation.
        tokenizer_evaluation: The same in the training of the tokenizer.
        notes: How the figures came about, in sentences.
    """

    machine: Machine
    precision: Precision
    step: Cost
    tokens: Cost = NOTHING
    tokenizer: Cost = NOTHING
    evaluation: float = 0.0
    tokenizer_evaluation: float = 0.0
    notes: tuple[str, ...] = ()


def tokenizer_work(recipe: PretrainRecipe) -> TokenizerWork:
    """Work of the tokenizer in its own training."""
    return count_tokenizer_work(tokenizer_config(recipe.tokenizer.model))


def assumed_pace(recipe: Planned, machine: Machine, classes: int) -> Pace:
    """Counted FLOP, at a share of the machine's rate."""
    asked = recipe.engine.precision
    precision = machine.best if asked == "auto" else asked
    speed = machine.rate(precision) * (machine.share or 1.0)
    work = trained_work(recipe, classes)
    step, forward = Cost(0.0, work.training / speed), work.forward / speed
    share = f"a step is assumed to reach {machine.share} of {machine.name}'s rate (--share)"
    if isinstance(recipe, SegmentRecipe):
        forward *= looks(recipe)
    if not has_tokens(recipe):
        return Pace(machine, precision, step, evaluation=forward, notes=(share,))
    assert isinstance(recipe, PretrainRecipe)
    notes = [share]
    reads = recipe.tokens.precision
    known: Precision = "float32" if reads == "float32" else machine.best
    if known not in machine.rates:
        notes.append(
            f"the tokenizer is counted at the {machine.best} rate, which it has with "
            f"--tokens.precision bfloat16; in {known} it is slower"
        )
        known = machine.best
    reading = reading_work(recipe).reading / (machine.rate(known) * (machine.share or 1.0))
    asked = recipe.tokenizer.engine.precision
    train_rate = machine.rate(machine.best if asked == "auto" else asked) * (machine.share or 1.0)
    work_of_it = tokenizer_work(recipe)
    return Pace(
        machine,
        precision,
        step,
        Cost(0.0, reading),
        Cost(0.0, work_of_it.training / train_rate),
        forward + reading,
        work_of_it.forward / train_rate,
        tuple(notes),
    )


def measured_pace(
    recipe: Planned, device: torch.device, ranks: int, budget: float, classes: int
) -> Pace:
    """Time real steps on this machine.

    Args:
        recipe: What would be trained.
        device: What on.
        ranks: Devices that share a batch.
        budget: Seconds that all of it may take, roughly.
        classes: Of a classifier.
    """
    precision = choose_precision(recipe.engine.precision, device)
    rates = {precision: matrix_rate(device, _TYPES[precision])}
    machine = this_machine(device, rates)
    bench = _Bench(recipe, device, ranks, classes)
    if not has_tokens(recipe):
        step, evaluation, notes = bench.steps(0.9 * budget, rates[precision])
        return Pace(machine, precision, step, evaluation=evaluation, notes=notes)
    assert isinstance(recipe, PretrainRecipe)
    step, evaluation, notes = bench.steps(0.5 * budget, rates[precision])
    tokens = bench.tokens(0.15 * budget)
    own, own_evaluation = _tokenizer_pace(recipe.tokenizer, device, ranks, 0.3 * budget)
    return Pace(machine, precision, step, tokens, own, evaluation, own_evaluation, notes)


class _Bench:
    """A recipe's model, to be timed."""

    def __init__(self, recipe: Planned, device: torch.device, ranks: int, classes: int) -> None:
        self.recipe, self.device, self.classes = recipe, device, classes
        self.micro = recipe.optim.batch // (ranks * recipe.optim.accumulate)
        self.least = 2  # pictures: classifiers mix pairs, and a tokenizer never reads one alone
        settings = fit_settings(recipe.optim, recipe.engine, 1, device)
        self.settings: FitSettings = uncompiled(settings)
        self.vae: DiscreteVAE | None = None
        if isinstance(recipe, PretrainRecipe):
            vae = DiscreteVAE(tokenizer_config(recipe.tokenizer.model))
            self.vae = vae.to(device).requires_grad_(False).eval()

    def steps(self, budget: float, rate: float) -> tuple[Cost, float, tuple[str, ...]]:
        """A step without tokens; a picture of an evaluation; and how that was found."""
        depth = encoder_config_of(self.recipe.encoder).depth
        few = min(self.micro, 4)
        said = "timed without compiling: --engine.compile makes a step shorter"
        faster = (said,) if self.device.type == "cuda" else ()
        seconds = 6 * few * trained_work(self.recipe, self.classes).training / (_GUESS * rate)
        if seconds < budget or depth <= SHALLOW[1]:
            task = self._task(self.recipe)
            found = cost(self._make(task), self.micro, 0.8 * budget, self.device, least=self.least)
            each = self._evaluation(task, min(EVALUATION_BATCH, max(2, found.pictures)))
            return found.cost, each, (f"timed at {found.pictures} pictures a micro-batch", *faster)
        shallow = []
        for blocks in SHALLOW:
            task = self._task(_of_depth(self.recipe, blocks))
            make = self._make(task)
            shallow.append(cost(make, self.micro, budget / 2, self.device, least=self.least))
        times = (depth - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])
        step = shallow[0].cost.deeper(shallow[1].cost, times)
        note = (
            f"timed with {SHALLOW[0]} and {SHALLOW[1]} of {depth} blocks, at "
            f"{shallow[1].pictures} pictures a micro-batch, and continued in proportion to FLOP"
        )
        seen = looks(self.recipe) if isinstance(self.recipe, SegmentRecipe) else 1
        return step, seen * step.each / 3, (note, *faster)

    def tokens(self, budget: float) -> Cost:
        """Codes from the frozen tokenizer, its view's augmentation included."""
        assert isinstance(self.recipe, PretrainRecipe) and self.vae is not None
        size = self.vae.config.view_size(encoder_config_of(self.recipe.encoder).grid)
        views = view_settings(self.recipe.views, token_view=size)
        shape = Shape(views, mask_plan(self.recipe))
        target = pretrain_task(_small(self.recipe), self.vae).target

        def make(pictures: int) -> Call:
            batch = random_batch(shape, pictures, self.device)
            return torch.no_grad()(lambda: target.listed(prepare(batch)))

        return cost(make, self.micro, budget, self.device, least=self.least).cost

    def _task(self, recipe: Planned) -> nn.Module:
        return fresh_task(recipe, self.vae, self.classes)

    def _make(self, task: nn.Module) -> Callable[[int], Call]:
        shape = batch_shape(self.recipe, self.classes)
        return steps_of(task, shape, self.settings, self.device)

    @torch.no_grad()
    def _evaluation(self, task: nn.Module, pictures: int) -> float:
        """Seconds a picture of what is done with the validation pictures."""
        task.eval()
        pictures = min(pictures, _WHOLE) if isinstance(task, SegmentTask) else pictures
        call = evaluation(self.recipe, task, self.vae, pictures, self.device)
        return _twice(call, self.device) / pictures


def uncompiled(settings: FitSettings) -> FitSettings:
    """For timing: each size of batch would be compiled anew, longer than all the rest."""
    return dataclasses.replace(settings, compile=False)


def _of_depth(recipe: Planned, blocks: int) -> Planned:
    """The recipe with a shallower model; a decoder reads what it reads by itself."""
    read = {"decoder.layers": None} if isinstance(recipe, SegmentRecipe) else {}
    return replace(recipe, {"encoder.depth": blocks, **read})


def _small(recipe: PretrainRecipe) -> PretrainRecipe:
    """A model that costs nothing to build, with the same target, which is not compiled either."""
    small = {"encoder.width": 8, "encoder.heads": 1, "encoder.depth": 1}
    return replace(recipe, {**small, "engine.compile": False})


def _tokenizer_pace(
    recipe: TokenizerRecipe, device: torch.device, ranks: int, budget: float
) -> tuple[Cost, float]:
    """A training step of the tokenizer, and a picture of its evaluation."""
    task = tokenize_task(recipe)
    shape = Shape(view_settings(recipe.views, token_view=task.model.image_size))
    settings = uncompiled(fit_settings(recipe.optim, recipe.engine, 1, device))
    micro = recipe.optim.batch // (ranks * recipe.optim.accumulate)
    make = steps_of(task, shape, settings, device)
    found = cost(make, micro, 0.8 * budget, device)
    task.eval()
    pictures = min(EVALUATION_BATCH, max(2, found.pictures))
    view = prepare(random_batch(shape, pictures, device)).token_view
    assert view is not None
    with torch.no_grad():
        seconds = _twice(lambda: codebook_report(task.model, iter([view])), device)
    return found.cost, seconds / pictures


def _twice(call: Call, device: torch.device) -> float:
    """Seconds of the second call; the first one warms up."""
    timed(call, device)
    return timed(call, device)
