"""What the system refuses is told as what it means for the user."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from beit.engine.distribution import process_group
from beit.errors import UserError, disk_complaint


@pytest.mark.parametrize(
    ("name", "missing_right", "told"),
    [
        ("file", 0, "file cannot be used"),
        ("file", os.R_OK, "file cannot be read"),
        ("file", os.W_OK, "file cannot be written"),
        ("folder", os.X_OK, "folder cannot be read"),
        ("folder", os.W_OK, "folder cannot be written"),
        ("new", os.W_OK, "new cannot be made"),
        ("new", os.X_OK, "new cannot be reached"),
    ],
)
def test_what_is_not_permitted(
    name: str, missing_right: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & missing_right)
    complaint = disk_complaint(PermissionError(errno.EACCES, "Not you", str(tmp_path / name)))
    assert complaint is not None and complaint.startswith(f"{tmp_path}/{told} (Not you): ")


def test_a_file_whose_folder_is_not_ours_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    complaint = disk_complaint(PermissionError(errno.EACCES, "Not you", str(tmp_path / "file")))
    assert complaint is not None and "file cannot be replaced (Not you): " in complaint


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_refused_file_is_a_mistake_on_every_number_of_ranks(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beit.engine import distribution

    def joined(device: str) -> Any:
        return distribution.World(0, ranks)

    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(distribution, "_join", joined)
    monkeypatch.setattr(distribution, "_leave", lambda **how: None)
    with pytest.raises(UserError, match="x is not there"), process_group():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")
