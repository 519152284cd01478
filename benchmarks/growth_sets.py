"""Large sets that cost little disk: every entry is real, the pictures behind them are few.

A folder's pictures are hard links to some files, a pack's and a tar set's shards hard links to one
shard. Indexing, opening and reading treat them as any other; only the disk notices.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.pack import PackSettings, pack
from beit.data.sources.opening import open_source

SIDE = 32  # pixels
A_SHARD = 2000  # pictures
A_FOLDER = 1000  # pictures
_LINKS = 60_000  # of a file; ext4 allows 65,000
_LONG_AGO = 1_600_000_000  # so that an index counts as settled at once


def linked_folder(root: Path, folders: int, pictures: int) -> Path:
    """`folders` classes of `pictures` pictures each."""
    files = root / ".files"  # hidden from the index
    files.mkdir(parents=True)
    made, file = 0, ""
    for number in range(folders):
        folder = root / f"class-{number:05d}"
        folder.mkdir()
        for name in range(pictures):
            if made % _LINKS == 0:
                file = str(_picture(files / f"{made}.png", made // _LINKS))
            os.link(file, f"{folder}/{name:05d}.png")
            made += 1
        os.utime(folder, (_LONG_AGO, _LONG_AGO))
    os.utime(root, (_LONG_AGO, _LONG_AGO))
    return root


def _picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def linked_pack(root: Path, pictures: int) -> Path:
    """What `beit data pack` would make of as many pictures: shards of 2,000 and their index."""
    one = _one_shard(root.with_name(f"{root.name}-one"))
    shards = -(-pictures // A_SHARD)
    (root / "train").mkdir(parents=True)
    (root / "index").mkdir()
    for shard in range(shards):
        os.link(one / "pack" / "train" / "00000.tar", root / "train" / f"{shard:05d}.tar")
    meta = json.loads((one / "pack" / "index" / "meta.json").read_text())
    meta["shards"] = {"train": shards}
    (root / "index" / "meta.json").write_text(json.dumps(meta))
    of = {file.stem: np.load(file) for file in (one / "pack" / "index").glob("*.npy")}
    for name, values in _repeated(of, pictures, shards).items():
        np.save(root / "index" / f"{name}.npy", values)
    shutil.rmtree(one)
    return root


def _repeated(of: dict[str, NDArray[Any]], pictures: int, shards: int) -> dict[str, NDArray[Any]]:
    """A shard's index arrays, as often as there are shards, and numbered names."""
    found = {name: np.tile(of[name], shards)[:pictures] for name in ("sizes", "labels", "start")}
    found["shard"] = np.repeat(np.arange(shards, dtype=np.int32), A_SHARD)[:pictures]
    found["blob"], found["offsets"] = _numbered_names(pictures)
    found["train"] = np.arange(pictures, dtype=np.int64)
    found["val"] = np.zeros(0, np.int64)
    found["shard_sizes"] = np.tile(of["shard_sizes"], shards)
    return found


def _numbered_names(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """`train/000000000.jpg` and so on, as bytes one after the other and where each begins."""
    model = np.frombuffer(b"train/000000000.jpg", np.uint8)
    names = np.tile(model, (count, 1))
    rest = np.arange(count)
    for column in range(14, 5, -1):
        names[:, column] += (rest % 10).astype(np.uint8)
        rest //= 10
    return names.ravel(), np.arange(count + 1, dtype=np.int64) * len(model)


def _one_shard(root: Path) -> Path:
    pictures = linked_folder(root / "pictures", 10, A_SHARD // 10)
    source = open_source(str(pictures), "all")
    pack({"train": source}, root / "pack", PackSettings(SIDE, shard_size=A_SHARD))
    return root


def linked_tars(root: Path, pictures: int) -> Path:
    """A folder of .tar files of 2,000 pictures each."""
    one = _one_shard(root.with_name(f"{root.name}-one"))
    (root / "train").mkdir(parents=True)
    shard = one / "pack" / "train" / "00000.tar"
    os.utime(shard, (_LONG_AGO, _LONG_AGO))
    for number in range(-(-pictures // A_SHARD)):
        os.link(shard, root / "train" / f"{number:05d}.tar")
    shutil.rmtree(one)
    return root


def in_folders(pictures: int) -> Callable[[Path], Path]:
    """Makes folders of 1,000 pictures."""
    return lambda root: linked_folder(root, max(1, pictures // A_FOLDER), min(pictures, A_FOLDER))
