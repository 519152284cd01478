"""An index that says the same again stays where it is, so that a run may go on using it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from beit.data.sources import open_source


def test_a_folder_that_is_opened_again_and_again_keeps_its_index(tmp_path: Path) -> None:
    """A folder that was changed a moment ago is looked at anew at each opening."""
    for number in range(30):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    first = open_source(str(tmp_path), "train")  # its arrays are not read yet
    for _ in range(5):
        again = open_source(str(tmp_path), "val")
        assert again.fingerprint.partition("-")[0] == first.fingerprint.partition("-")[0]
    assert np.asarray(first.read(0)).shape == (4, 4, 3)
    assert len(first) + len(again) == 30


def test_settling_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    open_source(str(tmp_path), "train")
    long_ago = 1_000_000_000
    os.utime(tmp_path, (long_ago, long_ago))
    before = open_source(str(tmp_path), "train")
    Image.new("RGB", (5, 5)).save(tmp_path / "two.png")
    os.utime(tmp_path, (long_ago, long_ago))  # hides it: the index is now taken as it is
    assert len(open_source(str(tmp_path), "train")) == len(before) == 1
    assert len(open_source(str(tmp_path), "train", rescan=True)) == 2
    (tmp_path / "one.png").unlink()
    assert len(open_source(str(tmp_path), "train")) == 1
