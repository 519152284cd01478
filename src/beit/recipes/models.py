"""What a recipe says: frozen pydantic models, unknown keys refused.

All recipes have the same fields, so what is proven small is run large by naming another one. A
field's description is its documentation: `beit recipes show NAME` prints it.
"""

import math
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from beit.errors import UserError
from beit.masking import NO_MASK, masker_named
from beit.nn.config import DEEPEST, LARGEST_SIDE, LARGEST_WIDTH
from beit.tokenizer.config import LARGEST_KERNEL, LARGEST_VOCABULARY

# Bounds that nothing sensible comes near: what lies beyond is a slip of the hand, and would end in
# a fault somewhere below, or never end.
MOST = 10**9  # steps, passes, patches
LARGEST_BATCH = 10**6
MOST_WORKERS = 256
LONGEST_WAIT = 10**6  # seconds, 11 days
MOST_CHECKPOINTS = 10**6
LARGEST_FACTOR = 1e4  # rates and weights of losses
COLDEST = 1e-3  # of a softmax
MOST_STRETCHED = 1e3  # width / height of a crop, or the inverse
Length = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]
_PAIR = re.compile(r"\s*(\d{1,9})\s*[x×,]\s*(\d{1,9})\s*")


def _pair(value: Any) -> Any:
    """Both sides of a square by one number, or sides as people write them: 32x48, 32,48."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, str) and (match := _PAIR.fullmatch(value)):
        return int(match[1]), int(match[2])
    if value is not None and not (isinstance(value, (list, tuple)) and len(value) == 2):
        raise ValueError("give one number for a square, or two: 224, 224x320 or '[224, 320]'")
    return value


Size = Annotated[tuple[Length, Length], BeforeValidator(_pair)]  # (height, width)
Decay = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    """A value: it does not change, and it holds nothing it was not asked to hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse true and false where no switch is: pydantic takes them for 1 and 0."""
        kind = cls.model_fields[str(field.field_name)].annotation
        found = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(one, bool) for one in found) and bool not in (kind, *get_args(kind)):
            raise ValueError("only a switch is true or false")
        return value


class ViewRecipe(Frozen):
    """How a picture becomes a view (facts of the reference: colour, crop, flip)."""

    scale: tuple[float, float] = Field((0.08, 1.0), description="crop area, share of the picture")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="crop aspect ratio, log-uniform")
    jitter: float = Field(0.4, ge=0, le=1, description="brightness, contrast, saturation strength")
    flip: bool = Field(True, description="mirror half of the views left to right")

    @model_validator(mode="after")
    def _ordered(self) -> "ViewRecipe":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be two shares of the area, low and high, within (0, 1]")
        if not 1 / MOST_STRETCHED <= self.ratio[0] <= self.ratio[1] <= MOST_STRETCHED:
            raise ValueError(
                "ratio must be two aspect ratios, low and high, within "
                f"[{1 / MOST_STRETCHED:g}, {MOST_STRETCHED:g}]"
            )
        return self


class DataRecipe(Frozen):
    """How pictures are read."""

    workers: int | None = Field(
        None,
        ge=0,
        le=MOST_WORKERS,
        description="loader processes; null picks by cores; changes nothing but speed",
    )
    bad_share: float = Field(
        0.01, ge=0, le=1, description="stop when more than this share of the pictures is unreadable"
    )
    timeout: float = Field(
        120.0, ge=0, le=LONGEST_WAIT, description="seconds to wait for a loader; 0 waits forever"
    )


class OptimRecipe(Frozen):
    """AdamW with linear warm-up and a cosine, per step."""

    lr: float = Field(
        1.5e-3, gt=0, le=LARGEST_FACTOR, description="peak rate at a batch of base_batch"
    )
    base_batch: int = Field(
        2048,
        gt=0,
        le=LARGEST_BATCH,
        description="the batch that lr is meant for; the rate scales linearly",
    )
    batch: int = Field(
        2048, gt=0, le=LARGEST_BATCH, description="pictures in a step, over all ranks"
    )
    accumulate: int = Field(
        1, gt=0, le=LARGEST_BATCH, description="micro-batches that share a step"
    )
    steps: int | None = Field(None, gt=0, le=MOST, description="length in steps; wins over epochs")
    epochs: float | None = Field(800.0, gt=0, le=MOST, description="length in passes over the data")
    warmup_steps: int | None = Field(
        None, ge=0, le=MOST, description="warm-up in steps; wins over epochs"
    )
    warmup_epochs: float = Field(10.0, ge=0, le=MOST, description="warm-up in passes over the data")
    min_lr: float = Field(
        1e-5, ge=0, le=LARGEST_FACTOR, description="rate at the end, scaled like lr"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="how the rate falls; constant: it stays, and min_lr is not read",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=LARGEST_FACTOR, description="not on biases, 1-D, positions, [S]"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's averages")
    eps: float = Field(1e-8, gt=0, le=LARGEST_FACTOR, description="AdamW's epsilon")
    clip: float | None = Field(3.0, gt=0, le=MOST, description="gradient norm; null for none")
    ema: float | None = Field(None, gt=0, lt=1, description="average of weights; null for none")

    @property
    def scaled_lr(self) -> float:
        """The peak rate at this batch."""
        return self.lr * self.batch / self.base_batch

    @property
    def scaled_min_lr(self) -> float:
        """The last rate at this batch."""
        return self.min_lr * self.batch / self.base_batch

    def total_steps(self, pictures: int) -> int:
        """The length of the run on this many pictures."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise UserError("the recipe has no length; set --optim.steps or --optim.epochs")
        return max(1, math.ceil(self.epochs * pictures / self.batch))

    def warmup(self, pictures: int) -> int:
        """The steps of warm-up; never more than the run has."""
        if self.warmup_steps is not None:
            steps = self.warmup_steps
        else:
            steps = round(self.warmup_epochs * pictures / self.batch)
        return min(steps, self.total_steps(pictures))


