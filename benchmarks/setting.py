"""What comparisons of steps have in common: arguments, shapes, a batch, the names of records."""

import argparse
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from beit.batch import ImageBatch
from beit.commands.assembly.build import Precision, choose_device, choose_precision
from beit.commands.planning.calibration import Shape, random_batch
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from beit.nn.config import EncoderConfig
from beit.nn.fused_attention import is_hopper, why_not_for
from beit.nn.presets import SizeName, encoder_config
from beit.tokenizer.config import dalle_config
from beit.tokenizer.dvae import DiscreteVAE
from harness import RESULTS

MASKED = 75 / 196  # of the places, in the paper
OUR_KERNELS = "our kernels"
USUAL_SIZE: SizeName = "base"
USUAL_PIXELS = 224
USUAL_BATCH = {"cpu": 8, "cuda": 256}


class Setting(NamedTuple):
    """What is the same for all sides."""

    size: SizeName
    batch: int
    rounds: int
    device: torch.device
    precision: Precision
    pixels: int  # a side of the encoder's view
    eager: bool = False  # leave out what is compiled

    @property
    def attention(self) -> str:
        """Which kernels mix the values of our models, and why where they are not our own."""
        config, types = self.encoder(), {"float32": torch.float32, "bfloat16": torch.bfloat16}
        shape = (1, 1 + config.patches, 3, config.heads, config.width // config.heads)
        why = why_not_for(torch.empty(shape, dtype=types[self.precision], device=self.device))
        return f"not our kernels: {why}" if why else OUR_KERNELS

    @property
    def compiles(self) -> bool:
        """Whether our pre-training is compiled, as a long run is on a GPU."""
        return self.device.type == "cuda" and not self.eager

    @property
    def where(self) -> str:
        """The end of a record's name: the machine, and what is not as usual, one record each.

        A CPU without bfloat16 is another machine.
        """
        kind = self.device.type
        unusual = {
            "float32": kind == "cpu" and self.precision == "float32",
            "eager": self.eager,
            self.size: self.size != USUAL_SIZE,
            f"{self.pixels}px": self.pixels != USUAL_PIXELS,
            str(self.batch): self.batch != USUAL_BATCH[kind],
        }
        return "-".join([kind, *(name for name, differs in unusual.items() if differs)])

    def encoder(self, **changes: Any) -> EncoderConfig:
        """The encoder's shape, of the `plus` preset."""
        return encoder_config(self.size, "plus", (self.pixels,) * 2, (16, 16), **changes)

    def tokenizer(self, grid: tuple[int, int]) -> DiscreteVAE:
        """A tokenizer of the size of DALL-E's, frozen, for one token a patch."""
        vae = DiscreteVAE(dalle_config(dalle_config().view_size(grid))).to(self.device)
        return vae.eval().requires_grad_(False)


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """What `with_settings` asked for, a size each; refused on a Hopper without our kernels."""
    device = choose_device(options.device)
    precision = choose_precision("auto", device)
    batch = options.batch or USUAL_BATCH[device.type]
    rest = (batch, options.rounds, device, precision, options.pixels, options.eager)
    settings = [Setting(size, *rest) for size in options.sizes]
    if not options.any_attention:
        _refuse_other_attention(settings)
    return settings


def _refuse_other_attention(settings: list[Setting]) -> None:
    """End where the card is one that our kernels are made for, and they are not taken."""
    for setting in settings:
        hopper = setting.device.type == "cuda" and is_hopper(setting.device)
        if hopper and setting.attention != OUR_KERNELS:
            raise SystemExit(
                f"the attention of {setting.size} would not be that of a run on such a card "
                f"({setting.attention}); --any-attention times and records it all the same"
            )


def with_settings(description: str) -> argparse.ArgumentParser:
    """The arguments that make `Setting`s."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", nargs="+", default=[USUAL_SIZE], help="a record each")
    parser.add_argument(
        "--pixels", type=int, default=USUAL_PIXELS, help="a side of the encoder's view"
    )
    parser.add_argument("--batch", type=int, help="pictures a step (8 on a CPU, 256 on a GPU)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled")
    parser.add_argument(
        "--any-attention", action="store_true", help="also on a Hopper without our kernels"
    )
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def drawn_batch(
    setting: Setting, config: EncoderConfig, token_view: tuple[int, int] | None = None, **more: Any
) -> ImageBatch:
    """A batch as the loader hands it over: uint8 views, draws, as many masks as in the paper."""
    grid = config.grid
    masks = MaskPlan(grid, count=round(MASKED * grid[0] * grid[1]))
    views = ViewSettings(config.image_size, token_view)
    return random_batch(Shape(views, masks, **more), setting.batch, setting.device)


def fast_reading(setting: Setting) -> Literal["float32", "bfloat16", "float16"]:
    """The precision in which the device reads tokens fastest."""
    return "float16" if setting.device.type == "cuda" else setting.precision
