"""A tokenizer of the user's own, handed over from Python: frozen, and known by its fingerprint.

Any object will do that meets `beit.tokenizer.protocol.Tokenizer`. It is not saved: whoever resumes
the run hands over the same one again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.errors import UserError
from beit.files import atomic_write_text, read_json_object
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE
from beit.weights import add_weights

NOTE = "own.json"  # in the run's folder of the tokenizer, in place of a model
_MEMBERS = ("vocabulary", "image_size", "grid", "codes")


class OwnTokenizer:
    """What was handed over, as `beit.tokenizer.protocol.Tokenizer` has it."""

    def __init__(self, given: Any) -> None:
        """Look at an object; nothing is computed.

        Raises:
            UserError: It is no tokenizer, or nothing tells it from another.
        """
        self.kind = type(given).__name__
        missing = [name for name in _MEMBERS if not hasattr(given, name)]
        if missing:
            raise UserError(
                f"{self.kind} is no tokenizer (it has no {', '.join(missing)}): give the folder of "
                "one, or an object such as beit.tokenizer.protocol.Tokenizer describes"
            )
        self._given = given
        self.vocabulary = int(given.vocabulary)
        self.image_size, self.grid = _pair(given, "image_size"), _pair(given, "grid")
        self.fingerprint = _fingerprint(given)

    def require_grid(self, grid: tuple[int, int]) -> None:
        """See that there is a code for each patch of an encoder.

        Raises:
            UserError: There is not.
        """
        if self.grid != grid:
            (h, w), (rows, columns) = self.grid, grid
            raise UserError(
                f"the tokenizer {self.kind} gives {h} x {w} codes and the encoder has "
                f"{rows} x {columns} patches: change encoder.image_size or encoder.patch_size"
            )

    def on(self, device: torch.device) -> "OwnTokenizer":
        """Bring it to a device, frozen, and try it there.

        Raises:
            UserError: What it gives are no codes.
        """
        if isinstance(self._given, nn.Module):
            self._given.to(device).requires_grad_(False).eval()
        with torch.no_grad():
            found = self._given.codes(torch.full((2, 3, *self.image_size), 0.5, device=device))
        good = isinstance(found, Tensor) and found.dtype == torch.int64
        good = good and found.shape == (2, *self.grid)
        if not (good and 0 <= int(found.min()) and int(found.max()) < self.vocabulary):
            what = getattr(found, "dtype", type(found).__name__)
            raise UserError(
                f"the codes of the tokenizer {self.kind} for two pictures are {what} of shape "
                f"{tuple(getattr(found, 'shape', ()))}: they must be torch.int64 of shape "
                f"{(2, *self.grid)}, from 0 to {self.vocabulary - 1}"
            )
        return self

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, h, w), as the object has them, in full precision."""
        with torch.autocast(images.device.type, enabled=False):
            codes: Tensor = self._given.codes(images)
        return codes.to(images.device)

    def note(self, folder: Path) -> None:
        """Write down what cannot be saved: which tokenizer it was."""
        folder.mkdir(parents=True, exist_ok=True)
        what = {
            "class": self.kind,
            "fingerprint": self.fingerprint,
            "vocabulary": self.vocabulary,
            "image_size": self.image_size,
            "grid": self.grid,
        }
        atomic_write_text(folder / NOTE, json.dumps(what, indent=2) + "\n")


RunTokenizer = DiscreteVAE | OwnTokenizer


def view_size(tokenizer: RunTokenizer, grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the view that gives a code for each patch."""
    if isinstance(tokenizer, OwnTokenizer):
        return tokenizer.image_size
    return tokenizer.config.view_size(grid)


def fingerprint_of(tokenizer: RunTokenizer) -> str:
    """Equal ones give equal codes."""
    if isinstance(tokenizer, OwnTokenizer):
        return tokenizer.fingerprint
    return storage.fingerprint(tokenizer)


def refuse_other_own(out: Path, given: OwnTokenizer | None) -> None:
    """See that a run of a tokenizer that was handed over goes on with that one, and others do not.

    Raises:
        UserError: The run in `out` was made with another.
    """
    note = out / "tokenizer" / NOTE
    if note.is_file():
        noted = read_json_object(note)
        if given is None or noted.get("fingerprint") != given.fingerprint:
            raise UserError(
                f"the run in {out} was made with the tokenizer {noted.get('class')}, handed over "
                "from Python: hand that over again, or choose another --out"
            )
    elif given is not None and any(
        (note.parent / name).is_file() for name in ("config.json", "recipe.yaml")
    ):
        raise UserError(
            f"the run in {out} was made with another tokenizer than {given.kind}: resume with its "
            "own, or choose another --out"
        )


def _pair(given: Any, name: str) -> tuple[int, int]:
    found = getattr(given, name)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise UserError(
            f"{name} of the tokenizer {type(given).__name__} is {found!r}: give (height, width)"
        )
    return int(found[0]), int(found[1])


def _fingerprint(given: Any) -> str:
    """Its own, or a hash of its weights."""
    said = getattr(given, "fingerprint", None)
    if isinstance(said, str) and said:
        return said
    weights = given.state_dict() if isinstance(given, nn.Module) else {}
    if not weights:
        raise UserError(
            f"the tokenizer {type(given).__name__} has no weights to be known by: give it a "
            "fingerprint, a text that is another where its codes are others"
        )
    digest = hashlib.sha256(type(given).__qualname__.encode())
    add_weights(digest, weights)
    return digest.hexdigest()
