"""The named recipes of fine-tuning: the paper's, the reference's, and their small kin.

Rates are those of the paper's appendix and the reference's commands, each at its own batch.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from beit.errors import UserError
from beit.recipes.downstream_models import (
    ClassifyRecipe,
    ClassifyViewRecipe,
    DecoderRecipe,
    JointViewRecipe,
    LabelledDataRecipe,
    MaskedDataRecipe,
    MixingRecipe,
    Recipe,
    SegmentRecipe,
    TuningRecipe,
)
from beit.recipes.models import EncoderRecipe, EngineRecipe, OptimRecipe
from beit.recipes.overrides import replace

Named = TypeVar("Named", bound=Recipe)
NO_MIXING = MixingRecipe(mixup=0.0, cutmix=0.0)


def classify_digits() -> ClassifyRecipe:
    """scikit-learn's 1,797 scans: seconds on a CPU."""
    return ClassifyRecipe(
        name="digits",
        encoder=EncoderRecipe(
            size="digits", preset="paper", image_size=(16, 16), patch_size=(4, 4), drop_path=0.0
        ),
        tuning=TuningRecipe(layer_decay=1.0),
        mixing=NO_MIXING,
        views=ClassifyViewRecipe(
            scale=(0.8, 1.0), flip=False, auto_augment=None, erasing=0.0, centre_share=1.0
        ),
        data=LabelledDataRecipe(workers=0),
        optim=OptimRecipe(
            lr=3e-3, base_batch=32, batch=32, steps=300, warmup_steps=30, min_lr=1e-6
        ),
        engine=EngineRecipe(precision="float32", save_every=100, evaluate_every=100),
    )


def classify_tiny() -> ClassifyRecipe:
    """64 px, 8 px patches, 2.8 M parameters: minutes on two CPU cores."""
    return ClassifyRecipe(
        name="tiny",
        encoder=EncoderRecipe(
            size="tiny", preset="plus", image_size=(64, 64), patch_size=(8, 8), drop_path=0.05
        ),
        tuning=TuningRecipe(layer_decay=0.75),
        mixing=NO_MIXING,
        views=ClassifyViewRecipe(
            scale=(0.35, 1.0), jitter=0.3, auto_augment=None, erasing=0.0, centre_share=1.0
        ),
        optim=OptimRecipe(
            lr=2e-3, base_batch=64, batch=64, steps=800, warmup_steps=80, min_lr=1e-6, clip=3.0
        ),
        engine=EngineRecipe(save_every=200, evaluate_every=200),
    )


def classify_small() -> ClassifyRecipe:
    """112 px, 8 px patches, 22 M parameters: meant for one GPU."""
    return ClassifyRecipe(
        name="small",
        encoder=EncoderRecipe(
            size="small", preset="plus", image_size=(112, 112), patch_size=(8, 8)
        ),
        tuning=TuningRecipe(layer_decay=0.75),
        optim=OptimRecipe(
            lr=2e-3,
            base_batch=256,
            batch=256,
            epochs=120,
            warmup_epochs=6,
            min_lr=1e-6,
            clip=None,
            ema=0.999,
        ),
        engine=EngineRecipe(evaluate_every=None),
    )


def classify_base() -> ClassifyRecipe:
    """ImageNet-1k, BEiT-B: 100 epochs from a pre-trained model."""
    return ClassifyRecipe(
        name="base",
        encoder=EncoderRecipe(size="base", preset="paper"),
        optim=OptimRecipe(
            lr=4e-3,
            base_batch=1024,
            batch=1024,
            epochs=100,
            warmup_epochs=20,
            min_lr=1e-6,
            clip=None,
        ),
    )


def classify_large() -> ClassifyRecipe:
    """ImageNet-1k, BEiT-L: 50 epochs from a pre-trained model."""
    return replace(
        classify_base(),
        {
            "name": "large",
            "encoder.size": "large",
            "encoder.drop_path": 0.2,
            "tuning.layer_decay": 0.75,
            "optim.lr": 1e-3,
            "optim.epochs": 50,
            "optim.warmup_epochs": 5,
        },
    )


