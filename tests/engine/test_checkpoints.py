import errno
import json
import os
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from beit.engine import checkpoints as module
from beit.engine.checkpoints import Checkpoints, Snapshot
from beit.errors import UserError
from beit.files import write_synced
from engine.engine_toy import Killer, in_child, save_and_die, toy_snapshot


def same(ours: Snapshot, step: int) -> bool:
    expected = toy_snapshot(step)
    assert ours.step == step and dict(ours.state) == dict(expected.state)
    assert ours.tensors.keys() == expected.tensors.keys()
    return all(
        torch.equal(value, ours.tensors[group][name])
        and value.dtype == ours.tensors[group][name].dtype
        for group, tensors in expected.tensors.items()
        for name, value in tensors.items()
    )


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    store = Checkpoints(folder / "checkpoints", keep)
    store.prepare()
    for step in steps:
        store.save(toy_snapshot(step))
    return store


def test_round_trip(tmp_path: Path) -> None:
    loaded = saved(tmp_path, 7).load()
    assert loaded is not None and same(loaded.snapshot, 7) and not loaded.refused
    assert loaded.path.name == "step-00000007"
    assert Checkpoints(tmp_path / "none").load() is None


def test_no_pickle_in_any_file(tmp_path: Path) -> None:
    for path in (saved(tmp_path, 1).path(1)).iterdir():
        assert path.suffix in (".json", ".safetensors")
        data = path.read_bytes()
        header = int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
        json.loads(data[8 : 8 + header] if header else data)


def test_who_may_read_the_run_may_read_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in saved(tmp_path, 1).path(1).iterdir()} == {usual}


