"""DALL-E's released tokenizer (`encoder.pkl`, `decoder.pkl`) as a discrete VAE of ours."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.errors import UserError
from beit.interop.modules import PickledModule, pickled_class, read_module
from beit.interop.pickles import Name
from beit.interop.translate import few
from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.dvae import DiscreteVAE

ENCODER, DECODER = Name("dall_e.encoder", "Encoder"), Name("dall_e.decoder", "Decoder")
_LAYERS = "torch.nn.modules."
CLASSES = frozenset(  # every class that the two released files name
    {
        *(ENCODER, Name("dall_e.encoder", "EncoderBlock")),
        *(DECODER, Name("dall_e.decoder", "DecoderBlock")),
        Name("dall_e.utils", "Conv2d"),
        Name(_LAYERS + "container", "Sequential"),
        Name(_LAYERS + "activation", "ReLU"),
        Name(_LAYERS + "pooling", "MaxPool2d"),
        Name(_LAYERS + "upsampling", "Upsample"),
        Name(_LAYERS + "linear", "Identity"),
    }
)
GROUPS = 4
_BLOCK = re.compile(r"blocks\.group_(\d)\.block_(\d{1,3})\.")


class Tokenizer(NamedTuple):
    """A tokenizer, and what had to be assumed."""

    model: DiscreteVAE
    notes: tuple[str, ...]


def read_dalle(encoder: str | Path, decoder: str | Path | None = None) -> Tokenizer:
    """Read DALL-E's tokenizer without executing anything in its files.

    Args:
        encoder: `encoder.pkl`.
        decoder: `decoder.pkl`; by default the one beside the encoder, if there is one. Codes do not
            need it. Without it the decoder is zeros, and every reconstruction is plain grey.

    Raises:
        UserError: A file is refused, or is not DALL-E's.
    """
    path = Path(encoder)
    beside = path.with_name("decoder.pkl") if decoder is None else Path(decoder)
    first = _read(path, ENCODER)
    second = _read(beside, DECODER) if decoder is not None or beside.is_file() else None
    config = _config(first, second, path)
    tensors = {
        **_named(first, _encoder_rows(config), path),
        **(_named(second, _decoder_rows(config), beside) if second else {}),
    }
    with torch.device("meta"):
        wanted = DiscreteVAE(config).state_dict()
    notes: tuple[str, ...] = ()
    if second is None:
        sides = ("decoder.", "embedding.")
        tensors |= {n: torch.zeros(v.shape) for n, v in wanted.items() if n.startswith(sides)}
        notes = (f"there is no {beside.name} beside {path}: it gives codes, and decodes to grey",)
    odd = [name for name in wanted if name not in tensors]
    odd += [n for n, v in tensors.items() if n not in wanted or v.shape != wanted[n].shape]
    if odd:
        raise UserError(f"{path} is not DALL-E's tokenizer: {few(odd)} differ")
    model = DiscreteVAE(config)
    model.load_state_dict(tensors, strict=True)
    return Tokenizer(model.eval(), notes)


def is_dalle(path: Path) -> bool:
    """Whether a file is to be read as DALL-E's, whatever it is called: by the class it names.

    What cannot be looked into is told by its name, so that `read_dalle` can say what is wrong.
    """
    if path.is_file():
        with suppress(UserError):
            return pickled_class(path) in (ENCODER, DECODER)
    return path.suffix == ".pkl" and not path.is_dir()


def _read(path: Path, wanted: Name) -> PickledModule:
    module = read_module(path, CLASSES)
    if module.name != wanted:
        raise UserError(f"{path} holds {module.name}, and {wanted} is wanted here")
    return module


def _config(encoder: PickledModule, decoder: PickledModule | None, path: Path) -> DiscreteVAEConfig:
    """DALL-E's family at the sizes that the files have (the released ones are 256 wide)."""
    widths, blocks = _groups(encoder, path)
    output = encoder.tensors.get("blocks.output.conv.w")
    if output is None or output.dim() != 4:
        raise UserError(f"{path} is not DALL-E's encoder: no blocks.output.conv.w")
    config = dalle_config(vocabulary=int(output.shape[0]))
    config = replace(config, encoder_widths=widths, encoder_blocks=blocks)
    if decoder is not None:
        widths, blocks = _groups(decoder, path)
        embedded = decoder.tensors.get("blocks.input.w")
        if embedded is None or embedded.dim() != 4:
            raise UserError(f"{path.name}'s decoder is not DALL-E's: no blocks.input.w")
        config = replace(
            config,
            decoder_widths=widths,
            decoder_blocks=blocks,
            embedding_width=int(embedded.shape[0]),
        )
    for module, gain in ((encoder, config.encoder_gain), (decoder, config.decoder_gain)):
        gains = {v for n, v in (module.numbers if module else {}).items() if "post_gain" in n}
        if any(abs(value - gain) > 1e-12 for value in gains):
            raise UserError(f"{path} scales its residual paths by {gains}, not DALL-E's {gain}")
    return config


def _groups(module: PickledModule, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and blocks of each of the four groups."""
    counts, widths = [0] * GROUPS, [0] * GROUPS
    for name, tensor in module.tensors.items():
        found = _BLOCK.match(name)
        if found and name.endswith("res_path.conv_4.w") and 1 <= int(found[1]) <= GROUPS:
            group = int(found[1]) - 1
            counts[group] += 1
            widths[group] = int(tensor.shape[0])
    if not all(counts) or min(widths) < 4:
        raise UserError(f"{path} is not DALL-E's: it has not four groups of blocks")
    return tuple(widths), tuple(counts)


def _encoder_rows(config: DiscreteVAEConfig) -> dict[str, str]:
    """DALL-E's convolutions and ours: the pooling layers count in our numbering."""
    rows = {"blocks.input": "encoder.0", "blocks.output.conv": "head"}
    return rows | _block_rows("encoder", config.encoder_blocks, first=1)


def _decoder_rows(config: DiscreteVAEConfig) -> dict[str, str]:
    last = sum(config.decoder_blocks) + GROUPS  # three doublings and the last ReLU stand before it
    rows = {"blocks.input": "embedding", "blocks.output.conv": f"decoder.{last}"}
    return rows | _block_rows("decoder", config.decoder_blocks, first=0)


def _block_rows(side: str, blocks: tuple[int, ...], first: int) -> dict[str, str]:
    rows: dict[str, str] = {}
    place = first
    for group, count in enumerate(blocks, start=1):
        place += group > 1  # a pooling or a doubling layer between two groups
        for block in range(1, count + 1):
            theirs, ours = f"blocks.group_{group}.block_{block}", f"{side}.{place}"
            rows[f"{theirs}.id_path"] = f"{ours}.identity"
            rows |= {f"{theirs}.res_path.conv_{n}": f"{ours}.path.{n - 1}" for n in range(1, 5)}
            place += 1
    return rows


def _named(module: PickledModule, rows: dict[str, str], path: Path) -> dict[str, Tensor]:
    """Translate names; `w` and `b` are weight and bias."""
    ends = {"w": "weight", "b": "bias"}
    named: dict[str, Tensor] = {}
    for name, tensor in module.tensors.items():
        convolution, _, end = name.rpartition(".")
        if convolution not in rows or end not in ends:
            raise UserError(f"{path} is not DALL-E's tokenizer: unexpected {name}")
        named[f"{rows[convolution]}.{ends[end]}"] = tensor
    return named
