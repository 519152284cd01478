"""Training steps: ours against the reference's, transformers' and timm's, in turns, in one process.

    python benchmarks/step.py live given classifier --sizes base --batch 8 --rounds 5

All models of a comparison have the same weights and get the same batch; losses and gradients are
equal in float32 before anything is timed. Ours is the engine's own step with the device's share of
the augmentation, the others get their pictures ready made. Pictures and weights are drawn: time
does not depend on what is in them. Stochastic depth is off, or nothing could be compared.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.batch import ColourDraws, ImageBatch, Masks
from beit.data.augment import prepare
from beit.engine.distribution import World
from beit.engine.optimiser import build_optimiser, parameter_groups, trainable
from beit.engine.settings import FitSettings
from beit.engine.step import TrainingStep
from beit.interop.names import REFERENCE, TIMM, TRANSFORMERS_5
from beit.masking import MASKERS, place_list
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.counting import count_work
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import encoder_config
from beit.objectives.masked import masked_token_loss
from beit.randomness import sample_generator
from beit.recipes.build import choose_device, choose_precision
from beit.tasks.classify import ClassifyTask
from beit.tasks.pretrain import PretrainTask, VisualTokens
from beit.tokenizer.config import dalle_config
from beit.tokenizer.counting import count_tokenizer_work
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.reading import REDUCED, TokenReader, agreement
from harness import RESULTS, Call, interleaved, matrix_peak, peak_memory, record, times_faster
from peers import (
    difference,
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

CLASSES = 1000
BANKED = "ours, banked"
AIMS = {  # of issue and limits: name of the comparison -> (on a CPU, on a GPU)
    "reference / ours, live tokens": (4.0, 2.2),
    "reference / ours, banked tokens": (6.0, 3.2),
    "transformers / ours, tokens given": (1.15, 1.6),
    "timm compiled / ours": (1.05, 1.05),
}


class Setting(NamedTuple):
    """What is the same for all sides."""

    size: str
    batch: int
    rounds: int
    device: torch.device
    precision: str


def main() -> None:
    """Time what was asked for and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", nargs="*", default=["live", "given", "classifier"])
    parser.add_argument("--sizes", nargs="+", default=["base"])
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = choose_device(options.device)
    precision = choose_precision("auto", device)
    for what in options.what:
        rows = []
        for size in options.sizes:
            setting = Setting(size, options.batch, options.rounds, device, precision)
            rows.append(COMPARISONS[what](setting))
            name = f"step-{what}-{device.type}"
            print(record(name, rows, options.results, precision=precision))


def live_steps(setting: Setting) -> dict[str, Any]:
    """Pre-training: the reference with its tokenizer, and ours in three ways."""
    return masked_steps(setting, ("reference, live", "ours, live", "ours, live, exact", BANKED))


def given_steps(setting: Setting) -> dict[str, Any]:
    """Pre-training with tokens given: transformers, and ours from a bank."""
    return masked_steps(setting, ("transformers", BANKED))


