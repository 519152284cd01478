"""The hub of Hugging Face: model folders by name, safetensors, JSON and Markdown alone."""

import re
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from beit.errors import UserError

PREFIX = "hf://"
ALLOWED = ("*.safetensors", "*.json", "*.md")  # whatever else a repository holds stays there
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SPEC = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?")
_PATIENCE = 5.0  # seconds


class Repository(NamedTuple):
    """`owner/name`, and a branch, tag or commit."""

    name: str
    revision: str | None = None


def repository(spec: str) -> Repository:
    """Read `hf://owner/name` or `hf://owner/name@revision`.

    Raises:
        UserError: It is not of that form.
    """
    found = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if not spec.startswith(PREFIX) or found is None or ".." in spec:
        raise UserError(f"{spec!r} names no repository; write {PREFIX}owner/name")
    return Repository(found[1], found[2])


def located(spec: str | Path) -> Path:
    """Where a model lies: `hf://owner/name` is fetched, and everything else is its own place.

    Each call asks the hub anew: whoever needs the place more than once keeps it.

    Raises:
        UserError: It cannot be had from the hub, or is no model in safetensors.
    """
    return fetch(str(spec)) if str(spec).startswith(PREFIX) else Path(spec)


def fetch(spec: str, token: str | None = None) -> Path:
    """Bring a model's folder from the hub, or find it in the hub's cache.

    Args:
        spec: `hf://owner/name`, with `@revision` where not the newest is wanted.
        token: For repositories that are not public; by default the one that
            `hf auth login` left.

    Returns:
        A folder with at least `config.json` and `model.safetensors`.

    Raises:
        UserError: It cannot be had, or is no model in safetensors.
    """
    wanted = repository(spec)
    download = require_hub().snapshot_download
    try:
        with impatient():
            found = download(
                wanted.name, revision=wanted.revision, token=token, allow_patterns=list(ALLOWED)
            )
    except Exception as error:  # the hub has thirty kinds of errors, and the disk its own
        raise UserError(
            f"{spec} could not be fetched ({first_line(error)}); check the name and the network, "
            "or give a folder instead"
        ) from error
    folder = Path(found)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            held = f" (it holds {', '.join(others[:4])})" if others else ""
            raise UserError(
                f"{spec} has no {name}{held}; only models in safetensors are taken from the hub"
            )
    return folder


def require_hub() -> Any:
    """The hub's client.

    Raises:
        UserError: It is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the hub's client is not installed; run `pip install 'beit[hub]'`"
        ) from error
    return huggingface_hub


def first_line(error: BaseException, longest: int = 120) -> str:
    """The first line of what an error says, cut between words to what a sentence can hold."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = textwrap.shorten(lines[0], longest, placeholder=" ...") if lines else ""
    return said.rstrip(".") or type(error).__name__


@contextmanager
def impatient() -> Iterator[None]:
    """Look into the hub's cache at once where the hub cannot be reached, instead of retrying."""
    constants = require_hub().constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:  # a complaint is an answer
        return True
    except (OSError, ValueError):
        return False
