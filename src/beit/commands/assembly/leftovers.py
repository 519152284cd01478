"""What a kill leaves in a run folder, and a model's folder that is replaced as a whole."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from beit.files import fsync_folder

BEST = "best"
_MODEL = ("model.safetensors", "config.json")
_RUN = (
    *("recipe.yaml", "source.json", "pictures.npz", "result.json", "initial.json"),
    *("evaluation.json", *_MODEL),
)
_UNFINISHED = re.compile(r"(?P<name>.+)\.tmp-[0-9a-f]{12}")


def clear_leftovers(run: Path) -> None:
    """Remove what a kill left of files that were being written; the run folder is locked by us."""
    _clear_files(run, _RUN)
    _settle(run / BEST)
    _clear_files(run / BEST, _MODEL)
    tokenizer = run / "tokenizer"
    if not (tokenizer / "recipe.yaml").exists():  # a run of its own clears its folder itself
        _clear_files(tokenizer, _MODEL)


def replace_model(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder` with a model, and put it in its place.

    A kill leaves the old model or the new one whole, at worst under the name of an unfinished one,
    from where `clear_leftovers` brings it back.
    """
    new, old = _beside(folder), _beside(folder)
    try:
        write(new)
    except BaseException:
        with suppress(OSError):
            _remove_model(new)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    fsync_folder(folder.parent)
    _bury(old, folder)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(6)}")


def _settle(folder: Path) -> None:
    """End a replacement that a kill broke off."""
    unfinished = [path for path in _unfinished(folder.parent, (folder.name,)) if path.is_dir()]
    whole = [path for path in unfinished if (path / "config.json").is_file()]  # written last
    if whole and not folder.exists():
        os.rename(max(whole, key=lambda path: (path / "config.json").stat().st_mtime_ns), folder)
        fsync_folder(folder.parent)
    for path in unfinished:
        _bury(path, folder)


def _bury(old: Path, folder: Path) -> None:
    """Remove the model in `old`; whatever else lies there is the user's and moves to `folder`."""
    if not old.is_dir():
        return
    _clear_files(old, _MODEL)
    for path in list(old.iterdir()):
        if path.name not in _MODEL and folder.is_dir() and not (folder / path.name).exists():
            os.rename(path, folder / path.name)
    _remove_model(old)


def _remove_model(folder: Path) -> None:
    for name in _MODEL:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something of the user's is left, or it was never made
        folder.rmdir()


def _clear_files(folder: Path, names: tuple[str, ...]) -> None:
    for path in _unfinished(folder, names):
        if path.is_file() and not path.is_symlink():
            path.unlink()


def _unfinished(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """What is called as we call files of these names while they are written."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _UNFINISHED.fullmatch(path.name)
        if match and match["name"] in names:
            yield path
