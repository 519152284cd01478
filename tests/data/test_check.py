import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.commands.looking.inspection import check_data, data_info
from beit.data.checking.check import check, info
from beit.data.sources.opening import open_source
from oracles.picture_zoo import saved, scene, zoo


def _zoo_folder(root: Path) -> set[str]:
    """The zoo as .jpg files, whatever they are; the names of those to be refused."""
    for specimen in zoo():
        folder = root / ("good" if specimen.pixels is not None else "bad")
        folder.mkdir(exist_ok=True)
        (folder / f"{specimen.name}.jpg").write_bytes(specimen.data)
    return {f"bad/{one.name}.jpg" for one in zoo() if one.pixels is None}


@pytest.mark.parametrize("workers", [0, 2])
def test_check_finds_every_bad_picture_and_touches_none(tmp_path: Path, workers: int) -> None:
    refused = _zoo_folder(tmp_path)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.jpg")
    }
    report = check(open_source(str(tmp_path), "all"), workers)
    assert {bad.path for bad in report.bad} == refused and all(bad.reason for bad in report.bad)
    assert report.pictures == len(zoo())
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.jpg")}
    assert after == before


def test_check_finds_duplicates_by_their_pixels(tmp_path: Path) -> None:
    one, other = Image.fromarray(scene()), Image.fromarray(255 - scene())
    (tmp_path / "a.png").write_bytes(saved(one, "PNG"))
    (tmp_path / "b.bmp").write_bytes(saved(one, "BMP"))
    (tmp_path / "c.png").write_bytes(saved(other, "PNG"))
    source = open_source(str(tmp_path), "all")
    assert check(source).duplicates == ()
    assert check(source, duplicates=True).duplicates == (("a.png", "b.bmp"),)


def test_info_counts_classes_and_measures_a_sample(tmp_path: Path) -> None:
    for number, (name, width) in enumerate((("cat", 10), ("cat", 30), ("dog", 20), (".", 40))):
        (tmp_path / name).mkdir(exist_ok=True)
        data = saved(Image.new("RGB", (width, 8)), "PNG")
        (tmp_path / name / f"{number}.png").write_bytes(data)
    (tmp_path / "dog" / "bad.png").write_bytes(b"")
    found = info(open_source(str(tmp_path), "all"))
    assert (found.pictures, found.classes, found.unlabelled) == (5, {"cat": 2, "dog": 2}, 1)
    assert (found.sampled, found.bad_in_sample) == (5, 1)
    assert found.height == (8, 8, 8) and found.width == (10, 25, 40)
    assert found.fingerprint == open_source(str(tmp_path), "all").fingerprint


def test_pictures_of_a_camera_that_does_not_fill_its_16_bits_are_told(tmp_path: Path) -> None:
    full = scene()[..., 0].astype(np.uint16) * 257
    for number, bits in enumerate((16, 14, 12)):
        (tmp_path / f"{number}.png").write_bytes(saved(Image.fromarray(full >> (16 - bits)), "PNG"))
    source = open_source(str(tmp_path), "all")
    assert check(source).dark == info(source).dark == (2, "1.png")
    for looks in (check_data, data_info):
        (note,) = looks(str(tmp_path), "all", *([0] if looks is check_data else []))["notes"]
        assert "2 of 3" in note and "1.png" in note and "65,535" in note


def test_masks_that_are_not_looked_at_are_told(tmp_path: Path) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "1.png").write_bytes(saved(Image.new("L", (4, 4), 99), "PNG"))
    for looks in (check_data, data_info):
        (note,) = looks(str(tmp_path), "all", *([0] if looks is check_data else []))["notes"]
        assert "annotations/ are not looked at" in note and "beit segment" in note


def test_info_of_an_empty_split(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(saved(Image.new("RGB", (4, 4)), "PNG"))
    found = info(open_source(str(tmp_path), "val"))
    assert (found.pictures, found.sampled, found.width) == (0, 0, (0, 0, 0))
    assert check(open_source(str(tmp_path), "val")).pictures == 0


def test_real_pictures_are_all_good(imagenette: Path) -> None:
    found = info(open_source(str(imagenette), "val"))
    assert found.pictures == 2000 and set(found.classes.values()) == {200}
    assert found.bad_in_sample == 0 and found.sampled == 200
    assert os.path.basename(found.name) == "imagenette-160"