def _without_mixing(recipe: ClassifyRecipe, changes: Mapping[str, object]) -> ClassifyRecipe:
    return replace(recipe, {"mixing.mixup": 0.0, "mixing.cutmix": 0.0, **changes})


def classify_base_after_intermediate() -> ClassifyRecipe:
    """ImageNet-1k, BEiT-B after intermediate fine-tuning: 30 gentle epochs without mixing."""
    return _without_mixing(
        classify_base(),
        {
            "name": "base-after-intermediate",
            "tuning.layer_decay": 0.85,
            "optim.lr": 2e-5,
            "optim.base_batch": 512,
            "optim.batch": 512,
            "optim.epochs": 30,
            "optim.warmup_epochs": 5,
            "optim.weight_decay": 1e-8,
        },
    )


def classify_large_after_intermediate() -> ClassifyRecipe:
    """ImageNet-1k, BEiT-L after intermediate fine-tuning."""
    return replace(
        classify_base_after_intermediate(),
        {
            "name": "large-after-intermediate",
            "encoder.size": "large",
            "encoder.drop_path": 0.4,
            "tuning.layer_decay": 0.9,
        },
    )


def classify_base_intermediate() -> ClassifyRecipe:
    """ImageNet-22k, BEiT-B: the intermediate fine-tuning itself, 90 epochs."""
    return _without_mixing(
        classify_base(),
        {
            "name": "base-intermediate",
            "encoder.drop_path": 0.2,
            "optim.lr": 3e-3,
            "optim.base_batch": 4096,
            "optim.batch": 4096,
            "optim.epochs": 90,
            "optim.warmup_epochs": 5,
            "optim.clip": 3.0,
        },
    )


def classify_large_intermediate() -> ClassifyRecipe:
    """ImageNet-22k, BEiT-L: the intermediate fine-tuning itself, 90 epochs."""
    return replace(
        classify_base_intermediate(),
        {
            "name": "large-intermediate",
            "encoder.size": "large",
            "tuning.layer_decay": 0.75,
            "optim.lr": 2e-3,
            "optim.base_batch": 2048,
            "optim.batch": 2048,
            "optim.clip": 1.0,
        },
    )


def classify_higher_resolution() -> ClassifyRecipe:
    """384 px, BEiT-B from a classifier trained at 224 px: ten more epochs (section 3.1)."""
    return replace(
        classify_base(),
        {
            "name": "base-384",
            "encoder.image_size": (384, 384),
            "optim.lr": 2e-5,
            "optim.base_batch": 512,
            "optim.batch": 512,
            "optim.epochs": 10,
            "optim.warmup_epochs": 1,
            "optim.weight_decay": 1e-8,
            "tuning.layer_decay": 0.85,
            "mixing.mixup": 0.0,
            "mixing.cutmix": 0.0,
            "views.centre_share": 1.0,
        },
    )


def classify_cifar100() -> ClassifyRecipe:
    """CIFAR-100, BEiT-B: 150 epochs, strong weight decay, no erasing."""
    return replace(
        classify_base(),
        {
            "name": "cifar100",
            "views.erasing": 0.0,
            "optim.lr": 3e-3,
            "optim.base_batch": 512,
            "optim.batch": 512,
            "optim.epochs": 150,
            "optim.weight_decay": 0.3,
        },
    )


def segment_digits() -> SegmentRecipe:
    """32 px pictures and a few steps: for tests and for trying a data set's layout."""
    return SegmentRecipe(
        name="digits",
        encoder=EncoderRecipe(
            size="digits", preset="paper", image_size=(32, 32), patch_size=(4, 4), drop_path=0.0
        ),
        decoder=DecoderRecipe(channels=32, dropout=0.0, norm="group"),
        layer_decay=1.0,
        views=JointViewRecipe(short_side=32, scale=(0.8, 1.25), jitter=0.0),
        data=MaskedDataRecipe(workers=0),
        optim=OptimRecipe(
            lr=2e-3, base_batch=8, batch=8, steps=100, warmup_steps=10, min_lr=0, schedule="linear"
        ),
        engine=EngineRecipe(precision="float32", save_every=50, evaluate_every=50),
    )