def masked_steps(setting: Setting, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Pre-training, the sides that are wanted."""
    torch.manual_seed(0)
    device = setting.device
    config = encoder_config(setting.size, "plus", (224, 224), (16, 16))  # type: ignore[arg-type]
    vae = DiscreteVAE(dalle_config()).to(device).eval().requires_grad_(False)
    head = MaskedTokenHead(config.width, vae.vocabulary)
    model = MaskedImageModel(Encoder(config), head).to(device)
    batch = drawn_batch(setting, vae.image_size, config.grid)
    ready = prepare(batch)
    assert ready.patch_view is not None and ready.token_view is not None and ready.masks is not None
    exact, cheap = TokenReader(vae), TokenReader(vae, half(device))
    codes = exact.codes(ready.token_view)
    theirs = ReferenceTokenizer(vae)
    equal = {
        "reference's tokenizer": agreement(theirs.codes(ready.token_view), codes).share,
        "ours in half precision": agreement(cheap.codes(ready.token_view), codes).share,
    }
    images, masked = ready.patch_view, ready.masks.grid.flatten(1)
    reference = reference_masked(model, config).to(device)
    hub = hub_masked(model, config).to(device)
    apart = masked_differences(model, config, reference, hub, ready, codes)
    banked = replace(batch, token_view=None, codes=codes)
    sides: dict[str, Call] = {
        "reference, live": reference_step(reference, theirs, images, ready.token_view, masked),
        "transformers": trainer_step(
            hub,
            hub_loss(hub, images, masked, codes.flatten(1)[masked]),
            precision=setting.precision,
        ),
        "ours, live": own_step(model, VisualTokens(cheap, listed_only=True), batch, setting),
        "ours, live, exact": own_step(model, VisualTokens(exact), batch, setting),
        BANKED: own_step(model, VisualTokens(exact), banked, setting),
    }
    places = ready.masks.index.shape[1]
    work = count_work(config, places, vae.vocabulary).training
    tokenizer = count_tokenizer_work(vae.config).reading
    flops = {name: work + ("live" in name) * tokenizer for name in sides}
    pairs = {
        "reference / ours, live tokens": ("reference, live", "ours, live"),
        "reference / ours, banked tokens": ("reference, live", BANKED),
        "transformers / ours, tokens given": ("transformers", BANKED),
        "ours, exact live tokens / half": ("ours, live, exact", "ours, live"),
        "ours, live tokens / banked": ("ours, live", BANKED),
    }
    return {
        **measured(
            {name: sides[name] for name in wanted},
            {name: pair for name, pair in pairs.items() if set(pair) <= set(wanted)},
            flops,
            setting,
        ),
        "equal codes": {name: round(share, 5) for name, share in equal.items()},
        "apart in float32": apart,
    }


def masked_differences(
    model: MaskedImageModel,
    config: EncoderConfig,
    reference: ReferenceModel,
    hub: torch.nn.Module,
    ready: ImageBatch,
    codes: Tensor,
) -> dict[str, Any]:
    """Losses and gradients of ours against both peers', asserted to be equal."""
    assert ready.patch_view is not None and ready.masks is not None
    images, masks, flat = ready.patch_view, ready.masks, codes.flatten(1)
    masked = masks.grid.flatten(1)
    targets = masks.gather(flat)

    def own() -> Tensor:
        return masked_token_loss(model(images, masks), targets, masks.weight)[0]

    return {
        "reference": difference(
            (model, own),
            (reference, reference_loss(reference, images, masked, flat[masked])),
            lambda tensors: translated(REFERENCE, "tokens", config, tensors),
        ),
        "transformers": difference(
            (model, own),
            (hub, hub_loss(hub, images, masked, flat[masked])),
            lambda tensors: translated(TRANSFORMERS_5, "tokens", config, tensors),
        ),
    }


def classifier_steps(setting: Setting) -> dict[str, Any]:
    """Classification with a bias table a block: timm's model and ours, eager and compiled."""
    torch.manual_seed(0)
    shape = {"relative_positions": "per-layer"}
    config = encoder_config(setting.size, "plus", (224, 224), (16, 16), **shape)  # type: ignore[arg-type]
    model = Classifier(Encoder(config), ClassifierHead(config.width, CLASSES)).to(setting.device)
    batch = replace(
        drawn_batch(setting, None, config.grid),
        label=torch.randint(CLASSES, (setting.batch,), device=setting.device),
    )
    images, labels = prepare(batch).patch_view, batch.label
    assert images is not None and labels is not None
    theirs = timm_classifier(model, config).to(setting.device)
    apart = difference(
        (model, timm_loss(model, images, labels)),
        (theirs, timm_loss(theirs, images, labels)),
        lambda tensors: timm_gradients(config, tensors),
    )
    compiled = torch.compile(theirs)
    own = Classifier(Encoder(config), ClassifierHead(config.width, CLASSES)).to(setting.device)
    own.load_state_dict(model.state_dict())
    sides: dict[str, Call] = {
        "timm": trainer_step(
            theirs, timm_loss(theirs, images, labels), precision=setting.precision
        ),
        "timm, compiled": trainer_step(
            theirs, timm_loss(compiled, images, labels), precision=setting.precision
        ),
        "ours": own_classifier_step(model, batch, setting),
        "ours, compiled": own_classifier_step(own, batch, setting, compiled=True),
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
    }


def timm_gradients(config: EncoderConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our gradients under timm's names; it has no mask embedding."""
    return translated(TIMM, "mean", config, tensors)


def measured(
    sides: dict[str, Call],
    pairs: dict[str, tuple[str, str]],
    flops: dict[str, int],
    setting: Setting,
) -> dict[str, Any]:
    """Time all sides in turns; times, rates, shares of the peak, memory and ratios."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    peak = matrix_peak(setting.device, kinds[setting.precision])
    memory = {name: peak_memory(call, setting.device) for name, call in sides.items()}
    seconds = interleaved(sides, rounds=setting.rounds, settle=1, device=setting.device)
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
            "peak memory, bytes": memory[name],
        }
    ratios = {
        name: {
            **times_faster(seconds[slow], seconds[fast]),
            "aim": AIMS[name][column] if name in AIMS else None,
        }
        for name, (slow, fast) in pairs.items()
    }
    return {
        "size": setting.size,
        "batch": setting.batch,
        "rounds": setting.rounds,
        "matrix product, TFLOP/s": round(peak / 1e12, 4),
        "sides": rows,
        "ratios": ratios,
    }


def own_step(
    model: MaskedImageModel, target: VisualTokens, batch: ImageBatch, setting: Setting
) -> Call:
    """Our engine's step of pre-training on this batch."""
    return _engine_step(PretrainTask(model, target), batch, setting)


def own_classifier_step(
    model: Classifier, batch: ImageBatch, setting: Setting, *, compiled: bool = False
) -> Call:
    """Our engine's step of classification on this batch."""
    if compiled:
        model.compile()
    return _engine_step(ClassifyTask(model), batch, setting)


def _engine_step(task: Any, batch: ImageBatch, setting: Setting) -> Call:
    groups = parameter_groups(
        trainable(task), weight_decay=0.05, undecayed=task.undecayed_parameters()
    )
    settings = FitSettings(
        total_steps=10**6,
        global_batch=setting.batch,
        learning_rate=1e-5,
        clip=3.0,
        precision=setting.precision,  # type: ignore[arg-type]
    )
    optimiser = build_optimiser(groups, betas=(0.9, 0.999), eps=1e-8)
    step = TrainingStep(
        task.train(), optimiser, None, settings, World(), setting.device, prepare=prepare
    )
    batches: Iterator[ImageBatch] = repeat(batch)
    return lambda: step(0, batches)


def drawn_batch(
    setting: Setting, token_view: tuple[int, int] | None, grid: tuple[int, int]
) -> ImageBatch:
    """A batch as the loader hands it over: uint8 views, draws, the paper's masks."""
    count = setting.batch
    generators = [sample_generator(0, 0, row, "mask") for row in range(count)]
    masks = [MASKERS["blockwise"](one, grid, count=75, exact=True) for one in generators]
    places = int(masks[0].sum())
    lists = [place_list(mask, places) for mask in masks]
    patch_view = torch.randint(256, (count, 3, 224, 224), dtype=torch.uint8)
    tokens = None
    if token_view is not None:
        tokens = torch.randint(256, (count, 3, *token_view), dtype=torch.uint8)
    low, high = 0.6, 1.4
    brightness, contrast, saturation = low + (high - low) * torch.rand(3, count)
    batch = ImageBatch(
        index=torch.arange(count),
        epoch=torch.zeros(count, dtype=torch.int64),
        patch_view=patch_view,
        token_view=tokens,
        colour=ColourDraws(
            flip=torch.rand(count) < 0.5,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            order=torch.stack([torch.randperm(3) for _ in range(count)]),
        ),
        masks=Masks(
            torch.stack([torch.as_tensor(mask) for mask in masks]),
            torch.stack([torch.as_tensor(index) for index, _ in lists]),
            torch.stack([torch.as_tensor(weight) for _, weight in lists]),
        ),
    )
    return batch.to(setting.device)


def half(device: torch.device) -> Any:
    """The half precision that the device multiplies fast."""
    name = "float16" if device.type == "cuda" else "bfloat16"
    assert name in REDUCED
    return name


COMPARISONS = {"live": live_steps, "given": given_steps, "classifier": classifier_steps}


if __name__ == "__main__":
    main()
