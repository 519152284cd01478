"""A segmentation decoder of the user's own, made known under a name, as `decoder.kind` has it.

A model's description holds the name alone: whoever loads the model registers the decoder again.
"""

# B images, D width, K classes, (h, w) patch grid

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakSet

from torch import Tensor, nn

from beit.errors import UserError

OURS = ("pup", "upernet")
MakeDecoder = Callable[..., nn.Module]  # (DecoderConfig, EncoderConfig) -> the decoder
_MAKERS: dict[str, MakeDecoder] = {}
_made: WeakSet[nn.Module] = WeakSet()


def register(name: str, make: MakeDecoder) -> None:
    """Make a decoder known, so that `decoder.kind` of a recipe may be its name.

        class Linear(nn.Module):
            def __init__(self, config, encoder):
                super().__init__()
                self.output = nn.Conv2d(encoder.width, config.classes, 1)

            def forward(self, maps):
                return self.output(maps[-1])

        beit.nn.own_decoder.register("linear", Linear)

    A run's recipe and a model's config.json hold the name alone: whatever reads them again (a
    resumption, `beit.load`, a report) has to have registered it too. A name of one's own may be
    given again, to another decoder.

    Args:
        name: Not one of beit's own.
        make: (`DecoderConfig`, `EncoderConfig`) to a new nn.Module, with the first weights that it
            is to have. Its forward takes a list of maps (B, D, h, w), one for each block in
            `config.layers`, and gives logits (B, `config.classes`, any height, any width), which
            are resized bilinearly to the pixels. Every parameter must count for the logits.
            `beit.nn.decoders` has parts that heed `config.norm`. It is called again to save and to
            load, and must then make the same.

    Raises:
        UserError: The name is taken or no text, or what is given is no function or class.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"a decoder is registered under a name, a text, not {name!r}")
    if name in OURS:
        raise UserError(f"the decoder {name!r} is beit's own; register yours under another name")
    if isinstance(make, nn.Module) or not callable(make):
        what = type(make).__name__
        raise UserError(f"the decoder {name!r} needs a function or class that makes it, no {what}")
    _MAKERS[name] = make


def known(name: object) -> bool:
    """Whether there is a decoder of that name."""
    return name in OURS or name in _MAKERS


def require_known(name: str) -> str:
    """The name of a decoder there is.

    Raises:
        UserError: There is none; the sentence lists those there are.
    """
    if not known(name):
        names = ", ".join(repr(one) for one in (*OURS, *_MAKERS))
        raise UserError(
            f"there is no decoder {name!r}: choose one of {names}, or register your own by "
            "beit.nn.own_decoder.register"
        )
    return name


class OwnDecoder(nn.Module):
    """What was registered, as a segmenter asks its decoder.

    Args:
        kind: The name.
        classes: K.
        module: What was made.
    """

    def __init__(self, kind: str, classes: int, module: nn.Module) -> None:
        super().__init__()
        self.kind, self.classes = kind, classes
        self.module = module

    def rescaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Nothing is rescaled before decoding."""
        return list(maps)

    def forward(self, features: Sequence[Tensor], draws: Tensor | None = None) -> Tensor:
        """Decode (B, D, h, w) maps to (B, K, h', w') logits; chance inside is the decoder's affair.

        Raises:
            UserError: What the decoder gives are no logits.
        """
        logits = self.module(list(features))
        wanted = len(features[0]), self.classes
        if not isinstance(logits, Tensor) or logits.dim() != 4 or logits.shape[:2] != wanted:
            found = tuple(getattr(logits, "shape", ())) or type(logits).__name__
            raise UserError(
                f"the decoder {self.kind!r} gives {found} for {wanted[0]} pictures: it must be "
                f"logits of shape ({wanted[0]}, {wanted[1]}, height, width)"
            )
        return logits


def made(kind: str, classes: int, *told: object) -> OwnDecoder:
    """Make a decoder that was registered.

    Raises:
        UserError: There is none of that name, or what is made is no new module.
    """
    module = _MAKERS[require_known(kind)](*told)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"the decoder {kind!r} is registered with what makes a {type(module).__name__}: it "
            "must make a torch.nn.Module"
        )
    if module in _made:
        raise UserError(
            f"the decoder {kind!r} is registered with what gives the same module twice, which two "
            "models would then share: make a new one each time"
        )
    _made.add(module)
    return OwnDecoder(kind, classes, module)
