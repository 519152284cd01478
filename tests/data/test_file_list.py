from pathlib import Path

import pytest
from PIL import Image

from beit.data.sources.file_list import named_files
from beit.errors import UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with pictures in it, and the user elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "photos" / "old").mkdir(parents=True)
    for name in ("a.png", "b.PNG", "old/c.png"):
        Image.new("RGB", (4, 4)).save(home / "photos" / name)
    (home / "photos" / "note.txt").write_text("no picture")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


def _names(*words: str) -> list[str]:
    files = named_files(words)
    return [files.identity(place) for place in range(len(files))]


def test_files_folders_and_patterns_begin_at_the_home_folder_and_are_named_alike(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = home / "photos"
    both = [str(photos / name) for name in ("a.png", "b.PNG")]
    every = [*both, str(photos / "old" / "c.png")]
    assert _names("~/photos/a.png") == both[:1] and _names("~/photos") == every
    assert _names("~/photos/*") == both and _names("~/photos/**") == every
    monkeypatch.chdir(home)
    assert _names("photos/*") == _names("photos/a.png", "photos/b.PNG") == both


def test_a_word_that_names_nothing_is_refused(home: Path) -> None:
    for word in ("~/photos/*.gif", "nowhere.png", "~/photos/*.txt"):
        with pytest.raises(UserError, match="names no picture: no such file, folder or pattern"):
            named_files([str(home), word])
    with pytest.raises(UserError, match="an empty name names no pictures; write . for this folder"):
        named_files([str(home), ""])
