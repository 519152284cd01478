"""Files that appear whole or not at all."""

import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from beit.errors import UserError

_CHUNK = 1 << 20


def fsync_file(path: Path) -> None:
    """Ask the system to bring a file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Bring a folder's entries (names, renames) to the disk, where the system can."""
    if os.name == "nt":  # folders cannot be opened there; renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_utf8(path: Path) -> bool:
    """Whether a name is UTF-8, as some libraries want it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def for_safetensors(path: Path) -> Iterator[Path]:
    """A name under which safetensors opens a file for reading: UTF-8, so perhaps that of a link.

    Raises:
        OSError: It cannot be opened, and why; to safetensors it would be missing in every case.
    """
    path.open("rb").close()
    if is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link")
        link.symlink_to(path.absolute())
        yield link


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give the errors of the system the name of the file: those of writes carry none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk."""
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one instant: readers, and a crash, see the old or the new one whole."""
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(6)}")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # where it could not be made, it cannot be looked for either
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # that is what the user knows
        raise
    fsync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8, newlines as given) in one instant."""
    atomic_write_bytes(path, text.encode())


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object, as runs and models are described by.

    Raises:
        UserError: It is not there, damaged, or something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object: copy it again")
    return value


def json_of_measured(value: Any, **layout: Any) -> str:
    """JSON that every reader takes, of numbers that were measured.

    One that is not finite (a broken model was measured, there was nothing to measure) becomes null.
    Descriptions hold none; they are written with `allow_nan=False`.
    """
    return json.dumps(_without_infinities(value), allow_nan=False, **layout)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_infinities(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(inner) for inner in value]
    return value


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def human_bytes(count: int) -> str:
    """Bytes as a person reads them: 3.2 GB (powers of ten, as disks are sold)."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_time(seconds: float) -> str:
    """A time span in its two largest units: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    parts = []
    for size, name in units:
        count, whole = divmod(whole, size)
        parts.append((count, name))
    first = next(place for place, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {name}" for count, name in parts[first : first + 2] if count)