def segment_tiny() -> SegmentRecipe:
    """96 px crops, 8 px patches, 2.8 M parameters in the encoder: minutes on two CPU cores."""
    return SegmentRecipe(
        name="tiny",
        encoder=EncoderRecipe(
            size="tiny", preset="plus", image_size=(96, 96), patch_size=(8, 8), drop_path=0.05
        ),
        decoder=DecoderRecipe(channels=48),
        layer_decay=0.85,
        views=JointViewRecipe(short_side=112, scale=(0.75, 1.5)),
        optim=OptimRecipe(
            lr=3e-3,
            base_batch=16,
            batch=16,
            steps=1000,
            warmup_steps=50,
            min_lr=0,
            schedule="linear",
        ),
        engine=EngineRecipe(save_every=200, evaluate_every=500),
    )


def segment_small() -> SegmentRecipe:
    """224 px crops, 8 px patches, 22 M parameters in the encoder: meant for one GPU."""
    return replace(
        segment_tiny(),
        {
            "name": "small",
            "encoder.size": "small",
            "encoder.image_size": (224, 224),
            "encoder.drop_path": 0.1,
            "decoder.channels": 192,
            "views.short_side": 360,
            "views.scale": (0.5, 2.0),
            "optim.lr": 1e-3,
            "optim.steps": 8000,
            "optim.warmup_steps": 400,
        },
    )


def segment_base() -> SegmentRecipe:
    """ADE20K, BEiT-B with the paper's decoder: 160,000 steps of 16 at 512 px."""
    return SegmentRecipe(
        name="base",
        encoder=EncoderRecipe(size="base", preset="paper", image_size=(512, 512)),
        decoder=DecoderRecipe(),
        data=MaskedDataRecipe(reduce_zero_label=True),
        optim=OptimRecipe(
            lr=1e-3,
            base_batch=16,
            batch=16,
            steps=160_000,
            warmup_steps=1500,
            min_lr=0,
            clip=None,
            schedule="linear",
        ),
        engine=EngineRecipe(save_every=2000, evaluate_every=16_000),
    )


def segment_base_upernet() -> SegmentRecipe:
    """ADE20K, BEiT-B with UPerNet, as the reference trains it."""
    changes = {
        "name": "base-upernet",
        "encoder.preset": "plus",
        "decoder.kind": "upernet",
        "optim.lr": 7e-4,
    }
    return replace(segment_base(), changes)


def segment_base_upernet_after_intermediate() -> SegmentRecipe:
    """ADE20K at 640 px, BEiT-B with UPerNet after intermediate fine-tuning."""
    changes = {
        "name": "base-upernet-after-intermediate",
        "encoder.image_size": (640, 640),
        "views.short_side": 640,
        "optim.lr": 3e-5,
        "layer_decay": 0.9,
    }
    return replace(segment_base_upernet(), changes)


CLASSIFY: dict[str, Callable[[], ClassifyRecipe]] = {
    "digits": classify_digits,
    "tiny": classify_tiny,
    "small": classify_small,
    "base": classify_base,
    "large": classify_large,
    "base-384": classify_higher_resolution,
    "base-intermediate": classify_base_intermediate,
    "large-intermediate": classify_large_intermediate,
    "base-after-intermediate": classify_base_after_intermediate,
    "large-after-intermediate": classify_large_after_intermediate,
    "cifar100": classify_cifar100,
}

SEGMENT: dict[str, Callable[[], SegmentRecipe]] = {
    "digits": segment_digits,
    "tiny": segment_tiny,
    "small": segment_small,
    "base": segment_base,
    "base-upernet": segment_base_upernet,
    "base-upernet-after-intermediate": segment_base_upernet_after_intermediate,
}


def named(recipes: Mapping[str, Callable[[], Named]], name: str, task: str) -> Named:
    """A recipe by name.

    Raises:
        UserError: There is no such recipe; the nearest right name is told.
    """
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipes)}"
        raise UserError(f"there is no recipe {name!r} for {task}; {hint}")
    return recipes[name]()


def classify_recipe(name: str) -> ClassifyRecipe:
    """The named recipe for classification."""
    return named(CLASSIFY, name, "classify")


def segment_recipe(name: str) -> SegmentRecipe:
    """The named recipe for segmentation."""
    return named(SEGMENT, name, "segment")
