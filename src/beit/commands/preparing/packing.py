"""`beit data pack`: any source into one that is read fast."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beit.commands.assembly.unfinished import Progress, unfinished
from beit.data.pack import BAD, PackSettings, pack, packed_before
from beit.data.sources.indexed import Split
from beit.data.sources.opening import Source, open_source
from beit.data.sources.path_names import encode_path
from beit.errors import UserError
from beit.files import human_bytes
from beit.machine import allowed_cores

__all__ = ["PackSettings", "pack_data"]


def pack_data(spec: str, out: Path, settings: PackSettings, workers: int | None) -> dict[str, Any]:
    """Pack both splits of a source into a folder that `--data` takes, and tell what was done.

    Raises:
        UserError: The source has masks, or the folder cannot be made there.
    """
    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers}: there cannot be fewer than 0 processes")
    path = encode_path(spec)
    if all(os.path.isdir(os.path.join(path, name)) for name in (b"images", b"annotations")):
        raise UserError(
            f"{spec} holds masks beside its pictures, which cannot be packed: pack {spec}/images "
            "for the pictures alone"
        )
    splits: tuple[Split, Split] = ("train", "val")
    sources: dict[str, Source] = {split: open_source(spec, split) for split in splits}
    sources = {split: source for split, source in sources.items() if len(source)}
    total = sum(map(len, sources.values()))
    with unfinished(out) as folder:
        progress = Progress("pictures", total, packed_before(folder))
        cores = allowed_cores()
        count = (cores if cores > 1 else 0) if workers is None else workers
        packed = pack(sources, folder, settings, count, progress.add)
    if packed.bad:
        text = f"{packed.bad} of {total} pictures cannot be read and were left out: {out / BAD}"
        print(text, file=sys.stderr, flush=True)
    print(
        f"{out}: {packed.pictures:,} pictures in {packed.shards} shards, {human_bytes(packed.size)}"
    )
    return {"out": str(out), **asdict(packed), **asdict(settings)}
