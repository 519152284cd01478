"""From recipe values to objects: the one place where things are put together."""

import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from beit.data.loading.loader import LoaderSettings
from beit.data.views.draws import MaskPlan
from beit.data.views.joint_views import JointViewSettings
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World
from beit.engine.settings import FitSettings
from beit.errors import UserError
from beit.evaluation.dense_inference import DenseSettings
from beit.machine import allowed_cores
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import encoder_config
from beit.recipes.downstream_models import Recipe, SegmentRecipe
from beit.recipes.models import (
    DataRecipe,
    EncoderRecipe,
    EngineRecipe,
    OptimRecipe,
    PretrainRecipe,
    TokenizerModelRecipe,
    TokenizerRecipe,
    ViewRecipe,
)
from beit.tasks.pretrain import Pixels, PretrainTask, VisualTokens
from beit.tasks.tokenize import TokenizeSettings, TokenizeTask
from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS
from beit.tokenizer.protocol import Tokenizer
from beit.tokenizer.reading import Precision as TokenPrecision
from beit.tokenizer.reading import TokenReader

Precision = Literal["float32", "bfloat16"]
MOST_EVALUATIONS = 100  # a run, where the recipe does not say when
LONG_ENOUGH = 2000  # steps for which compiling pays
_INITIALISATION_STREAM = 0x5EED  # keeps the draw of weights apart from the draws of steps


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is no device to train on; use cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here")
    return device


def choose_precision(asked: str, device: torch.device) -> Precision:
    """bfloat16 where the hardware multiplies it faster, float32 elsewhere."""
    if asked == "float32":
        return "float32"
    if asked == "bfloat16":
        return "bfloat16"
    if device.type == "cuda":
        # Older cards emulate bfloat16, more slowly than they multiply float32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if supported() else "float32"


def choose_token_precision(
    asked: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device
) -> TokenPrecision:
    """What the frozen tokenizer computes in: on CUDA float16, as DALL-E's in the reference."""
    if asked != "auto":
        return asked
    return "float16" if device.type == "cuda" else "float32"


def choose_compilation(asked: bool | None, device: torch.device, steps: int) -> bool:
    """Whether to compile the step: where it was found to pay, and can be done, unless it is said.

    On an H200 compiling takes under a minute and makes a step about a quarter shorter; on a CPU it
    gains next to nothing (docs/performance.md).
    """
    if asked is not None:
        return asked
    return device.type == "cuda" and steps >= LONG_ENOUGH and _triton_works_on(device)


def _compilation(engine: EngineRecipe) -> bool | None:
    """What is asked for: not by itself where a run must repeat, as timings choose the kernels."""
    return False if engine.deterministic and engine.compile is None else engine.compile


def _triton_works_on(device: torch.device) -> bool:
    """Whether Triton is there, knows the card, and finds what it builds its launchers with."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return bool(compiler) and headers and torch.cuda.get_device_capability(device) >= (7, 0)


def choose_workers(data: DataRecipe, device: torch.device, ranks: int) -> int:
    """Loader processes a rank: one core stays with the step, at most 16.

    On a CPU the step itself uses every core, so one worker is enough to overlap decoding.

    Args:
        data: What the recipe says.
        device: Where the step runs.
        ranks: Ranks on this host; they share its cores, whatever others there are elsewhere.
    """
    if data.workers is not None:
        return data.workers
    cores = allowed_cores()
    if device.type == "cpu":
        return 1 if cores > 1 else 0
    return max(1, min(16, cores // ranks - 1))


def evaluation_workers(data: DataRecipe, world: World, device: torch.device) -> int:
    """Loader processes of an evaluation: a CPU is busy with computing, a GPU would wait."""
    return choose_workers(data, device, world.local_size) if device.type == "cuda" else 0


def tokenizer_config(recipe: TokenizerModelRecipe) -> DiscreteVAEConfig:
    """The discrete VAE's architecture."""
    explicit = recipe.model_dump(exclude={"preset"}, exclude_none=True)
    presets = {**PRESETS, "dalle": dalle_config()}
    return replace(presets[recipe.preset], **explicit)


def encoder_config_of(recipe: EncoderRecipe) -> EncoderConfig:
    """The Transformer's architecture."""
    same = ("drop_path", "dropout", "checkpointing")
    explicit = {**recipe.explicit, **{name: getattr(recipe, name) for name in same}}
    return encoder_config(
        recipe.size, recipe.preset, recipe.image_size, recipe.patch_size, **explicit
    )


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Have what is drawn inside follow from a run's seed, and the caller's next draw not.

    Weights are drawn on the CPU. `torch.manual_seed` would reset the generators of GPUs as well.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed + _INITIALISATION_STREAM)
        yield


def tokenize_task(recipe: TokenizerRecipe) -> TokenizeTask:
    """A discrete VAE with freshly drawn weights, and what it is trained on."""
    with fresh_weights(recipe.engine.seed):
        model = DiscreteVAE(tokenizer_config(recipe.model))
    return TokenizeTask(model, TokenizeSettings(**recipe.relaxation.model_dump()))


