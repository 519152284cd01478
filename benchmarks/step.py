"""Training steps: ours against the reference's, transformers' and timm's, in turns, in one process.

    python benchmarks/step.py live given classifier --sizes base --batch 8 --rounds 5

All models of a comparison have the same weights and get the same batch; before anything is timed,
losses and gradients are equal in float32 on some of the pictures, and ours under bfloat16 autocast,
where other kernels run, is close to ours in float32. Ours is the engine's own step with the share
of the augmentation that is the device's, the others get their pictures ready made. Pictures and
weights are drawn: time does not depend on what is in them. Stochastic depth is off, or nothing
could be compared.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

import aims
from beit.batch import ImageBatch, Masks, needed
from beit.commands.planning.calibration import Call, step_on
from beit.data.views.augment import prepare
from beit.engine.settings import FitSettings
from beit.interop.names import REFERENCE, TIMM, TRANSFORMERS_5, Layout
from beit.nn.classifier import Classifier
from beit.nn.counting import count_work
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.objectives.masked import masked_token_loss
from beit.tasks.classify import ClassifyTask
from beit.tasks.pretrain import PretrainTask, VisualTokens
from beit.tokenizer.counting import count_tokenizer_work
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.reading import TokenReader, agreement
from harness import (
    Memory,
    give_memory_back,
    interleaved,
    matrix_peak,
    memory_of,
    record,
    times_faster,
)
from peers import (
    Loss,
    difference,
    difference_in_half,
    hub_loss,
    hub_masked,
    reference_loss,
    reference_masked,
    timm_classifier,
    timm_loss,
    trainer_step,
    translated,
)
from reference_model import ReferenceModel, ReferenceTokenizer, reference_step
from setting import Setting, drawn_batch, fast_reading, settings_of, with_settings

CLASSES = 1000
MOST_COMPARED = 32  # pictures: in float32 a step of large on more does not fit on a card
BANKED = "ours, banked"
EAGER = "ours, banked, not compiled"
PAIRS = {  # in pre-training
    "reference / ours, live tokens": ("reference, live", "ours, live"),
    "reference / ours, banked tokens": ("reference, live", BANKED),
    "transformers / ours, tokens given": ("transformers", BANKED),
    "transformers compiled / ours, tokens given": ("transformers, compiled", BANKED),
    "ours, exact live tokens / half": ("ours, live, exact", "ours, live"),
    "ours, live tokens / banked": ("ours, live", BANKED),
    "ours, not compiled / compiled": (EAGER, BANKED),
}
Side = Callable[[], Call]  # made when it is wanted


def main() -> None:
    """Time what was asked for and write a record of each comparison of each size."""
    parser = with_settings(__doc__)
    parser.add_argument("what", nargs="*", default=["live", "given", "classifier"])
    options = parser.parse_args()
    settings = settings_of(options)
    for what in options.what:
        for setting in settings:
            rows = [COMPARISONS[what](setting)]
            name = f"step-{what}-{setting.where}"
            print(record(name, rows, options.results, precision=setting.precision))


def live_steps(setting: Setting) -> dict[str, Any]:
    """Pre-training: the reference with its tokenizer, and ours in three ways."""
    return _Masked(setting).row(("reference, live", "ours, live", "ours, live, exact", BANKED))


def given_steps(setting: Setting) -> dict[str, Any]:
    """Pre-training with tokens given: transformers, and ours from a bank."""
    ours = (BANKED, EAGER) if setting.compiles else (BANKED,)
    return _Masked(setting).row(("transformers", "transformers, compiled", *ours))


class _Masked:
    """Pre-training: our model, one batch, and the sides, made when they are wanted."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.setting = setting
        self.config = setting.encoder()
        self.vae = setting.tokenizer(self.config.grid)
        head = MaskedTokenHead(self.config.width, self.vae.vocabulary)
        self.model = MaskedImageModel(Encoder(self.config), head).to(setting.device)
        self.batch = drawn_batch(setting, self.config, self.vae.image_size)
        ready = prepare(self.batch)
        assert ready.patch_view is not None and ready.masks is not None
        self.images, self.masks = ready.patch_view, ready.masks
        self.masked = self.masks.grid.flatten(1)
        self.token_view = needed(ready.token_view, "token view")
        self.codes = TokenReader(self.vae).codes(self.token_view)

    @cached_property
    def reference(self) -> ReferenceModel:
        """The reference's model."""
        return reference_masked(self.model, self.config).to(self.setting.device)

    @cached_property
    def reader(self) -> ReferenceTokenizer:
        """The reference's tokenizer."""
        return ReferenceTokenizer(self.vae)

    @cached_property
    def hub(self) -> nn.Module:
        """Transformers' model."""
        return hub_masked(self.model, self.config).to(self.setting.device)

    def row(self, wanted: tuple[str, ...]) -> dict[str, Any]:
        """What is recorded of the sides that are wanted."""
        equal = {name: round(share, 5) for name, share in self.equal_codes(wanted).items()}
        apart, in_half = self.apart(wanted)
        places = self.masks.index.shape[1]
        work = count_work(self.config, places, self.vae.vocabulary).training
        tokenizer = count_tokenizer_work(self.vae.config).reading
        sides = self.sides()
        return {
            **measured(
                {name: sides[name] for name in wanted},
                {name: pair for name, pair in PAIRS.items() if set(pair) <= set(wanted)},
                {name: work + ("live" in name) * tokenizer for name in wanted},
                self.setting,
            ),
            "equal codes": equal,
            "apart in float32": apart,
            "ours in bfloat16 apart from float32": in_half,
        }

    def sides(self) -> dict[str, Side]:
        """All there are."""
        banked = replace(self.batch, token_view=None, codes=self.codes)
        eager = self.setting._replace(eager=True)
        exact = VisualTokens(TokenReader(self.vae))
        return {
            "reference, live": lambda: reference_step(
                self.reference, self.reader, self.images, self.token_view, self.masked
            ),
            "transformers": lambda: self.hub_step(self.hub),
            "transformers, compiled": lambda: self.hub_step(torch.compile(self.hub)),
            "ours, live": lambda: own_step(
                self.model, fast_tokens(self.vae, self.setting), self.batch, self.setting
            ),
            "ours, live, exact": lambda: own_step(self.model, exact, self.batch, self.setting),
            BANKED: lambda: own_step(self.model, exact, banked, self.setting),
            EAGER: lambda: own_step(copy.deepcopy(self.model), exact, banked, eager),
        }

    def hub_step(self, called: Any) -> Call:
        """Transformers' step, its model called in some way."""
        loss = hub_loss(called, self.images, self.masked, self.codes.flatten(1)[self.masked])
        return trainer_step(self.hub, loss, precision=self.setting.precision)

    def equal_codes(self, wanted: tuple[str, ...]) -> dict[str, float]:
        """Shares of the codes that are those of float32; of both readers, where they are timed."""
        # Not the compiled reader: it is asked for listed places alone in a step, and would be
        # compiled for any shape where it was asked for all of them before.
        cheap = TokenReader(self.vae, fast_reading(self.setting))
        readers: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
            "reference, live": ("reference's tokenizer", self.reader.codes),
            "ours, live": ("ours in half precision", cheap.codes),
        }
        return {
            name: agreement(codes(self.token_view), self.codes).share
            for side, (name, codes) in readers.items()
            if side in wanted
        }

    def apart(self, wanted: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, float]]:
        """Losses and gradients of ours against the timed peers', asserted to be equal.

        Returns:
            In float32, by peer; our own under bfloat16 autocast from those in float32.
        """
        some = slice(MOST_COMPARED)
        masks = Masks(self.masks.grid[some], self.masks.index[some], self.masks.weight[some])
        images, codes, masked = self.images[some], self.codes[some].flatten(1), self.masked[some]
        targets, labels = masks.gather(codes), codes[masked]

        def own() -> Tensor:
            return masked_token_loss(self.model(images, masks), targets, masks.weight)[0]

        def against(theirs: nn.Module, loss: Loss, layout: Layout) -> dict[str, float]:
            names = partial(translated, layout, "tokens", self.config)
            return difference((self.model, own), (theirs, loss), names)

        found = {}
        if "reference, live" in wanted:
            loss = reference_loss(self.reference, images, masked, labels)
            found["reference"] = against(self.reference, loss, REFERENCE)
        if "transformers" in wanted:
            loss = hub_loss(self.hub, images, masked, labels)
            found["transformers"] = against(self.hub, loss, TRANSFORMERS_5)
        in_half = difference_in_half(self.model, own, self.setting.device)
        give_memory_back(self.setting.device)
        return found, in_half


