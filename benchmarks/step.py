"""Training steps: ours against the reference's, transformers' and timm's, in turns, in one process.

    python benchmarks/step.py live given classifier --sizes base --batch 8 --rounds 5

All models of a comparison have the same weights and get the same batch; losses and gradients are
equal in float32 before anything is timed. Ours is the engine's own step with the device's share of
the augmentation, the others get their pictures ready made. Pictures and weights are drawn: time
does not depend on what is in them. Stochastic depth is off, or nothing could be compared.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import aims
from beit.batch import ImageBatch
from beit.commands.planning.calibration import Call, step_on
from beit.data.views.augment import prepare
from beit.engine.settings import FitSettings
from beit.interop.names import REFERENCE, TIMM, TRANSFORMERS_5
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.counting import count_work
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.objectives.masked import masked_token_loss
from beit.tasks.classify import ClassifyTask
from beit.tasks.pretrain import PretrainTask, VisualTokens
from beit.tokenizer.counting import count_tokenizer_work
from beit.tokenizer.reading import TokenReader, agreement
from harness import interleaved, matrix_peak, peak_memory, record, times_faster
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
from setting import Setting, drawn_batch, fast_reading, settings_of, with_settings

CLASSES = 1000
BANKED = "ours, banked"
EAGER = "ours, banked, not compiled"


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
    return masked_steps(setting, ("reference, live", "ours, live", "ours, live, exact", BANKED))


def given_steps(setting: Setting) -> dict[str, Any]:
    """Pre-training with tokens given: transformers, and ours from a bank."""
    ours = (BANKED, EAGER) if setting.compiles else (BANKED,)
    return masked_steps(setting, ("transformers", "transformers, compiled", *ours))


def masked_steps(setting: Setting, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Pre-training, the sides that are wanted."""
    torch.manual_seed(0)
    device = setting.device
    config = setting.encoder()
    vae = setting.tokenizer(config.grid)
    head = MaskedTokenHead(config.width, vae.vocabulary)
    model = MaskedImageModel(Encoder(config), head).to(device)
    batch = drawn_batch(setting, config, vae.image_size)
    ready = prepare(batch)
    assert ready.patch_view is not None and ready.token_view is not None and ready.masks is not None
    exact = TokenReader(vae)
    cheap = TokenReader(vae, fast_reading(setting), compiled=setting.compiles)
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
    eager = copy.deepcopy(model)

    def hub_step(called: Any) -> Call:
        loss = hub_loss(called, images, masked, codes.flatten(1)[masked])
        return trainer_step(hub, loss, precision=setting.precision)

    sides: dict[str, Call] = {
        "reference, live": reference_step(reference, theirs, images, ready.token_view, masked),
        "transformers": hub_step(hub),
        "transformers, compiled": hub_step(torch.compile(hub)),
        "ours, live": own_step(model, VisualTokens(cheap, listed_only=True), batch, setting),
        "ours, live, exact": own_step(model, VisualTokens(exact), batch, setting),
        BANKED: own_step(model, VisualTokens(exact), banked, setting),
        EAGER: own_step(eager, VisualTokens(exact), banked, setting._replace(eager=True)),
    }
    places = ready.masks.index.shape[1]
    work = count_work(config, places, vae.vocabulary).training
    tokenizer = count_tokenizer_work(vae.config).reading
    flops = {name: work + ("live" in name) * tokenizer for name in sides}
    pairs = {
        "reference / ours, live tokens": ("reference, live", "ours, live"),
        "reference / ours, banked tokens": ("reference, live", BANKED),
        "transformers / ours, tokens given": ("transformers", BANKED),
        "transformers compiled / ours, tokens given": ("transformers, compiled", BANKED),
        "ours, exact live tokens / half": ("ours, live, exact", "ours, live"),
        "ours, live tokens / banked": ("ours, live", BANKED),
        "ours, not compiled / compiled": (EAGER, BANKED),
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
    config = setting.encoder(relative_positions="per-layer")
    model = Classifier(Encoder(config), ClassifierHead(config.width, CLASSES)).to(setting.device)
    batch = drawn_batch(setting, config, classes=CLASSES)
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
    if setting.eager:
        sides = {name: side for name, side in sides.items() if ", compiled" not in name}
        pairs = {name: pair for name, pair in pairs.items() if set(pair) <= set(sides)}
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
        "ratios": ratios,
    }


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
