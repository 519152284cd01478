"""Pictures made smaller once, and laid one after the other in tar files.

A packed folder holds `train/NNNNN.tar` and `val/NNNNN.tar` that any program can read, and beside
them the index that this one reads: where each picture lies, its label and what it was called, in
the order of the source. It is filled shard by shard; a shard is written under another name, and
what is known of it is noted after it has reached the disk, so a stop costs the shards that were
being written and no more. The bytes do not depend on the number of processes, nor on stops.
"""

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from beit.data.decoding.decode import BadPicture, decode
from beit.data.reading.fetch import Fetching, WatchedReader, fetch
from beit.data.sources.cache import save_array
from beit.data.sources.indexed import IndexedSource
from beit.data.sources.layout import LayoutBuilder
from beit.data.sources.opening import HasBytes, Source
from beit.data.sources.packed_folder import INDEX, MANIFEST, SHARD_SIZES, VERSION, shard_name
from beit.errors import UserError
from beit.files import atomic_write_text, fsync_file, fsync_folder

BAD = "bad_pictures.jsonl"
_PARTS = "parts"  # what is known of the shards that are finished
_LONGEST_JPEG = 65_500  # libjpeg's, a little below what 16 bits could tell
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class PackSettings:
    """How pictures are packed."""

    short_side: int = 256  # pixels; smaller pictures stay as they are
    quality: int = 90  # of the JPEG, 1 to 100
    shard_size: int = 2000  # pictures

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UserError(f"a short side of {self.short_side} pixels cannot be had")
        if not 1 <= self.quality <= 100:
            raise UserError(f"the JPEG quality must lie in 1 to 100, not {self.quality}")
        if self.shard_size < 1:
            raise UserError(f"a shard holds at least one picture, not {self.shard_size}")


@dataclass(frozen=True)
class _Part:
    """What is known of a shard."""

    split: str
    number: int
    indices: list[int]  # of the pictures in it
    starts: list[int]  # first byte of each
    sizes: list[int]
    bad: list[tuple[int, str]]
    size: int  # of the file

    @property
    def shard(self) -> str:
        return shard_name(self.split, self.number)


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    pictures: int
    bad: int
    shards: int
    size: int  # bytes of all shards


def pack(
    sources: dict[str, Source],
    folder: Path,
    settings: PackSettings,
    workers: int = 0,
    told: Callable[[int], None] = lambda count: None,
) -> Packed:
    """Fill a folder with the packed pictures of "train" and "val", or go on filling it.

    Args:
        sources: The splits.
        folder: To fill.
        settings: How.
        workers: Processes; each makes a shard at a time.
        told: Called with the number of pictures that came with each finished shard.

    Raises:
        UserError: The folder holds the beginning of another pack, or nothing could be read.
    """
    _begin(folder, sources, settings)
    parts = []
    for split, source in sources.items():
        parts += _pack_split(split, source, folder, (settings, workers), told)
    if not any(part.indices for part in parts):
        raise UserError("not one of the pictures can be read; there is nothing to pack")
    _write_index(folder, sources, parts)
    _write_bad(folder, sources, parts)
    shutil.rmtree(folder / _PARTS)
    return Packed(
        pictures=sum(len(part.indices) for part in parts),
        bad=sum(len(part.bad) for part in parts),
        shards=len(parts),
        size=sum(part.size for part in parts),
    )


def _begin(folder: Path, sources: dict[str, Source], settings: PackSettings) -> None:
    """Note what is packed and how, or see that it was the same before."""
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    wanted = asdict(settings) | {name: source.fingerprint for name, source in sources.items()}
    file = folder / _PARTS / "of.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in wanted.items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} holds the beginning of another pack ({name} {before.get(name)} "
                    f"there, {value} here); remove it, or choose another --out"
                )
    else:
        atomic_write_text(file, json.dumps(wanted) + "\n")


def _pack_split(
    split: str,
    source: Source,
    folder: Path,
    how: tuple[PackSettings, int],
    told: Callable[[int], None],
) -> list[_Part]:
    settings, workers = how
    (folder / split).mkdir(exist_ok=True)
    where = [
        range(start, min(start + settings.shard_size, len(source)))
        for start in range(0, len(source), settings.shard_size)
    ]
    parts = {n: known for n in range(len(where)) if (known := _known(folder, split, n))}
    missing = [positions for n, positions in enumerate(where) if n not in parts]
    fetching = Fetching(min(workers, len(missing)), prefetch=1, timeout=0)
    reader = WatchedReader(source, fetching.workers)
    shards = _Shards(reader, split, folder, settings)
    for part in fetch(shards, missing, reader, fetching):
        if isinstance(part, OSError):
            raise part
        parts[part.number] = part
        told(len(part.indices) + len(part.bad))
    return [parts[number] for number in range(len(where))]


def packed_before(folder: Path) -> int:
    """How many pictures, good and bad, an interrupted pack has done."""
    found = 0
    for split in ("train", "val"):
        for file in (folder / _PARTS).glob(f"{split}-*.json"):
            part = _known(folder, split, int(file.stem.rpartition("-")[2]))
            found += 0 if part is None else len(part.indices) + len(part.bad)
    return found


def _part_file(folder: Path, split: str, number: int) -> Path:
    return folder / _PARTS / f"{split}-{number:05d}.json"


