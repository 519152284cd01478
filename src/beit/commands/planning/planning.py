"""`beit plan`: time, memory and disk of a run, before it costs anything."""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from beit.commands.assembly.build import (
    choose_device,
    choose_workers,
    encoder_config_of,
    fit_settings,
    joint_view_settings,
    mask_plan,
    tokenizer_config,
    view_settings,
)
from beit.commands.assembly.checks import refuse_impossible
from beit.commands.assembly.token_precision import with_token_precision
from beit.commands.planning import footprint
from beit.commands.planning.calibration import Cost, seconds_a_picture
from beit.commands.planning.counting import (
    CLASSES,
    MASK_CLASSES,
    counted,
    reading_work,
    trained_work,
)
from beit.commands.planning.machines import HERE, Machine, named_machine
from beit.commands.planning.pacing import Pace, assumed_pace, measured_pace, tokenizer_work
from beit.commands.planning.planned import Planned, has_tokens, usual_size, views_of
from beit.commands.preparing.banking import views_needed
from beit.commands.training.segment import paired_sources
from beit.data.loading.loader import LoaderSettings, pair_batches, training_batches
from beit.data.pairs.pairs import PairSource
from beit.data.sources.opening import Data, Source, open_source
from beit.data.views.views import ViewSettings
from beit.engine.fit import kept_generators
from beit.errors import UserError
from beit.machine import allowed_cores
from beit.recipes.downstream_models import ClassifyRecipe, Recipe, SegmentRecipe
from beit.recipes.models import EngineRecipe, OptimRecipe, PretrainRecipe, TokenizerRecipe
from beit.recipes.overrides import replace

_LOOK = 1.0  # seconds that reading pictures is timed for, each kind of view
_LOADED = 32  # pictures that are read together meanwhile


@dataclass(frozen=True)
class PlanRequest:
    """What is asked beside the recipe.

    Attributes:
        images: Pictures to train on; not with data.
        data: A source to count them in, whose reading is timed.
        devices: That share a batch.
        machine: "here", or a name of `beit.commands.planning.machines.MACHINES`.
        rate: FLOP/s of a device, as told; wins over the named one.
        share: Of the rate of a machine that is not here, that a step reaches.
        memory: Bytes of a device, as told.
        bank_views: Views of each picture in a bank.
        device: What to time steps on here.
        seconds: That timing may take, roughly.
    """

    images: int | None = None
    data: Data | None = None
    devices: int = 1
    machine: str = HERE
    rate: float | None = None
    share: float | None = None
    memory: float | None = None
    bank_views: int | None = None
    device: str | None = None
    seconds: float = 20.0

    @property
    def timed_here(self) -> bool:
        """Whether steps are timed on this machine, and not counted for another one."""
        return self.machine == HERE and self.rate is None


@dataclass(frozen=True)
class _Input:
    """Reading pictures: one process's seconds for each, and how many there are."""

    live: float
    banked: float
    tokenizer: float
    workers: int
    crowded: float  # what a second of reading takes from a step that has every core to itself

    def seconds(self, step: float, read: float) -> tuple[float, str]:
        """Seconds of a step with its reading, and which of the two decides.

        Without processes of their own they take turns, with such they overlap.
        """
        if not self.workers:
            return step + read, "input" if read > step else "step"
        worked = step + self.crowded * read
        waited = read / self.workers
        return max(worked, waited), "input" if waited > worked else "step"


NO_INPUT = _Input(0.0, 0.0, 0.0, 0, 0.0)


def plan(recipe: Recipe, request: PlanRequest) -> dict[str, Any]:
    """Tell what a run would take.

    Raises:
        UserError: Something asked for cannot be.
    """
    device, machine = choose_device(request.device), _named(request)
    with kept_generators(device):  # steps are timed without `fit`, which would keep them
        return _planned(recipe, request, device, machine)


def _planned(
    recipe: Recipe, request: PlanRequest, device: torch.device, machine: Machine | None
) -> dict[str, Any]:
    where = device if machine is None else torch.device(machine.device)
    recipe = _as_it_runs(recipe, request, where)
    sources = _sources(recipe, request)
    pictures = request.images if sources is None else len(sources[0])
    assert pictures is not None
    if pictures == 0:
        raise UserError(f"{request.data} holds no picture to train on")
    refuse_impossible(recipe, request.devices, pictures, device)
    classes = len(sources[0].classes) if sources is not None else 0
    classes = classes or (MASK_CLASSES if isinstance(recipe, SegmentRecipe) else CLASSES)
    if machine is None:
        pace = measured_pace(recipe, device, request.devices, request.seconds, classes)
    else:
        pace = assumed_pace(recipe, machine, classes)
    reading = NO_INPUT if sources is None else _input(recipe, request, sources[0], device)
    held_out = 0 if sources is None else len(sources[1])
    run = _Run(recipe, pace, request.devices, pictures, held_out, reading, device)
    disk = footprint.disk(recipe, pictures, classes)
    if sources is not None and not isinstance(recipe, SegmentRecipe):
        disk |= footprint.packed_size(sources)  # masks are not packed
    return {
        "recipe": recipe.name,
        "images": pictures,
        "validation_images": held_out,
        "devices": request.devices,
        **_counts(recipe, classes),
        "machine": _machine(pace, recipe, request.devices, classes),
        "stages": run.stages(),
        "input": None if sources is None else asdict(reading),
        "memory": footprint.memory(recipe, pace.machine, pace.precision, request.devices, classes),
        "disk": disk,
        "notes": [*pace.notes, *_notes(recipe, request, classes)],
    }