def classifier_steps(setting: Setting) -> dict[str, Any]:
    """Classification with a bias table a block: timm's model and ours, eager and compiled."""
    torch.manual_seed(0)
    config = setting.encoder(relative_positions="per-layer")

    def new() -> Classifier:
        head = ClassifierHead(config.width, CLASSES)
        return Classifier(Encoder(config), head).to(setting.device)

    model = new()
    batch = drawn_batch(setting, config, classes=CLASSES)
    images, labels = needed(prepare(batch).patch_view, "view"), needed(batch.label, "label")
    theirs = timm_classifier(model, config).to(setting.device)
    some = images[:MOST_COMPARED], labels[:MOST_COMPARED]
    own = timm_loss(model, *some)
    names = partial(translated, TIMM, "mean", config)
    apart = difference((model, own), (theirs, timm_loss(theirs, *some)), names)
    in_half = difference_in_half(model, own, setting.device)
    give_memory_back(setting.device)

    def timm_step(called: Any) -> Call:
        return trainer_step(theirs, timm_loss(called, images, labels), precision=setting.precision)

    sides: dict[str, Side] = {
        "timm": lambda: timm_step(theirs),
        "timm, compiled": lambda: timm_step(torch.compile(theirs)),
        "ours": lambda: own_classifier_step(model, batch, setting),
        "ours, compiled": lambda: own_classifier_step(new(), batch, setting, compiled=True),
    }
    pairs = {
        "timm / ours": ("timm", "ours"),
        "timm compiled / ours": ("timm, compiled", "ours"),
        "timm compiled / ours compiled": ("timm, compiled", "ours, compiled"),
    }
    work = count_work(config, 1, CLASSES).training
    return {
        **measured(sides, pairs, dict.fromkeys(sides, work), setting),
        "apart in float32": {"timm": apart},
        "ours in bfloat16 apart from float32": in_half,
    }