def test_every_flip_and_truncation_is_refused(tmp_path: Path) -> None:
    """200 damages, spread over every file of the newest checkpoint; the one before is used."""
    store = saved(tmp_path, 1, 2)
    chance = random.Random(0)
    files = sorted(store.path(2).iterdir())
    for trial in range(200):
        path = files[trial % len(files)]
        data = path.read_bytes()
        place = chance.randrange(len(data))
        flipped = data[place] ^ (1 << chance.randrange(8))
        damaged = data[:place] + bytes([flipped]) + data[place + 1 :]
        path.write_bytes(data[:place] if trial % 4 == 0 else damaged)
        loaded = Checkpoints(store.folder).load()
        assert loaded is not None and loaded.snapshot.step == 1, f"{path.name} at {place}"
        ((name, reason),) = loaded.refused
        assert name == "step-00000002" and ("manifest" in reason or path.name in reason)
        path.write_bytes(data)
    assert same(store.load().snapshot, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    store = saved(tmp_path, 1, 2)
    (store.path(2) / name).unlink()
    loaded = store.load()
    assert loaded is not None and loaded.snapshot.step == 1
    assert loaded.refused == (("step-00000002", f"{name} is missing"),)


def test_a_manifest_that_leaves_a_file_out_is_refused(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    manifest = store.path(2) / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    del files["state.json"]
    manifest.write_bytes(module._manifest_bytes(files))
    loaded = store.load()
    assert loaded is not None and loaded.snapshot.step == 1


def test_none_sound_is_an_error(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    for step in (1, 2):
        (store.path(step) / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint in .* state\.json has 2 bytes instead of"):
        store.load()


def test_one_that_may_not_be_read_is_not_called_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path, 1, 2)

    def forbidden(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(module, "sha256_of", forbidden)
        store.load()
    store.save(toy_snapshot(3))
    assert store.steps() == [2, 3]


def test_a_refused_one_is_replaced_and_does_not_count(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2, 3, keep=3)
    for step in (2, 3):
        path = store.path(step) / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # the size stays right
    fresh = Checkpoints(store.folder, 2)
    loaded = fresh.load()
    assert loaded is not None and loaded.snapshot.step == 1
    fresh.save(toy_snapshot(2))
    assert fresh.steps() == [1, 2]  # the damaged 3 is gone, the sound 1 was not counted out
    assert same(Checkpoints(store.folder).load().snapshot, 2)  # type: ignore[union-attr]


def test_retention(tmp_path: Path) -> None:
    store = saved(tmp_path, *range(1, 8), keep=3)
    assert store.steps() == [5, 6, 7]


def test_at_every_instant_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each call of the system inside a save, what is on the disk can be resumed from."""
    store = saved(tmp_path, 1)
    seen: list[int] = []

    def look(self: Killer, torn: Path | None = None) -> None:
        with monkeypatch.context() as patch:
            patch.undo()
            loaded = Checkpoints(store.folder).load()
        assert loaded is not None
        seen.append(loaded.snapshot.step)

    killer = Killer(0)
    for name in ("fsync", "rename", "unlink", "rmdir", "mkdir"):
        whole = getattr(os, name)

        def call(*arguments: Any, _whole: Any = whole, **options: Any) -> Any:
            look(killer)
            return _whole(*arguments, **options)

        monkeypatch.setattr(os, name, call)
    for step in (2, 3, 4):
        store.save(toy_snapshot(step))
    assert len(seen) > 30 and sorted(set(seen)) == [1, 2, 3, 4] and seen == sorted(seen)


def test_a_power_cut_leaves_no_name_of_what_is_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files and their folder are synced before the rename, and that before a removal."""
    store = saved(tmp_path, 1, 2)
    sync, rename, unlink = os.fsync, os.rename, os.unlink
    synced: set[int] = set()
    done: list[str] = []

    def syncing(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renaming(old: Path, new: Path) -> None:
        assert {path.stat().st_ino for path in (old, *old.iterdir())} <= synced
        rename(old, new)
        synced.discard(store.folder.stat().st_ino)
        done.append("appeared")

    def removing(path: Path, **options: Any) -> None:
        assert store.folder.stat().st_ino in synced
        unlink(path, **options)
        done.append("removed")

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "unlink", removing)
    store.save(toy_snapshot(3))
    assert done[0] == "appeared" and set(done[1:]) == {"removed"}


def test_what_is_there_under_a_name_is_believed_only_when_it_verifies(tmp_path: Path) -> None:
    """As after a resumption from an older one, whose steps are made once more."""
    store = saved(tmp_path, 1, 2)
    file = store.path(2) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    store.save(toy_snapshot(2))
    loaded = store.load()
    assert loaded is not None and same(loaded.snapshot, 2) and not loaded.refused


def test_touches_nothing_it_did_not_make(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    foreign = ["best", "step-00000000", "step-00000001.tmp-mine", "step-1"]
    for name in foreign:
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_text("mine")
    (folder / "step-00000002").symlink_to(folder / "best")
    (folder / "notes.txt").write_text("mine")
    leftover = folder / "step-00000009.tmp-0123456789ab"
    leftover.mkdir()
    for name in ("model.safetensors", ".tmpAb3dEf"):  # safetensors' own unfinished file
        (leftover / name).write_text("half")
    with_notes = folder / "step-00000008.tmp-0123456789ab"
    with_notes.mkdir()
    notes = [with_notes / "notes.txt", with_notes / ".tmpnotes", folder / ".tmpAb3dEf"]
    for path in notes:
        path.write_text("mine")
    (with_notes / ".tmpLink01").symlink_to(folder / "notes.txt")
    store = saved(tmp_path, 3, 4, 5, 6)
    (store.path(5) / "notes.txt").write_text("mine")
    store.save(toy_snapshot(7))
    for name in foreign:
        assert (folder / name / "model.safetensors").read_text() == "mine"
    assert (folder / "step-00000002").is_symlink() and (folder / "notes.txt").exists()
    assert not leftover.exists() and all(path.exists() for path in notes)
    assert (with_notes / ".tmpLink01").is_symlink()
    store.save(toy_snapshot(8))
    assert (store.path(5) / "notes.txt").read_text() == "mine"
    assert store.steps() == [7, 8]


def test_a_foreign_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    store.path(2).mkdir()
    (store.path(2) / "mine").write_text("mine")
    with pytest.raises(UserError, match="the checkpoints before it are intact"):
        store.save(toy_snapshot(2))
    assert (store.path(2) / "mine").exists() and store.steps() == [1]


@pytest.mark.parametrize("at", range(20))
def test_disk_full_leaves_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The disk says ENOSPC at the n-th write, fsync or rename of a save; 20 of 20 stay intact."""
    store = saved(tmp_path, 1, 2)
    calls = 0

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at % 13 + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(module, "save_file", failing(save_file))
    monkeypatch.setattr(module, "write_synced", failing(write_synced))
    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    with pytest.raises(UserError, match="No space left on device"):
        store.save(toy_snapshot(3))
    monkeypatch.undo()
    loaded = Checkpoints(store.folder).load()
    assert loaded is not None and loaded.snapshot.step in (2, 3) and not loaded.refused
    assert same(loaded.snapshot, loaded.snapshot.step)
    assert {p.name for p in store.folder.iterdir()} >= {"step-00000001", "step-00000002"}
    assert not list(store.folder.glob("*.tmp-*"))


def read_only(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_disk_that_also_refuses_to_clean_up_leaves_the_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path, 1, 2)
    monkeypatch.setattr(module, "write_synced", read_only)
    monkeypatch.setattr(module, "_remove_ours", read_only)
    with pytest.raises(UserError, match="step 3 .* the checkpoints before it are intact"):
        store.save(toy_snapshot(3))


def test_a_disk_that_refuses_to_retire_the_oldest_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path, 1, 2)
    monkeypatch.setattr(module, "_remove_ours", read_only)
    with pytest.raises(UserError, match="Read-only file system"):
        store.save(toy_snapshot(3))
    monkeypatch.undo()
    loaded = Checkpoints(store.folder).load()
    assert loaded is not None and loaded.snapshot.step == 3


def test_space_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 5 * 10**6))
    store.require_space(10**6)  # two more of 1 MB and a little
    with pytest.raises(UserError, match=r"5000000 bytes free and the run needs 8097152 "):
        store.require_space(3 * 10**6)
    with pytest.raises(UserError, match=r"the run needs 6097152 "):
        store.require_space(10**6, beside=2 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10))
    with pytest.raises(UserError, match="10 bytes free"):
        store.save(toy_snapshot(2))
    assert store.steps() == [1]


def test_killed_at_every_call_of_a_save(tmp_path: Path) -> None:
    """kill -9 before each write, fsync, rename and removal: all resume, no litter stays."""
    assert in_child(save_and_die, str(tmp_path)) == 0
    trials = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(trials) > 30
    for folder in trials:
        store = Checkpoints(folder / "checkpoints")
        store.prepare()
        loaded = store.load()
        assert loaded is not None and loaded.snapshot.step in (2, 3, 4)
        assert not loaded.refused and same(loaded.snapshot, loaded.snapshot.step)
        store.save(toy_snapshot(5))
        assert len(store.steps()) == 2
        assert {p.name for p in store.folder.iterdir() if any(p.iterdir())} == {
            f"step-{step:08d}" for step in store.steps()
        }
