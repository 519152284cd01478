"""The named recipes: each a function that returns a frozen value; variants edit another one.

Departure: the paper has base and large only; digits, tiny and small are ours. All mask as the
reference does (75 of 196 patches at most) and not by the paper's algorithm 1, and all train a
tokenizer of their own; the paper takes DALL-E's (`--tokenizer encoder.pkl`).
"""

import difflib
from collections.abc import Callable

from beit.errors import UserError
from beit.recipes.models import (
    DataRecipe,
    EncoderRecipe,
    EngineRecipe,
    MaskingRecipe,
    OptimRecipe,
    PretrainRecipe,
    TokenizerModelRecipe,
    TokenizerRecipe,
    ViewRecipe,
)
from beit.recipes.overrides import replace

TOKENIZER_VIEWS = ViewRecipe(scale=(0.35, 1.0), jitter=0.0)
NO_WORKERS = DataRecipe(workers=0)  # such small pictures: a second process is only in the way


def tokenizer_optim(steps: int, batch: int = 64) -> OptimRecipe:
    """What was found to train a small discrete VAE well (docs/tokenizer.md)."""
    return OptimRecipe(
        lr=3e-3,
        base_batch=batch,
        batch=batch,
        steps=steps,
        warmup_steps=steps // 20,
        min_lr=6e-5,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
        clip=1.0,
    )


def digits() -> PretrainRecipe:
    """scikit-learn's 1,797 scans: a few minutes on two CPU cores; what `beit demo` runs."""
    views = ViewRecipe(scale=(0.6, 1.0), jitter=0.0, flip=False)
    tokenizer = TokenizerRecipe(
        name="digits",
        model=TokenizerModelRecipe(preset="digits"),
        views=views,
        data=NO_WORKERS,
        optim=tokenizer_optim(steps=600, batch=128),
        engine=EngineRecipe(precision="float32", save_every=200, evaluate_every=200),
    )
    return PretrainRecipe(
        name="digits",
        encoder=EncoderRecipe(
            size="digits", preset="paper", image_size=(16, 16), patch_size=(4, 4), drop_path=0.0
        ),
        masking=MaskingRecipe(minimum_block=2),
        views=views,
        data=NO_WORKERS,
        optim=OptimRecipe(
            lr=2e-3, base_batch=64, batch=64, steps=3000, warmup_steps=100, min_lr=1e-5
        ),
        engine=EngineRecipe(precision="float32", save_every=500, evaluate_every=250),
        tokenizer=tokenizer,
    )


def tiny() -> PretrainRecipe:
    """64 px, 8 px patches, 2.8 M parameters: about an hour on two CPU cores."""
    views = ViewRecipe(scale=(0.2, 1.0))
    tokenizer = TokenizerRecipe(
        name="tiny",
        model=TokenizerModelRecipe(preset="tiny"),
        views=TOKENIZER_VIEWS,
        optim=tokenizer_optim(steps=1600),
        engine=EngineRecipe(save_every=200),
    )
    return PretrainRecipe(
        name="tiny",
        encoder=EncoderRecipe(
            size="tiny", preset="plus", image_size=(64, 64), patch_size=(8, 8), drop_path=0.0
        ),
        masking=MaskingRecipe(minimum_block=6),
        views=views,
        # Twice the rate and half the batch of what this began with: at equal work it saves a third
        # more bits a patch (docs/results.md).
        optim=OptimRecipe(
            lr=2e-3, base_batch=64, batch=64, steps=5000, warmup_steps=300, min_lr=1e-5
        ),
        engine=EngineRecipe(save_every=500),
        tokenizer=tokenizer,
    )


def small() -> PretrainRecipe:
    """112 px, 8 px patches, the paper's 14 x 14 grid, 22 M parameters: meant for one GPU."""
    tokenizer = TokenizerRecipe(
        name="small",
        model=TokenizerModelRecipe(preset="small"),
        views=TOKENIZER_VIEWS,
        optim=tokenizer_optim(steps=3000),
        engine=EngineRecipe(save_every=500),
    )
    return PretrainRecipe(
        name="small",
        encoder=EncoderRecipe(
            size="small", preset="plus", image_size=(112, 112), patch_size=(8, 8)
        ),
        masking=MaskingRecipe(count=75),
        views=ViewRecipe(scale=(0.2, 1.0)),
        # 89.7 % top-1 after fine-tuning on 7,000 photos, one seed (docs/results.md).
        optim=OptimRecipe(
            lr=1.5e-3, base_batch=256, batch=256, epochs=300, warmup_epochs=15, min_lr=1e-5
        ),
        tokenizer=tokenizer,
    )


def base() -> PretrainRecipe:
    """The paper's BEiT-B: 224 px, 800 epochs of ImageNet-1k (appendix D, "paper" preset)."""
    tokenizer = TokenizerRecipe(
        name="base",
        model=TokenizerModelRecipe(preset="base"),
        views=ViewRecipe(scale=(0.2, 1.0), jitter=0.0),
        optim=OptimRecipe(
            lr=1e-3, base_batch=256, batch=256, epochs=20, warmup_steps=1000, min_lr=1e-5, clip=1.0
        ),
        engine=EngineRecipe(save_every=1000),
    )
    return PretrainRecipe(
        name="base",
        encoder=EncoderRecipe(size="base", preset="paper"),
        masking=MaskingRecipe(count=75),
        optim=OptimRecipe(lr=1.5e-3, base_batch=2048, batch=2048, epochs=800, warmup_epochs=10),
        engine=EngineRecipe(log_every=20, save_every=1000),
        tokenizer=tokenizer,
    )


def large() -> PretrainRecipe:
    """The paper's BEiT-L: as base, with gradients clipped at 1."""
    changes = {"name": "large", "encoder.size": "large", "optim.clip": 1.0}
    return replace(base(), changes)


def base_plus() -> PretrainRecipe:
    """The reference's default model, BEiT+: shared relative position bias and LayerScale."""
    return replace(base(), {"name": "base-plus", "encoder.preset": "plus"})


def large_plus() -> PretrainRecipe:
    """BEiT+ at the large size."""
    return replace(large(), {"name": "large-plus", "encoder.preset": "plus"})


_IMAGENET_22K = {"optim.epochs": 150, "optim.warmup_steps": 10_000}


def base_plus_22k() -> PretrainRecipe:
    """BEiT+ base on ImageNet-22k: 150 epochs, 10,000 steps of warm-up (the reference)."""
    return replace(base_plus(), {"name": "base-plus-22k", **_IMAGENET_22K})


def large_plus_22k() -> PretrainRecipe:
    """BEiT+ large on ImageNet-22k: 150 epochs, 10,000 steps of warm-up (the reference)."""
    return replace(large_plus(), {"name": "large-plus-22k", **_IMAGENET_22K})


RECIPES: dict[str, Callable[[], PretrainRecipe]] = {
    "digits": digits,
    "tiny": tiny,
    "small": small,
    "base": base,
    "large": large,
    "base-plus": base_plus,
    "large-plus": large_plus,
    "base-plus-22k": base_plus_22k,
    "large-plus-22k": large_plus_22k,
}


def pretrain_recipe(name: str) -> PretrainRecipe:
    """The named recipe for pre-training; its `tokenizer` field is the recipe of stage 1."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
        raise UserError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]()


def tokenizer_recipe(name: str) -> TokenizerRecipe:
    """The named recipe for the tokenizer alone."""
    return pretrain_recipe(name).tokenizer