def measured(
    sides: Mapping[str, Side],
    pairs: dict[str, tuple[str, str]],
    flops: dict[str, int],
    setting: Setting,
) -> dict[str, Any]:
    """Time all sides in turns; times, rates, shares of the peak, memory and ratios.

    A side that cannot be called is noted, and the others are timed.
    """
    if setting.eager:
        sides = {name: side for name, side in sides.items() if ", compiled" not in name}
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    peak = matrix_peak(setting.device, kinds[setting.precision])
    calls, memory, failed = first_calls(sides, setting.device)
    pairs = {name: pair for name, pair in pairs.items() if set(pair) <= set(calls)}
    seconds = interleaved(calls, rounds=setting.rounds, settle=1, device=setting.device)
    peak = max(peak, matrix_peak(setting.device, kinds[setting.precision]))
    column = 0 if setting.device.type == "cpu" else 1
    rows = {}
    for name, times in seconds.items():
        median = sorted(times)[len(times) // 2]
        rate = setting.batch / median
        rows[name] = {
            "milliseconds": round(1000 * median, 2),
            "fastest, milliseconds": round(1000 * min(times), 2),
            "images a second": round(rate, 2),
            "GFLOP an image": round(flops[name] / 1e9, 2),
            "share of peak": round(rate * flops[name] / peak, 3),
            "peak memory, bytes": memory[name].peak,
            "memory before, bytes": memory[name].before,
        }
    ratios = {
        name: {
            **times_faster(seconds[slow], seconds[fast]),
            "aim": aims.RATIOS[name][column] if name in aims.RATIOS else None,
        }
        for name, (slow, fast) in pairs.items()
    }
    return {
        "size": setting.size,
        "batch": setting.batch,
        "rounds": setting.rounds,
        "attention": setting.attention,
        "matrix product, TFLOP/s": round(peak / 1e12, 4),
        "sides": rows,
        "failed": failed,
        "ratios": ratios,
    }


def first_calls(
    sides: Mapping[str, Side], device: torch.device
) -> tuple[dict[str, Call], dict[str, Memory], dict[str, str]]:
    """Make and call every side: what can be called, the memory it took, and what was raised."""
    calls: dict[str, Call] = {}
    memory, failed = {}, {}
    for name, make in sides.items():
        try:
            calls[name], memory[name] = _first_call(make, device)
        except Exception as error:  # whatever other people's code or a compiler can raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if name in failed:  # from here on, when nothing holds the error and what it holds
            print(f"{name} is left out: {failed[name]}", file=sys.stderr, flush=True)
            give_memory_back(device)
    return calls, memory, failed


def _first_call(make: Side, device: torch.device) -> tuple[Call, Memory]:
    """A function of its own, whose names hold nothing when it has raised."""
    call = make()
    return call, memory_of(call, device)


def fast_tokens(vae: DiscreteVAE, setting: Setting) -> VisualTokens:
    """Tokens read live, as a long run reads them: cheaply, and compiled where it is."""
    reader = TokenReader(vae, fast_reading(setting), compiled=setting.compiles)
    return VisualTokens(reader, listed_only=True)


def own_step(
    model: MaskedImageModel, target: VisualTokens, batch: ImageBatch, setting: Setting
) -> Call:
    """Our engine's step of pre-training on this batch."""
    task = PretrainTask(model, target)
    return _engine_step(task, batch, setting, compiled=setting.compiles)


def own_classifier_step(
    model: Classifier, batch: ImageBatch, setting: Setting, *, compiled: bool = False
) -> Call:
    """Our engine's step of classification on this batch."""
    return _engine_step(ClassifyTask(model), batch, setting, compiled=compiled)


def _engine_step(task: nn.Module, batch: ImageBatch, setting: Setting, *, compiled: bool) -> Call:
    settings = FitSettings(
        total_steps=10**6,
        global_batch=setting.batch,
        learning_rate=1e-5,
        clip=3.0,
        precision=setting.precision,
        compile=compiled,
    )
    return step_on(task, settings, setting.device)(batch)


COMPARISONS = {"live": live_steps, "given": given_steps, "classifier": classifier_steps}


if __name__ == "__main__":
    main()
