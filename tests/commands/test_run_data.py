"""Pictures that are bad, pictures that change, numbers that blow up: told, kept, survivable."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from beit.data.sources.opening import open_source
from beit.engine.checkpoints import Checkpoints
from commands.recipe_runs import beit, photos, pictures, pretraining, rows_of, stopped, tokenizing


def spoil(folder: Path, split: str, count: int) -> list[str]:
    """Cut some pictures of a split in half; their names."""
    source = open_source(str(folder), "val" if split == "val" else "train")
    names = [source.identity(index) for index in range(count)]
    for name in names:  # a picture that is bad already only gets worse
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    return names


def listed(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_bad_pictures_are_named_and_replaced(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    names = spoil(data, "train", 2)
    words = pretraining(run, data, data__bad_share=0.1, tokenizer__data__bad_share=0.1)
    assert beit(*words).status == 0
    for folder in (run, run / "tokenizer"):
        found = listed(folder / "bad_pictures.jsonl")
        assert sorted(entry["path"] for entry in found) == names
        assert all(entry["reason"] for entry in found)
        assert len(rows_of(folder)) == 4


def test_too_many_bad_pictures_stop_the_run_with_the_list(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    names = spoil(data, "train", 2)
    outcome = beit(*tokenizing(run, data))
    assert (outcome.status, outcome.out) == (2, "")
    assert any(name in outcome.complaint for name in names)
    assert "cannot be read, more than the 1.0% allowed" in outcome.complaint
    assert "allow a larger share by --data.bad_share" in outcome.complaint
    assert {entry["path"] for entry in listed(run / "bad_pictures.jsonl")} <= set(names)
    assert not (run / "model.safetensors").exists()
    followed = beit(*tokenizing(run, data, data__bad_share=0.5), "--resume")
    assert followed.status == 0, followed.err


def test_pictures_that_are_not_used_are_told_once(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    (data / "train" / "camera.cr2").touch()
    outcome = beit(*pretraining(tmp_path / "run", data))
    assert outcome.status == 0
    assert outcome.err.count("passed over: 1 .cr2; to use them convert them to JPEG") == 1


def test_bad_validation_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    names = spoil(data, "val", 1)
    outcome = beit(*tokenizing(run, data, engine__evaluate_every=2))
    assert outcome.status == 0 and outcome.result["validation"]["images"] == 1
    found = listed(run / "bad_validation_pictures.jsonl")
    assert [entry["path"] for entry in found] == names
    assert not (run / "bad_pictures.jsonl").exists()
    spoil(data, "val", 2)
    outcome = beit(*tokenizing(tmp_path / "none", data))
    assert outcome.status == 2 and "not one of the 2 validation pictures" in outcome.complaint
    assert names[0] in outcome.complaint and not (tmp_path / "none").exists()


def test_changed_pictures_need_consent(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    spoil(data, "train", 1)
    # A batch is larger than the data, so that the first one meets every picture.
    words = [*tokenizing(run, data, data__bad_share=0.5), "--resume"]
    assert stopped(words, "TokenizeTask", 1).status == 143
    assert listed(run / "bad_pictures.jsonl")
    before = (run / "source.json").read_text(), rows_of(run)
    pictures(tmp_path / "more", 1)
    (tmp_path / "more" / "picture-000.jpg").rename(data / "train" / "another.jpg")
    refused = beit(*words)
    assert refused.status == 2 and (
        "have changed (38 to train on then, 39 now; train/another.jpg was added)"
        in refused.complaint
    )
    assert "--accept-changed-data" in refused.complaint
    assert ((run / "source.json").read_text(), rows_of(run)) == before
    assert beit(*words, "--accept-changed-data").status == 0
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4]
    assert len(listed(run / "bad_pictures.jsonl.before")) == 1
    assert beit(*words).status == 0  # once accepted, these are the run's pictures


def test_others_that_were_accepted_for_a_refused_run_are_still_a_change(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    spoil(data, "train", 1)
    words = [*tokenizing(run, data, data__bad_share=0.5), "--resume"]
    assert stopped(words, "TokenizeTask", 1).status == 143
    pictures(tmp_path / "more", 1)
    (tmp_path / "more" / "picture-000.jpg").rename(data / "train" / "another.jpg")
    kept = ("recipe.yaml", "source.json", "pictures.npz", "bad_pictures.jsonl")
    before = {name: (run / name).read_bytes() for name in kept}
    state = run / "checkpoints" / "step-00000001" / "state.json"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    refused = beit(*words, "--accept-changed-data", data__timeout=9)
    assert refused.status == 2 and "can be trusted" in refused.complaint
    assert {name: (run / name).read_bytes() for name in kept} == before
    state.write_bytes(whole)
    refused = beit(*words)
    assert refused.status == 2 and "train/another.jpg was added" in refused.complaint
    assert beit(*words, "--accept-changed-data").status == 0
    assert len(listed(run / "bad_pictures.jsonl")) == 1  # once more, by its number among the new
    assert beit(*words).status == 0


@pytest.mark.parametrize("longer", [b"", b" "])
def test_a_picture_that_was_edited_in_place_needs_consent(tmp_path: Path, longer: bytes) -> None:
    """Whether its size has changed or not, and although its folder has not."""
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    words = tokenizing(run, data)
    assert beit(*words).status == 0
    file = data / "train" / "picture-005.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) + longer)
    refused = beit(*words, "--resume")
    assert refused.status == 2 and "now; train/picture-005.jpg was edited)" in refused.complaint
    assert beit(*words, "--resume", "--accept-changed-data").status == 0
    assert beit(*words, "--resume").status == 0
    os.utime(file)  # touched, not edited
    assert beit(*words, "--resume").status == 0


def test_a_run_from_before_the_list_of_files_goes_on(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    assert beit(*tokenizing(run, data)).status == 0
    kept = run / "pictures.npz"
    kept.unlink()
    assert beit(*tokenizing(run, data), "--resume").status == 0
    assert kept.is_file()
    kept.write_bytes(b"PK damaged")
    refused = beit(*tokenizing(run, data), "--resume")
    assert refused.status == 2 and "pictures.npz cannot be read" in refused.complaint


def test_moved_pictures_are_the_same(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "t"
    assert beit(*tokenizing(run, data)).status == 0
    moved = data.rename(tmp_path / "moved")
    assert beit(*tokenizing(run, moved), "--resume").status == 0
    assert json.loads((run / "source.json").read_text())["data"] == str(moved)


def test_a_rate_that_blows_up_stops_with_a_dump(tmp_path: Path) -> None:
    run = tmp_path / "t"
    words = tokenizing(
        run, optim__lr=1e4, optim__weight_decay=1e4, optim__steps=9, engine__save_every=1
    )
    outcome = beit(*words)
    assert (outcome.status, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    done = len(rows_of(run))
    assert 0 < done < 9
    dump = run / f"failure-step-{done + 1:08d}"
    assert outcome.complaint.startswith(f"step {done + 1} gave numbers that are not finite")
    assert str(dump) in outcome.complaint and "lower learning rate" in outcome.complaint
    assert f"the last checkpoint is of step {done}" in outcome.complaint
    identity = json.loads((dump / "batch-rank-0.json").read_text())["micro_batches"]
    assert [len(batch["index"]) for batch in identity] == [48]
    loaded = Checkpoints(run / "checkpoints").load()
    assert loaded is not None and loaded.snapshot.step == done and not loaded.refused
    again = beit(*words, "--resume")
    assert again.status == 1 and again.complaint.startswith(f"step {done + 1} gave numbers")


@pytest.mark.parametrize("content", [b'{"data": "x', b"\x85\xff", b"[]", b"\0" * 40])
def test_a_damaged_note_of_the_pictures_is_told(tmp_path: Path, content: bytes) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    words = tokenizing(run, data)
    assert beit(*words).status == 0
    whole = (run / "source.json").read_bytes()
    (run / "source.json").write_bytes(content)
    refused = beit(*words, "--resume")
    assert refused.status == 2 and "source.json, which tells what" in refused.complaint
    assert (run / "source.json").read_bytes() == content
    assert beit(*words, "--resume", "--accept-changed-data").status == 0
    assert (run / "source.json").read_bytes() == whole
    (run / "pictures.npz").write_bytes(content)
    refused = beit(*words, "--resume")
    assert refused.status == 2 and "pictures.npz cannot be read" in refused.complaint
    assert "pickle" not in refused.complaint