class EngineRecipe(Frozen):
    """How the machine is used and how often something is written."""

    seed: int = Field(
        0, ge=0, lt=2**62, description="the key of every draw (the tokenizer has its own)"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast; auto is bfloat16 where the hardware has it"
    )
    compile: bool | None = Field(
        None,
        description="torch.compile the step; null: on a GPU, where the run has 2,000 steps or more",
    )
    deterministic: bool = Field(
        False, description="the same bits on every run of a GPU, too, at some cost"
    )
    log_every: int = Field(10, gt=0, le=MOST, description="steps between two looks at the device")
    save_every: int = Field(500, gt=0, le=MOST, description="steps between two checkpoints")
    keep: int = Field(2, ge=2, le=MOST_CHECKPOINTS, description="checkpoints that stay")
    evaluate_every: int | None = Field(
        None,
        gt=0,
        le=MOST,
        description="steps between two evaluations; null: once an epoch, 100 times at most",
    )


class TokenizerModelRecipe(Frozen):
    """The discrete VAE; a preset and what differs from it (null: as the preset has it)."""

    preset: Literal["digits", "tiny", "small", "base", "large", "dalle"] = Field(
        "tiny", description="architecture to start from"
    )
    image_size: Size | None = Field(None, description="training view, pixels (height, width)")
    vocabulary: int | None = Field(
        None, gt=1, le=LARGEST_VOCABULARY, description="number of visual tokens"
    )
    head: Literal["linear", "cosine"] | None = Field(None, description="how logits are made")
    code_width: int | None = Field(
        None, gt=0, le=LARGEST_WIDTH, description="dimensions of the cosine head"
    )
    cosine_scale: float | None = Field(
        None, gt=0, le=LARGEST_FACTOR, description="bound of the cosine head's logits"
    )
    decoder_input: Literal["shared", "separate"] | None = Field(
        None, description="whether the decoder reads the cosine head's codes or its own"
    )
    output_kernel: int | None = Field(
        None, gt=0, le=LARGEST_KERNEL, description="kernel of the last convolution, an odd number"
    )
    likelihood: Literal["logit-laplace", "gaussian"] | None = Field(
        None, description="p(x|z): what a reconstruction is scored with"
    )

    @model_validator(mode="after")
    def _odd(self) -> "TokenizerModelRecipe":
        if self.output_kernel is not None and not self.output_kernel % 2:
            raise ValueError(
                f"output_kernel {self.output_kernel} is even, and would change the picture's size; "
                "choose an odd number"
            )
        return self


class RelaxationRecipe(Frozen):
    """The relaxed bound and its schedules; shares are parts of the whole run."""

    kl_weight: float = Field(
        1.0, ge=0, le=LARGEST_FACTOR, description="weight on KL(q(z|x) || uniform); 1: the bound"
    )
    kl_warmup: float = Field(0.02, ge=0, le=1, description="share over which it rises from 0")
    marginal_weight: float = Field(
        0.3,
        ge=0,
        le=LARGEST_FACTOR,
        description="extra weight on KL(mean posterior || uniform); not in the bound",
    )
    temperature: float = Field(
        1.0, ge=COLDEST, le=LARGEST_FACTOR, description="of the Gumbel-softmax, at first"
    )
    final_temperature: float = Field(
        1 / 16, ge=COLDEST, le=LARGEST_FACTOR, description="at the end of the run"
    )
    temperature_hold: float = Field(0.1, ge=0, le=1, description="share at the first temperature")
    straight_through: float = Field(
        0.0, ge=0, le=1, description="last share of the run with one-hot codes in the decoder"
    )