def _as_it_runs(recipe: Recipe, request: PlanRequest, device: torch.device) -> Planned:
    """The recipe as it would run on a device; what cannot be planned is refused."""
    if isinstance(recipe, TokenizerRecipe):
        raise UserError("plan tells of a tokenizer's training within the pre-training's: name that")
    if (request.images is None) == (request.data is None):
        raise UserError("plan needs either --images N or --data SRC, to know how many there are")
    _refuse_numbers(request)
    if request.devices > recipe.optim.batch:
        raise UserError(
            f"--devices {request.devices}: a batch of {recipe.optim.batch} pictures does not reach "
            "so many; take fewer, or raise --optim.batch"
        )
    if isinstance(recipe, PretrainRecipe):
        recipe = with_token_precision(recipe, device)
    if request.bank_views is None:
        return recipe
    if not has_tokens(recipe):
        raise UserError("--bank-views has no use: the recipe takes no visual tokens")
    return replace(recipe, {"tokens.views": request.bank_views})


def _refuse_numbers(request: PlanRequest) -> None:
    counts = {
        "--images": request.images,
        "--devices": request.devices,
        "--bank-views": request.bank_views,
    }
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{flag} {count}: there must be at least 1")
    if not 0 < request.seconds < math.inf:
        raise UserError(f"--seconds {request.seconds:g}: timing steps takes some time")
    if not request.timed_here:
        return
    for flag, given in (("--share", request.share), ("--memory", request.memory)):
        if given is not None:
            raise UserError(f"{flag} has no use here, where it is measured; name a --machine")


def _sources(recipe: Planned, request: PlanRequest) -> tuple[Source, Source] | None:
    if request.data is None:
        return None
    if isinstance(recipe, SegmentRecipe):
        return paired_sources(recipe, request.data)
    return open_source(request.data, "train"), open_source(request.data, "val")


def _named(request: PlanRequest) -> Machine | None:
    """The machine that a plan is for; None for this one, where steps are timed."""
    if request.timed_here:
        return None
    return named_machine(
        request.machine, rate=request.rate, share=request.share, memory=request.memory
    )


def _counts(recipe: Planned, classes: int) -> dict[str, Any]:
    """Parameters and GFLOP a picture."""
    found = counted(recipe)
    work: dict[str, float] = dict(found["gflop_per_picture"])
    if not isinstance(recipe, PretrainRecipe):
        own = trained_work(recipe, classes)
        work = {"forward": own.forward / 1e9, "forward_and_backward": own.training / 1e9}
    elif has_tokens(recipe):
        work["tokenizer_training"] = tokenizer_work(recipe).training / 1e9
    return {
        "parameters": found["parameters"],
        "tokenizer_parameters": found.get("tokenizer_parameters") if has_tokens(recipe) else None,
        "gflop_per_picture": work,
    }


def _machine(pace: Pace, recipe: Planned, devices: int, classes: int) -> dict[str, Any]:
    """The device, and what share of its rate a step has."""
    machine = pace.machine
    micro = recipe.optim.batch // devices
    work = trained_work(recipe, classes).training
    rate = machine.rate(pace.precision)
    shares = {"share_of_rate": work * micro / pace.step.at(micro) / rate}
    if isinstance(recipe, PretrainRecipe) and has_tokens(recipe):
        work += reading_work(recipe).reading
        seconds = pace.step.at(micro) + pace.tokens.at(micro)
        shares["share_of_rate_with_tokenizer"] = work * micro / seconds / rate
    return {
        "name": machine.name,
        "source": machine.source,
        "precision": pace.precision,
        "flops": rate,
        "assumed_share": machine.share,
        **shares,
        "memory": machine.memory,
    }