def masked_image_model(recipe: PretrainRecipe, vocabulary: int) -> MaskedImageModel:
    """Encoder and head with freshly drawn weights.

    Args:
        recipe: The recipe.
        vocabulary: Codes of the tokenizer; not used when pixels are the target.
    """
    config = encoder_config_of(recipe.encoder)
    with fresh_weights(recipe.engine.seed):
        encoder = Encoder(config)
        if recipe.objective.target == "pixels":
            return MaskedImageModel(encoder, MaskedPixelHead(config.width, config.patch_values))
        return MaskedImageModel(encoder, MaskedTokenHead(config.width, vocabulary))


def pretrain_task(recipe: PretrainRecipe, tokenizer: Tokenizer | None) -> PretrainTask:
    """The model of a recipe and its target; the tokenizer is frozen and may be shared."""
    if recipe.objective.target == "pixels":
        target: Pixels | VisualTokens = Pixels(recipe.encoder.patch_size)
        return PretrainTask(masked_image_model(recipe, 0), target)
    assert tokenizer is not None, "visual tokens need a tokenizer"
    model = masked_image_model(recipe, tokenizer.vocabulary)
    if not isinstance(tokenizer, DiscreteVAE):
        return PretrainTask(model, VisualTokens(tokenizer))
    tokens = VisualTokens(token_reader(recipe, tokenizer), listed_only=recipe.tokens.listed_only)
    return PretrainTask(model, tokens)


def token_reader(
    recipe: PretrainRecipe, tokenizer: DiscreteVAE, *, once: bool = False
) -> TokenReader:
    """The frozen tokenizer, on its device, as the recipe wants it asked.

    Compiled or not whatever the length of the run: a bank is made without knowing it. To ask it
    `once` it is not: that would take longer, and compile the run's reader for any size of batch.
    """
    device = tokenizer.head.weight.device
    compiled = not once and choose_compilation(_compilation(recipe.engine), device, LONG_ENOUGH)
    precision = choose_token_precision(recipe.tokens.precision, device)
    return TokenReader(tokenizer, precision, compiled=compiled)


def mask_plan(recipe: PretrainRecipe) -> MaskPlan:
    """What is drawn for each sample's mask, and which places the loss reads."""
    masking = recipe.masking
    return MaskPlan(
        grid=encoder_config_of(recipe.encoder).grid,
        name=masking.kind,
        ratio=masking.ratio,
        count=masking.count,
        minimum_block=masking.minimum_block,
        exact=masking.exact,
        recover=recipe.objective.places,
    )


def view_settings(
    recipe: ViewRecipe,
    *,
    patch_view: tuple[int, int] | None = None,
    token_view: tuple[int, int] | None = None,
    random: bool = True,
) -> ViewSettings:
    """How pictures become views; without `random` they are centre crops."""
    return ViewSettings(
        patch_view=patch_view, token_view=token_view, random=random, **recipe.model_dump()
    )


def joint_view_settings(recipe: SegmentRecipe) -> JointViewSettings:
    """How a picture and its mask become a view."""
    return JointViewSettings(size=recipe.encoder.image_size, **recipe.views.model_dump())


def dense_settings(recipe: SegmentRecipe) -> DenseSettings:
    """How whole pictures are segmented."""
    return DenseSettings(
        size=recipe.encoder.image_size,
        short_side=recipe.views.short_side,
        **recipe.inference.model_dump(),
    )


def loader_settings(recipe: Recipe, world: World, device: torch.device) -> LoaderSettings:
    """How batches are cut up over ranks and micro-batches, and fetched."""
    return LoaderSettings(
        batch_size=recipe.optim.batch,
        seed=recipe.engine.seed,
        ranks=world.size,
        rank=world.rank,
        accumulation=recipe.optim.accumulate,
        workers=choose_workers(recipe.data, device, world.local_size),
        timeout=recipe.data.timeout,
        pin_memory=device.type == "cuda",
        views=recipe.tokens.views if isinstance(recipe, PretrainRecipe) else None,
    )


def fit_settings(
    optim: OptimRecipe, engine: EngineRecipe, pictures: int, device: torch.device
) -> FitSettings:
    """The engine's numbers for a run over so many pictures."""
    total = optim.total_steps(pictures)
    seldom = max(1, round(pictures / optim.batch), math.ceil(total / MOST_EVALUATIONS))
    return FitSettings(
        total_steps=total,
        global_batch=optim.batch,
        accumulate=optim.accumulate,
        seed=engine.seed,
        learning_rate=optim.scaled_lr,
        minimum_rate=optim.scaled_min_lr,
        warmup_steps=optim.warmup(pictures),
        schedule=optim.schedule,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        deterministic=engine.deterministic,
        clip=optim.clip,
        ema=optim.ema,
        precision=choose_precision(engine.precision, device),
        compile=choose_compilation(_compilation(engine), device, total),
        device=str(device),
        log_every=engine.log_every,
        save_every=engine.save_every,
        keep=engine.keep,
        evaluate_every=min(total, engine.evaluate_every or seldom),
        epoch_size=pictures,
    )