def _known(folder: Path, split: str, number: int) -> _Part | None:
    """What was noted of a shard, None when it is not whole."""
    try:
        tree = json.loads(_part_file(folder, split, number).read_text(encoding="utf-8"))
        tree["bad"] = [(int(index), str(reason)) for index, reason in tree["bad"]]
        part = _Part(**tree)
        return part if (folder / part.shard).stat().st_size == part.size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class _Shards(Dataset[_Part | OSError]):
    """Maps a run of pictures to a finished shard, or to why the disk did not take it.

    That is handed over and not raised: from a worker it would come as a traceback.
    """

    reader: WatchedReader
    split: str
    folder: Path
    settings: PackSettings

    def __getitem__(self, where: range) -> _Part | OSError:
        """Write the shard of these pictures."""
        try:
            return self._written(where)
        except OSError as error:
            return error

    def _written(self, where: range) -> _Part:
        number = where.start // self.settings.shard_size
        part = _Part(self.split, number, [], [], [], [], 0)
        final = self.folder / part.shard
        temporary = final.with_name(f".{final.name}")  # one and the same at each trial
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for index in where:
                try:
                    data = self._encoded(index)
                except BadPicture as error:
                    part.bad.append((index, error.reason))
                    continue
                self._add(archive, index, data, part)
        fsync_file(temporary)
        os.replace(temporary, final)
        fsync_folder(final.parent)
        whole = _Part(**{**asdict(part), "size": final.stat().st_size})
        atomic_write_text(_part_file(self.folder, self.split, number), json.dumps(asdict(whole)))
        return whole

    def _add(self, archive: tarfile.TarFile, index: int, data: bytes, part: _Part) -> None:
        member = tarfile.TarInfo(_member(self.reader.source, index))
        member.size = len(data)  # no time, no owner: the same bytes each time
        archive.addfile(member, io.BytesIO(data))
        part.indices.append(index)
        # Behind the member's blocks the archive stands where the next header comes.
        blocks = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        part.starts.append(int(archive.offset) - blocks)
        part.sizes.append(len(data))

    def _encoded(self, index: int) -> bytes:
        source = self.reader.source
        with self.reader.watching(index):
            data = source.read_bytes(index) if isinstance(source, HasBytes) else b""
            image = decode(data) if data else source.read(index)
        return encoded(image, data, self.settings)


def encoded(image: Image.Image, data: bytes, settings: PackSettings) -> bytes:
    """A picture as the JPEG that is packed.

    Args:
        image: RGB, upright.
        data: The file it came from, empty when there is none. A JPEG that is small enough stays as
            it is unless writing it again saves bytes: each writing loses a little.
        settings: Short side and quality.

    Raises:
        BadPicture: It is too long for a JPEG, also when made smaller.
    """
    short = min(image.size)
    resized = short > settings.short_side
    if resized:
        width, height = (
            settings.short_side if side == short else round(side * settings.short_side / short)
            for side in image.size
        )
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if max(image.size) > _LONGEST_JPEG:
        raise BadPicture(f"{image.width} x {image.height} pixels, too long for a JPEG")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=settings.quality)
    written = buffer.getvalue()
    kept = not resized and data.startswith(_JPEG) and len(data) <= len(written)
    return data if kept else written


def _member(source: Source, index: int) -> str:
    """The name in the archive: folder of the class, number in the source."""
    label = source.label(index)
    name = f"{index:09d}.jpg"
    if label < 0:
        return name
    return f"{source.classes[label].replace('/', '_').lstrip('.') or label}/{name}"


def _name(source: Source, index: int) -> bytes:
    if isinstance(source, IndexedSource):
        return source.path(index)
    return source.identity(index).encode("utf-8", "backslashreplace")


def _write_index(folder: Path, sources: dict[str, Source], parts: Sequence[_Part]) -> None:
    """Write the arrays that `PackedFolder` maps, then the manifest."""
    (folder / INDEX).mkdir(exist_ok=True)
    builder = LayoutBuilder()
    columns: dict[str, list[int]] = {"shard": [], "start": [], "labels": []}
    places: dict[str, list[int]] = {"train": [], "val": []}
    for number, part in enumerate(parts):
        source = sources[part.split]
        for index, start, size in zip(part.indices, part.starts, part.sizes, strict=True):
            places[part.split].append(len(builder))
            # What it was called stays its name, below the split that it is in.
            called, split = _name(source, index), part.split.encode() + b"/"
            builder.add(called if called.startswith(split) else split + called, size)
            columns["shard"].append(number)
            columns["start"].append(start)
            columns["labels"].append(source.label(index))
    layout = builder.finish()
    arrays: dict[str, Any] = {
        **{name: getattr(layout, name) for name in ("blob", "offsets", "sizes")},
        "shard": np.array(columns["shard"], np.int32),
        "start": np.array(columns["start"], np.int64),
        "labels": np.array(columns["labels"], np.int32),
        **{name: np.array(where, np.int64) for name, where in places.items()},
        SHARD_SIZES: np.array([part.size for part in parts], np.int64),
    }
    for name, values in arrays.items():
        save_array(folder / INDEX, name, values)
    classes = next(iter(sources.values())).classes
    manifest = {
        "version": VERSION,
        "fingerprint": layout.fingerprint,
        "classes": [name.encode("utf-8", "backslashreplace").hex() for name in classes],
        "shards": dict(Counter(part.split for part in parts)),
        # By chance, and not by a folder of that name, though here it has one.
        "held_out": bool(getattr(sources.get("val"), "held_out", False)),
    }
    atomic_write_text(folder / INDEX / MANIFEST, json.dumps(manifest) + "\n")


def _write_bad(folder: Path, sources: dict[str, Source], parts: Sequence[_Part]) -> None:
    lines = [
        {"split": part.split, "path": sources[part.split].identity(index), "reason": reason}
        for part in parts
        for index, reason in part.bad
    ]
    if lines:
        atomic_write_text(folder / BAD, "".join(json.dumps(line) + "\n" for line in lines))
