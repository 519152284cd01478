"""What a recipe of fine-tuning says: classification and segmentation (facts of section 3)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from beit.nn.config import DEEPEST, LARGEST_SIDE, LARGEST_WIDTH
from beit.nn.own_decoder import require_known
from beit.recipes.models import (
    LARGEST_FACTOR,
    MOST,
    DataRecipe,
    EncoderRecipe,
    EngineRecipe,
    Frozen,
    OptimRecipe,
    PretrainRecipe,
    TokenizerRecipe,
    ViewRecipe,
)

LARGEST_SCALE = 100.0  # of a random size, times short_side
Scale = Annotated[float, Field(gt=0, le=LARGEST_SCALE)]
Block = Annotated[int, Field(ge=0, lt=DEEPEST)]


class ClassifyViewRecipe(ViewRecipe):
    """How a labelled picture becomes a view."""

    jitter: float = Field(0.0, ge=0, le=1, description="brightness, contrast, saturation strength")
    auto_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="RandAugment, as timm writes it; null for none"
    )
    erasing: float = Field(0.25, ge=0, le=1, description="share of the views with an erased box")
    centre_share: float = Field(
        224 / 256, gt=0, le=1, description="of the sides, that the crop for evaluation keeps"
    )


class LabelledDataRecipe(DataRecipe):
    """How labelled pictures are read."""

    labels: str | int = Field(
        "all", description="labels to learn from: all, 10% of each class, or 50/class"
    )


class TuningRecipe(Frozen):
    """What is put on top, and how rates fall towards the input."""

    pool: Literal["mean", "special"] = Field(
        "mean", description="what is classified: the mean of the patches, or the special token"
    )
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="rates fall by this from layer to layer; 1 for none"
    )
    initial_factor: float = Field(
        0.001, gt=0, le=LARGEST_FACTOR, description="shrinks the classifier's first weights"
    )


class MixingRecipe(Frozen):
    """Mixing pictures and softening labels."""

    mixup: float = Field(0.8, ge=0, le=LARGEST_FACTOR, description="alpha of Mixup; 0 for none")
    cutmix: float = Field(1.0, ge=0, le=LARGEST_FACTOR, description="alpha of CutMix; 0 for none")
    switch: float = Field(0.5, ge=0, le=1, description="how often CutMix, where both are on")
    probability: float = Field(1.0, ge=0, le=1, description="share of the steps that mix")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of a label spread over all classes"
    )


class ClassifyRecipe(Frozen):
    """Fine-tuning for classification (paper, sections 2.6 and 3.1)."""

    name: str = Field(description="the recipe's name")
    encoder: EncoderRecipe
    tuning: TuningRecipe = TuningRecipe()
    mixing: MixingRecipe = MixingRecipe()
    views: ClassifyViewRecipe = ClassifyViewRecipe()
    data: LabelledDataRecipe = LabelledDataRecipe()
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()
    patience: int | None = Field(
        None, gt=0, le=MOST, description="stop after so many evaluations without a better one"
    )

    @model_validator(mode="after")
    def _even(self) -> "ClassifyRecipe":
        if (self.mixing.mixup or self.mixing.cutmix) and self.optim.batch % 2:
            raise ValueError(
                f"optim.batch {self.optim.batch} is odd, but pictures are mixed in pairs; make it "
                "even or set mixing.mixup and mixing.cutmix to 0"
            )
        return self


class JointViewRecipe(Frozen):
    """How a picture and its mask become a view."""

    short_side: int = Field(
        512, gt=1, le=LARGEST_SIDE, description="pixels that pictures are brought to first"
    )
    scale: tuple[float, float] = Field((0.5, 2.0), description="random size, times short_side")
    flip: bool = Field(True, description="mirror half of the views left to right")
    jitter: float = Field(0.4, ge=0, le=1, description="brightness, contrast, saturation strength")
    most_of_one_class: float = Field(
        0.75, gt=0, le=1, description="crops with more of one class are drawn again, ten times"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "JointViewRecipe":
        if not 0 < self.scale[0] <= self.scale[1] <= LARGEST_SCALE:
            raise ValueError(
                f"scale must be two factors, low and high, within (0, {LARGEST_SCALE:g}]"
            )
        return self


class DecoderRecipe(Frozen):
    """What turns tokens into a mask; null takes the sources' choice for the encoder."""

    kind: str = Field(
        "pup",
        description="pup: progressive upsampling (the paper's); upernet: the reference's; or one "
        "that was registered",
    )
    channels: int | None = Field(
        None, gt=0, le=LARGEST_WIDTH, description="features of its convolutions"
    )
    layers: tuple[Block, ...] | None = Field(None, description="blocks that are read, from 0")
    auxiliary: bool | None = Field(None, description="a second, shallow head in training")
    auxiliary_weight: float = Field(0.4, ge=0, le=LARGEST_FACTOR, description="of that head's loss")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the last channels dropped")
    norm: Literal["batch", "group"] = Field(
        "batch", description="batch as the reference; group where micro-batches are small"
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return require_known(kind)


class InferenceRecipe(Frozen):
    """How a whole picture is segmented."""

    mode: Literal["whole", "slide"] = Field(
        "slide", description="whole: squeezed to the model's size; slide: windows of it"
    )
    stride_share: float = Field(2 / 3, gt=0, le=1, description="step of the windows, of their size")
    scales: tuple[Scale, ...] = Field((1.0,), description="sizes, times short_side, averaged")
    flip: bool = Field(False, description="average with the mirrored picture")


class MaskedDataRecipe(DataRecipe):
    """How pictures and masks are read."""

    reduce_zero_label: bool = Field(
        False, description="mask value 0 is ignored and the others move down by one (ADE20K)"
    )


class SegmentRecipe(Frozen):
    """Fine-tuning for semantic segmentation (paper, section 3.2)."""

    name: str = Field(description="the recipe's name")
    encoder: EncoderRecipe
    decoder: DecoderRecipe = DecoderRecipe()
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="rates fall by this from layer to layer; 1 for none"
    )
    class_balance: float = Field(
        0.0, ge=0, le=1, description="how much more rare classes count; 1: all classes alike"
    )
    views: JointViewRecipe = JointViewRecipe()
    inference: InferenceRecipe = InferenceRecipe()
    data: MaskedDataRecipe = MaskedDataRecipe()
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()
    patience: int | None = Field(
        None, gt=0, le=MOST, description="stop after so many evaluations without a better one"
    )


Recipe = TokenizerRecipe | PretrainRecipe | ClassifyRecipe | SegmentRecipe
# The first field that a recipe has and those after it have not.
_TOLD_BY: dict[str, type[Recipe]] = {
    "tuning": ClassifyRecipe,
    "decoder": SegmentRecipe,
    "encoder": PretrainRecipe,
    "model": TokenizerRecipe,
}
COMMANDS: dict[type[Recipe], str] = {
    TokenizerRecipe: "beit tokenizer",
    PretrainRecipe: "beit pretrain",
    ClassifyRecipe: "beit classify",
    SegmentRecipe: "beit segment",
}


def kind_of(tree: Mapping[str, Any]) -> type[Recipe]:
    """Whose recipe plain data are, as far as their fields tell."""
    return next((kind for field, kind in _TOLD_BY.items() if field in tree), TokenizerRecipe)