def _input(recipe: Planned, request: PlanRequest, source: Source, device: torch.device) -> _Input:
    """Time the reading of pictures, as each kind of run asks for it."""
    settings = LoaderSettings(_LOADED, recipe.engine.seed)

    def each(views: ViewSettings) -> float:
        masks = mask_plan(recipe) if isinstance(recipe, PretrainRecipe) else None
        return seconds_a_picture(training_batches(source, views, masks, settings, 0), _LOOK)

    tokenizer = 0.0
    if isinstance(recipe, SegmentRecipe):
        pairs = cast(PairSource, source)
        pieces = pair_batches(pairs, joint_view_settings(recipe), settings, 0)
        banked = live = seconds_a_picture(pieces, _LOOK)
    else:
        banked = live = each(views_of(recipe))
    if isinstance(recipe, PretrainRecipe) and has_tokens(recipe):
        config = tokenizer_config(recipe.tokenizer.model)
        view = config.view_size(encoder_config_of(recipe.encoder).grid)
        live = each(views_of(recipe, view))
        own = view_settings(recipe.tokenizer.views, token_view=config.image_size)
        tokenizer = each(own)
    workers = choose_workers(recipe.data, device, request.devices)
    return _Input(live, banked, tokenizer, workers, crowding(device, workers))


def crowding(device: torch.device, workers: int) -> float:
    """What a second of reading takes from a step.

    A CPU that computes with every core has none left for the loader.
    """
    spare = allowed_cores() - torch.get_num_threads()
    return 0.0 if device.type != "cpu" or spare >= workers else 1.0


@dataclass(frozen=True)
class _Run:
    """All that the times of the stages follow from."""

    recipe: Planned
    pace: Pace
    devices: int
    pictures: int
    held_out: int
    reading: _Input
    device: torch.device

    def stages(self) -> dict[str, dict[str, Any]]:
        """Each stage of the run, by name."""
        recipe, pace, reading = self.recipe, self.pace, self.reading
        own = recipe.optim, recipe.engine
        if not isinstance(recipe, PretrainRecipe) or not has_tokens(recipe):
            name = {PretrainRecipe: "pretrain", ClassifyRecipe: "classify"}.get(
                type(recipe), "segment"
            )
            return {name: self._stage(*own, (pace.step,), reading.banked, pace.evaluation)}
        first = recipe.tokenizer
        live = (pace.step, pace.tokens)
        return {
            "tokenizer": self._stage(
                first.optim,
                first.engine,
                (pace.tokenizer,),
                reading.tokenizer,
                pace.tokenizer_evaluation,
            ),
            "pretrain_live": self._stage(*own, live, reading.live, pace.evaluation),
            "bank": self._bank(),
            "pretrain_banked": self._stage(*own, live[:1], reading.banked, pace.evaluation),
        }

    def _stage(
        self,
        optim: OptimRecipe,
        engine: EngineRecipe,
        costs: tuple[Cost, ...],
        read: float,
        evaluation: float,
    ) -> dict[str, Any]:
        settings = fit_settings(optim, engine, self.pictures, self.device)
        share = optim.batch / self.devices
        worked = sum(cost.at(share) for cost in costs)
        step, decides = self.reading.seconds(worked, read * share)
        times = math.ceil(settings.total_steps / settings.evaluate_every)
        begun = sum(cost.first for cost in costs)
        # Ranks share the pictures out.
        looked = times * self.held_out * (evaluation + read) / self.devices
        return {
            "steps": settings.total_steps,
            "epochs": settings.total_steps * optim.batch / self.pictures,
            "step_seconds": step,
            "pictures_per_second": optim.batch / step,
            "evaluation_seconds": looked,
            "first_step_seconds": begun,
            "seconds": settings.total_steps * step + begun + looked,
            "bottleneck": decides if read else None,
        }

    def _bank(self) -> dict[str, Any]:
        assert isinstance(self.recipe, PretrainRecipe)
        views = views_needed(self.recipe, self.pictures)
        each, decides = self.reading.seconds(self.pace.tokens.each, self.reading.banked)
        return {
            "views": views,
            "pictures_per_second": self.devices / each,
            "seconds": views * self.pictures * each / self.devices,
            "bottleneck": decides if self.reading.banked else None,
        }


def _notes(recipe: Planned, request: PlanRequest, classes: int) -> list[str]:
    """What is not in the figures."""
    notes = []
    if request.data is None and not isinstance(recipe, PretrainRecipe):
        notes.append(f"counted with {classes:,} classes; --data SRC knows how many there are")
    if isinstance(recipe, SegmentRecipe) and request.data is not None:
        height, width = usual_size(recipe)
        notes.append(f"evaluations are those of pictures of {width} x {height} pixels")
    if request.devices > 1:
        notes.append(
            f"{request.devices} devices are counted as {request.devices} times one; what they tell "
            "each other comes on top"
        )
    if request.data is None:
        notes.append("reading pictures and evaluations are not counted; --data SRC measures them")
    else:
        notes.append("reading was timed on this machine, from a few hundred pictures")
    return notes
