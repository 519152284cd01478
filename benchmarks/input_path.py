"""Pictures a second on one core: this package's input path against the reference's, in turns.

    python benchmarks/input_path.py --data imagenet-samples --enlarge 500 375

Every side makes micro-batches for `base` from the same pictures in the same order, in one process
and one thread: from file to what is handed to the device. The reference jitters, normalises and
makes floats of both views on the host; here the device does that, for a whole batch at once.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.batch import ImageBatch
from beit.data.decoding.decode import decode, decode_pixels
from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.loading.order import locate
from beit.data.loading.samples import Codes, Views
from beit.data.pack import PackSettings, pack
from beit.data.reading.fetch import WatchedReader
from beit.data.sources.index import FolderSource
from beit.data.sources.indexed import IndexedSource
from beit.data.sources.opening import open_source
from beit.data.sources.packed_folder import PackedFolder
from beit.data.views.draws import Key, MaskPlan, colour_draws, crop_box, draw_masks
from beit.data.views.views import ViewSettings, make_views
from beit.tokenizer.bank import MANIFEST, BankManifest, BankOrigin, TokenBank
from harness import RESULTS, interleaved, record, timed, times_faster
from reference_input import ReferenceInput, seeded

# What `base` sees: encoder's and tokenizer's view, 75 of 14 x 14 patches masked.
BOTH, ENCODERS = ViewSettings((224, 224), (112, 112)), ViewSettings((224, 224))
MASKS = MaskPlan((14, 14), count=75)
GOALS = {"files": 4.0, "packed": 8.0, "packed smaller": 8.0}
PACKS = {"packed": PackSettings(), "packed smaller": PackSettings(short_side=224, quality=85)}
# Pictures a second that `base` takes on one H200 at 60 % of its measured peak, with live and with
# banked tokens, and the cores that are left to the loader when one of 16 feeds the device.
NEEDED, NEEDED_BANKED = 2961, 4390
CORES = 15
_GREY_LEVELS = 2  # by which Pillow's and torch's resizing differ at most
_COMPARED = 8  # pictures


@dataclass(frozen=True)
class Material:
    """The same pictures as files and packed, and codes for them."""

    files: FolderSource
    packs: dict[str, PackedFolder]
    codes: Codes
    facts: dict[str, Any]


def main() -> None:
    """Assert that all sides see the same, time them, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--pictures", type=int, default=256, help="how many of them")
    parser.add_argument("--enlarge", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--quality", type=int, default=95, help="of the enlarged JPEG files")
    parser.add_argument("--batch", type=int, default=32, help="pictures of a micro-batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        material = prepared(options, Path(folder))
        assert_same_pictures(material)
        rows = measured(material, options.batch, options.rounds)
        for row in rows:
            print(row)
        data = {"data": Path(options.data).name, **material.facts}
        print(record("input-path", rows, options.results, **data, batch=options.batch))


def prepared(options: argparse.Namespace, folder: Path) -> Material:
    """Copy the pictures, enlarged where that is wanted, pack them, and make codes up."""
    given = open_source(options.data, "train")
    count = min(options.pictures, len(given))
    sizes = []
    for split in ("train", "val"):
        (folder / "files" / split).mkdir(parents=True)
    for index in range(count):
        image = given.read(index)
        sizes.append(image.size)
        if options.enlarge:
            image = enlarged(image, *options.enlarge)
        image.save(folder / "files" / "train" / f"{index:05d}.jpg", quality=options.quality)
    image.save(folder / "files" / "val" / "last.jpg")
    files = open_source(str(folder / "files"), "train")
    assert isinstance(files, FolderSource)
    facts: dict[str, Any] = {
        "pictures": count,
        "sizes as given (width, height)": most_common(sizes),
        "files": {"quality": options.quality} | described(files),
    }
    packs = {}
    for name, settings in PACKS.items():
        packs[name] = packed(files, folder / name, settings)
        facts[name] = asdict(settings) | described(packs[name])
    return Material(files, packs, made_up_codes(folder / "bank", count), facts)


def packed(files: FolderSource, folder: Path, settings: PackSettings) -> PackedFolder:
    """The pictures as `beit data pack` makes them."""
    folder.mkdir()
    pack({"train": files}, folder, settings)
    source = open_source(str(folder), "train")
    assert isinstance(source, PackedFolder)
    return source


def enlarged(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture at a size."""
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    resized = image.resize(size, Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + width, top + height))


def described(source: IndexedSource) -> dict[str, Any]:
    """Sizes of a source's pictures, in pixels and in bytes."""
    files = [source.read_bytes(index) for index in range(len(source))]
    return {
        "sizes (width, height)": most_common([decode(data).size for data in files]),
        "mean bytes": round(statistics.mean(map(len, files))),
    }


def most_common(sizes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """The three most frequent sizes and how often each is there."""
    counts = {size: sizes.count(size) for size in sizes}
    often = sorted(counts, key=lambda size: -counts[size])[:3]
    return {f"{width} x {height}": counts[width, height] for width, height in often}


def made_up_codes(folder: Path, count: int) -> TokenBank:
    """A bank of random codes, one view of each picture: reading does not ask what they mean."""
    grid, vocabulary = MASKS.grid, 8192
    folder.mkdir()
    codes = np.random.default_rng(0).integers(0, vocabulary, (1, count, *grid), np.uint16)
    np.save(folder / "codes.npy", codes)
    origin = BankOrigin("none", "float32", "made up", count, 0, {}, grid, vocabulary)
    (folder / MANIFEST).write_text(BankManifest(origin, 1, True, {}).as_json())
    return TokenBank(folder)


def assert_same_pictures(material: Material) -> None:
    """What is timed shows the same: ours and the reference's, from files and packed, banked too."""
    reference = ReferenceInput()
    files, names = material.files, identities(material.files)
    assert all(identities(source) == names for source in material.packs.values())
    middle = ViewSettings((224, 224), random=False)
    for index in range(min(_COMPARED, len(files))):
        key, image = Key(0, 0, index), files.read(index)
        box = crop_box(key.generator("crop"), (image.height, image.width), BOTH.scale, BOTH.ratio)
        ours = make_views(decode_pixels(files.read_bytes(index)), BOTH, key)
        for view, theirs in zip(ours, reference.views(image, box), strict=True):
            assert view is not None and apart(view, theirs).max() <= _GREY_LEVELS
        whole = make_views(image, middle, key)[0]
        for source in material.packs.values():
            small = make_views(source.read(index), middle, key)[0]
            assert whole is not None and small is not None
            assert (whole.float() - small.float()).abs().mean() < 8, "another picture was packed"
    live, banked = (next(batches(files, views, None, 4)) for views in (BOTH, ENCODERS))
    assert live.patch_view is not None and banked.patch_view is not None
    assert torch.equal(live.patch_view, banked.patch_view)


def identities(source: IndexedSource) -> list[str]:
    """What the pictures are called, in order."""
    return [source.identity(index) for index in range(len(source))]


def apart(view: Tensor, image: Image.Image) -> Tensor:
    """Grey levels between a view and a picture of Pillow's."""
    return (view.permute(1, 2, 0).int() - torch.from_numpy(np.array(image)).int()).abs()


def batches(
    source: IndexedSource, views: ViewSettings, codes: Codes | None, size: int
) -> Iterator[ImageBatch]:
    """Our micro-batches, made in this process."""
    settings = LoaderSettings(size, views=None if codes is None else 1)
    return training_batches(source, views, MASKS, settings, 0, codes=codes)


def measured(material: Material, size: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each side: time, gain over the reference, and where our time goes."""
    sources: dict[str, IndexedSource] = {"files": material.files, **material.packs}
    ours = {name: batches(source, BOTH, None, size) for name, source in sources.items()}
    for name, source in sources.items():
        ours[f"{name}, banked"] = batches(source, ENCODERS, material.codes, size)
    sides: dict[str, Callable[[], object]] = {
        "reference": reference_batches(material.files, size),
        **{name: partial(next, side) for name, side in ours.items()},
    }
    seconds = interleaved(sides, rounds=rounds, settle=1)
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {"side": name, "milliseconds a picture": milliseconds(taken, size)}
        row["pictures a second"] = round(1000 / row["milliseconds a picture"])
        if name in ours:
            row["gain"] = times_faster(seconds["reference"], taken)
            row["goal"] = GOALS.get(name)
            needed = NEEDED_BANKED if name.endswith("banked") else NEEDED
            row["16 cores, one H200"] = supply(row["pictures a second"], needed)
        if name in sources:
            row["milliseconds by stage"] = stages(sources[name], size, rounds)
        rows.append(row)
    return rows


def reference_batches(files: FolderSource, size: int) -> Callable[[], object]:
    """The reference's next micro-batch, of the pictures that ours holds."""
    reference, seen = ReferenceInput(), iter(range(0, 1 << 40, size))
    seeded(0)

    def once() -> list[Tensor]:
        start = next(seen)
        _, indices = locate(0, len(files), range(start, start + size))
        folder = files.root.decode()
        return reference.batch([f"{folder}/{files.path(i).decode()}" for i in indices.tolist()])

    return once


def supply(rate: float, needed: int) -> dict[str, float]:
    """What the loader's cores deliver at this rate against what the device takes."""
    delivered = rate * CORES
    return {
        "needed a second": needed,
        "delivered a second": round(delivered),
        "needed a core": round(needed / CORES),
        "share of the time that the device waits": round(max(0.0, 1 - delivered / needed), 3),
    }


def stages(source: IndexedSource, size: int, rounds: int) -> dict[str, float]:
    """Milliseconds a picture of each stage by itself; the token view by difference."""
    keys = [Key(0, 0, index) for index in range(min(size, len(source)))]
    data = [source.read_bytes(key.index) for key in keys]
    pixels = [decode_pixels(one) for one in data]
    kind = Views(WatchedReader(source, 0), BOTH, None)
    samples = [kind.sample(key.index, key) for key in keys]
    parts: dict[str, Callable[[], object]] = {
        "read": lambda: [source.read_bytes(key.index) for key in keys],
        "decode": lambda: [decode_pixels(one) for one in data],
        "crop and encoder's view": lambda: [
            make_views(one, ENCODERS, key) for one, key in zip(pixels, keys, strict=True)
        ],
        "both views": lambda: [
            make_views(one, BOTH, key) for one, key in zip(pixels, keys, strict=True)
        ],
        "colour draws": lambda: colour_draws(keys, BOTH.jitter, flip=BOTH.flip),
        "masks": lambda: draw_masks(MASKS, keys),
        "batch with colour draws": lambda: kind.batch(keys, samples),
    }
    taken = {
        name: milliseconds([timed(part) for _ in range(min(rounds, 5))], len(keys))
        for name, part in parts.items()
    }
    both, batch = taken.pop("both views"), taken.pop("batch with colour draws")
    taken["tokenizer's view"] = round(both - taken["crop and encoder's view"], 4)
    taken["collate"] = round(batch - taken["colour draws"], 4)
    return taken


def milliseconds(seconds: list[float], pictures: int) -> float:
    """The median of some calls, for one picture."""
    return round(1000 * statistics.median(seconds) / pictures, 4)


if __name__ == "__main__":
    main()