class TokenizerRecipe(Frozen):
    """Stage 1: train a discrete VAE (paper, section 2.1)."""

    name: str = Field(description="the recipe's name")
    model: TokenizerModelRecipe
    relaxation: RelaxationRecipe = RelaxationRecipe()
    views: ViewRecipe = ViewRecipe()
    data: DataRecipe = DataRecipe()
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()


class EncoderRecipe(Frozen):
    """The Transformer; a size, a preset, and what differs from them (null: as they have it)."""

    size: Literal["digits", "tiny", "small", "base", "large"] = Field(
        description="width, depth and heads"
    )
    preset: Literal["paper", "plus"] = Field(
        "paper", description="paper: absolute positions; plus: relative bias and LayerScale"
    )
    image_size: Size = Field((224, 224), description="pixels (height, width)")
    patch_size: Size = Field((16, 16), description="pixels (height, width)")
    width: int | None = Field(None, gt=0, le=LARGEST_WIDTH, description="token width")
    depth: int | None = Field(None, gt=0, le=DEEPEST, description="number of layers")
    heads: int | None = Field(None, gt=0, le=LARGEST_WIDTH, description="attention heads a layer")
    absolute_positions: bool | None = Field(None, description="learned absolute positions")
    relative_positions: Literal["none", "shared", "per-layer"] | None = Field(
        None, description="learned relative position bias"
    )
    layer_scale: float | None = Field(
        None, ge=0, le=LARGEST_FACTOR, description="initial LayerScale; 0 for none"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth at the last layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after the second MLP layer")
    checkpointing: bool = Field(False, description="recompute activations to save memory")

    @property
    def explicit(self) -> dict[str, Any]:
        """The fields that are set here rather than by size or preset."""
        names = ("width", "depth", "heads", "absolute_positions", "relative_positions")
        fields = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.layer_scale is not None:
            fields["layer_scale"] = self.layer_scale or None
        return fields


class MaskingRecipe(Frozen):
    """Which patches are hidden (paper, algorithm 1; reference variant by default)."""

    kind: str = Field(
        "blockwise",
        description="blockwise (the reference's), blockwise-paper, random, none, which hides "
        "nothing, or one that was registered",
    )
    ratio: float = Field(0.4, gt=0, lt=1, description="share of the patches to mask")
    count: int | None = Field(
        None, gt=0, le=MOST, description="patches to mask at most; wins over ratio"
    )
    minimum_block: int = Field(16, gt=0, le=MOST, description="smallest block, patches")
    exact: bool = Field(False, description="always mask exactly the target count")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind != NO_MASK:
            masker_named(kind)
        return kind


class ObjectiveRecipe(Frozen):
    """What is predicted, and where (the paper's ablations, table 4)."""

    target: Literal["tokens", "pixels"] = Field("tokens", description="visual tokens or raw pixels")
    places: Literal["masked", "all"] = Field("masked", description="masked places, or every place")


class TokenizerUseRecipe(Frozen):
    """How the frozen tokenizer is asked for codes; on a CPU the defaults are exact."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of its convolutions; the halves are cheaper and change some codes; auto is "
        "float16 on CUDA and float32, which is exact, elsewhere",
    )
    listed_only: bool = Field(
        False, description="output layer and choice of the code only where the loss reads them"
    )
    views: int | None = Field(
        None,
        gt=0,
        le=MOST,
        description="views of each picture, used again in turn; null: new each epoch",
    )


class PretrainRecipe(Frozen):
    """Stage 2: masked image modelling (paper, sections 2.2 to 2.4)."""

    name: str = Field(description="the recipe's name")
    encoder: EncoderRecipe
    masking: MaskingRecipe = MaskingRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    views: ViewRecipe = ViewRecipe()
    data: DataRecipe = DataRecipe()
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()
    tokens: TokenizerUseRecipe = TokenizerUseRecipe()
    tokenizer: TokenizerRecipe

    @model_validator(mode="after")
    def _possible(self) -> "PretrainRecipe":
        for side, patch, name in zip(
            self.encoder.image_size, self.encoder.patch_size, ("height", "width"), strict=True
        ):
            if side % patch:
                raise ValueError(
                    f"encoder.image_size: the {name} {side} is not a multiple of the patch {patch}"
                )
        if self.masking.kind == NO_MASK and self.objective.places == "masked":
            raise ValueError(
                "masking.kind none leaves no masked place to predict; set objective.places all"
            )
        return self
