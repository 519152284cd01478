"""Token banks: the same run as with live tokens, and refusals where it would be another."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beit.commands.preparing import banking
from beit.engine.distribution import World
from beit.errors import UserError
from beit.tokenizer.bank import (
    MANIFEST,
    BankManifest,
    BankOrigin,
    BankWriter,
    TokenBank,
    finished_parts,
    read_manifest,
)
from beit.tokenizer.reading import TokenReader
from commands.recipe_runs import (
    PRETRAIN,
    Outcome,
    beit,
    flags,
    photos,
    pictures,
    pretraining,
    rows_of,
    tokenizing,
)

RECIPE: dict[str, Any] = {
    "engine__precision": "float32",
    "optim__lr": 0.01,
    "optim__steps": 5,
    "optim__batch": 12,
    "views__jitter": 0.3,
    "views__flip": True,
}
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-six pictures to train on, one of them unreadable."""
    folder = photos(tmp_path_factory.mktemp("photos"), train=25)
    (folder / "train" / "picture-007a.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    assert beit(*tokenizing(folder, data, data__bad_share=0.2)).status == 0
    return folder


def run_words(out: Path, data: Path, **fields: Any) -> list[str]:
    return pretraining(out, data, **{"data__bad_share": 0.2, **RECIPE, **fields})


def bank_words(out: Path, data: Path, tokenizer: Path, **fields: Any) -> list[str]:
    words = ["bank", "digits", "--data", str(data), "--out", str(out), "--json"]
    changed = {"data__bad_share": 0.2, **RECIPE, **fields}
    named = {name.replace("__", "."): value for name, value in changed.items()}
    return [*words, "--tokenizer", str(tokenizer), *flags({**PRETRAIN, **named})]


@pytest.fixture(scope="module")
def bank(data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "bank"
    outcome = beit(*bank_words(folder, data, tokenizer))
    assert outcome.status == 0, outcome.err
    told = outcome.result
    assert (told["pictures"], told["views"], told["grid"]) == (26, 3, [4, 4])
    assert told["bytes"] == 2 * 26 * 3 * 16 and not told["used_again"]
    assert "78 of 78 views" in outcome.err
    return folder


@pytest.fixture(scope="module")
def live(data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "run"
    assert beit(*run_words(folder, data), "--tokenizer", tokenizer).status == 0
    return folder


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows_of(run)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bank_changes_no_bit_of_a_run(
    data: Path, bank: Path, live: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "run"
    outcome = beit(*run_words(out, data, data__workers=workers), "--bank", bank)
    assert outcome.status == 0, outcome.err
    assert losses(out) == losses(live) and len(losses(out)) == 5
    assert (out / MODEL).read_bytes() == (live / MODEL).read_bytes()
    assert "416 of 416 codes are equal (100.00%)" in outcome.err
    assert rows_of(out, "val")[-1]["loss"] == rows_of(live, "val")[-1]["loss"]


def test_a_run_computes_as_its_bank_was_made(data: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Unless it is told otherwise: one made on a GPU is of float16, and serves a CPU too."""
    bank, run = tmp_path / "bank", tmp_path / "run"
    made = beit(*bank_words(bank, data, tokenizer, tokens__precision="bfloat16"))
    assert made.status == 0, made.err
    outcome = beit(*run_words(run, data), "--bank", bank)
    assert outcome.status == 0, outcome.err
    assert "precision: bfloat16" in (run / "recipe.yaml").read_text()
    assert "416 of 416 codes are equal" in outcome.err
    assert beit(*run_words(run, data), "--bank", bank, "--resume").status == 0


def test_nobody_asks_the_tokenizer_when_there_is_a_bank(
    data: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    exact = TokenReader.codes

    def codes(self: TokenReader, images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return exact(self, images)

    monkeypatch.setattr(TokenReader, "codes", codes)
    assert beit(*run_words(tmp_path / "run", data), "--bank", bank).status == 0
    assert asked == [26, 2]  # the comparison at the start; validation pictures are in no bank


@pytest.mark.parametrize("how", [["--optim.accumulate", "2"], ["--processes", "2"]])
def test_however_the_step_is_cut_up(
    data: Path, bank: Path, tokenizer: Path, tmp_path: Path, how: list[str]
) -> None:
    runs = tmp_path / "banked", tmp_path / "live"
    assert beit(*run_words(runs[0], data), "--bank", bank, *how).status == 0
    assert beit(*run_words(runs[1], data), "--tokenizer", tokenizer, *how).status == 0
    assert losses(runs[0]) == losses(runs[1])
    assert (runs[0] / MODEL).read_bytes() == (runs[1] / MODEL).read_bytes()


def test_nobody_gives_up_while_a_large_bank_is_read(
    data: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank reads every byte of it; the others must wait for longer than they would."""
    happened: list[str] = []
    verify = TokenBank.verify

    def verifying(self: TokenBank, views: int | None = None) -> None:
        happened.append("read")
        verify(self, views)

    def waiting(self: World, seconds: float = 600.0) -> None:
        happened.append("a long wait" if seconds >= 24 * 3600 else "a wait")

    monkeypatch.setattr(TokenBank, "verify", verifying)
    monkeypatch.setattr(World, "barrier", waiting)
    assert beit(*run_words(tmp_path / "run", data), "--bank", bank).status == 0
    assert happened[:2] == ["read", "a long wait"]


def test_views_that_are_used_again(data: Path, tokenizer: Path, live: Path, tmp_path: Path) -> None:
    again = tmp_path / "bank"
    outcome = beit(*bank_words(again, data, tokenizer), "--bank-views", 1)
    assert outcome.status == 0 and outcome.result["used_again"], outcome.err
    runs = tmp_path / "banked", tmp_path / "live"
    assert beit(*run_words(runs[0], data), "--bank", again).status == 0
    words = run_words(runs[1], data, tokens__views=1)
    assert beit(*words, "--tokenizer", tokenizer).status == 0
    assert (runs[0] / MODEL).read_bytes() == (runs[1] / MODEL).read_bytes()
    assert losses(runs[0])[:2] == losses(live)[:2] and losses(runs[0])[4] != losses(live)[4]
    assert "views: 1\n" in (runs[0] / "recipe.yaml").read_text()
    resumed = beit(*run_words(runs[0], data), "--bank", again, "--resume")
    assert resumed.status == 0, resumed.err


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"engine__seed": 1}, "another seed (0 there, 1 here)"),
        ({"views__jitter": 0.1}, "other views (jitter 0.3 there, 0.1 here)"),
        ({"views__flip": False}, "other views (flip True there, False here)"),
        ({"views__scale": [0.5, 1.0]}, "other views (crop scale [0.6, 1.0] there"),
        ({"views__ratio": [1.0, 1.0]}, "other views (crop ratio"),
        ({"tokens__precision": "bfloat16"}, "a tokenizer that computes otherwise (float32 there"),
        ({"optim__steps": 7}, "holds 3 views of each picture and the run takes 4"),
        ({"encoder__image_size": [24, 24]}, "other views (size [16, 16] there, [24, 24] here)"),
        ({"objective__target": "pixels"}, "has no use: objective.target is pixels"),
    ],
)
def test_another_run_is_refused(
    data: Path, bank: Path, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    refused = beit(*run_words(tmp_path / "run", data, **fields), "--bank", bank)
    assert_refused(refused, reason, tmp_path / "run")


def assert_refused(outcome: Outcome, reason: str, out: Path) -> None:
    assert outcome.status == 2 and reason in outcome.complaint, outcome.err
    assert not out.exists()


def test_other_data_and_other_tokenizers_are_refused(
    data: Path, bank: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = pictures(tmp_path / "more", 26)
    assert_refused(beit(*run_words(out, more), "--bank", bank), "of other pictures", out)
    other = tmp_path / "t"
    assert beit(*tokenizing(other, data, data__bad_share=0.2, engine__seed=5)).status == 0
    words = run_words(out, data)
    refused = beit(*words, "--bank", bank, "--tokenizer", other)
    assert_refused(refused, "of another tokenizer", out)
    assert_refused(beit(*words, "--bank", tmp_path / "none"), "there is no bank", out)
    assert_refused(beit(*words, "--bank", data), "is not a bank", out)


def test_a_picture_that_was_edited_in_place_is_named(
    data: Path, bank: Path, tokenizer: Path, tmp_path: Path
) -> None:
    edited = tmp_path / "photos"
    shutil.copytree(data, edited)
    file = edited / "train" / "picture-003.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as large as before
    out = tmp_path / "run"
    refused = beit(*run_words(out, edited), "--bank", bank)
    assert_refused(refused, "other pictures (train/picture-003.jpg was edited)", out)
    refused = beit(*bank_words(bank, edited, tokenizer))
    assert_refused(refused, "is there already", out)
    file.write_bytes(whole)  # written anew, the same: its time alone is another
    assert beit(*run_words(out, edited), "--bank", bank).status == 0


def test_codes_of_another_machine_are_noticed(data: Path, bank: Path, tmp_path: Path) -> None:
    strange = tmp_path / "bank"
    shutil.copytree(bank, strange)
    file = strange / "codes.npy"
    codes = np.load(file)
    manifest = json.loads((strange / MANIFEST).read_text())
    del manifest["digests"]  # as banks were before
    (strange / MANIFEST).write_text(json.dumps(manifest))
    np.save(file, (codes + 1) % 8)
    refused = beit(*run_words(tmp_path / "run", data), "--bank", strange)
    assert refused.status == 2 and "is not what is computed here: 0 of 416" in refused.complaint
    np.save(file, codes[:2])
    refused = beit(*run_words(tmp_path / "run2", data), "--bank", strange)
    assert refused.status == 2 and "is damaged" in refused.complaint


def test_one_bit_of_one_code_is_noticed(
    data: Path, bank: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Wherever it is, before anything is trained; 200 flips in 200 places."""
    rotten = tmp_path / "bank"
    shutil.copytree(bank, rotten)
    file, chance = rotten / "codes.npy", np.random.default_rng(0)
    whole = file.read_bytes()
    for _ in range(200):
        place, bit = int(chance.integers(128, len(whole))), int(chance.integers(8))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"damaged: the codes of view [0-2] in codes\.npy"):
            TokenBank(rotten).verify()
    refused = beit(*run_words(tmp_path / "run", data), "--bank", rotten)
    assert_refused(refused, "is damaged", tmp_path / "run")
    again = beit(*bank_words(rotten, data, tokenizer))
    assert again.status == 2 and "is damaged" in again.complaint
    file.write_bytes(whole)
    assert beit(*bank_words(rotten, data, tokenizer)).status == 0


@pytest.mark.parametrize("killed_by", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_bank_is_gone_on_with(
    data: Path,
    bank: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_by: Any,
) -> None:
    monkeypatch.setattr(banking, "PART", 10)
    monkeypatch.setattr(banking, "_AT_ONCE", {"cpu": 4})
    out, words = tmp_path / "bank", bank_words(tmp_path / "bank", data, tokenizer)
    asked: list[int] = []
    exact = TokenReader.codes

    def codes(self: TokenReader, images: torch.Tensor) -> torch.Tensor:
        if len(asked) == 8:
            raise killed_by
        asked.append(len(images))
        return exact(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(TokenReader, "codes", codes)
        assert beit(*words).status in (2, 130)
    assert not out.exists() and sum(asked) == 28
    other = beit(*bank_words(out, data, tokenizer, engine__seed=9))
    assert other.status == 2 and "the beginning of a bank of another seed" in other.complaint
    made: list[int] = []
    write = BankWriter.write

    def writing(self: BankWriter, start: int, codes: torch.Tensor) -> None:
        made.append(len(codes))
        write(self, start, codes)

    monkeypatch.setattr(BankWriter, "write", writing)
    done = beit(*words)
    assert done.status == 0 and sum(made) == 78 - 20, done.err  # two parts were whole
    assert (out / "codes.npy").read_bytes() == (bank / "codes.npy").read_bytes()
    assert read_manifest(out) == read_manifest(bank)
    names = {path.name for path in out.iterdir()}
    assert names == {MANIFEST, "codes.npy", "tokenizer", "bad_pictures.jsonl", "pictures.npz"}
    assert beit(*words).status == 0 and sum(made) == 58  # it is there already
    assert "is there already" in beit(*words, "--bank-views", 2).complaint


def test_codes_are_on_the_disk_before_a_part_is_called_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would leave zeros that are never made again."""
    origin = BankOrigin("t", "float32", "d", 3, 0, {}, (4, 4), 11)
    manifest = BankManifest(origin, 1, False, {})
    BankWriter.begin(tmp_path, manifest)
    writer = BankWriter(tmp_path, manifest, 2)
    done: list[str] = []
    sync, write = os.fsync, os.write

    def syncing(descriptor: int) -> None:
        file = (tmp_path / "codes.npy").stat().st_ino
        done.append("codes" if os.fstat(descriptor).st_ino == file else "log")
        sync(descriptor)

    def writing(descriptor: int, data: bytes) -> int:
        done.append("name")
        return write(descriptor, data)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "write", writing)
    writer.write(0, torch.ones(2, 4, 4, dtype=torch.int64))
    writer.log(0)
    assert done == ["codes", "name", "log"]
    assert finished_parts(tmp_path, 2) == {0}
    writer.close()


def test_two_processes_make_the_same_bank(
    data: Path, bank: Path, tokenizer: Path, tmp_path: Path
) -> None:
    words = bank_words(tmp_path / "bank", data, tokenizer)
    assert beit(*words, "--processes", 2).status == 0
    assert (tmp_path / "bank" / "codes.npy").read_bytes() == (bank / "codes.npy").read_bytes()


def test_no_rank_writes_before_all_know_their_share(
    data: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that looked late would count parts of the others as done and leave a hole."""
    happened: list[str] = []
    missing, write = banking._missing, BankWriter.write

    def looking(*arguments: Any) -> Any:
        happened.append("look")
        return missing(*arguments)

    def writing(self: BankWriter, start: int, codes: torch.Tensor) -> None:
        happened.append("write")
        write(self, start, codes)

    monkeypatch.setattr(banking, "_missing", looking)
    monkeypatch.setattr(BankWriter, "write", writing)
    monkeypatch.setattr(World, "barrier", lambda *_: happened.append("wait"))
    assert beit(*bank_words(tmp_path / "bank", data, tokenizer)).status == 0
    looked = happened.index("look")
    assert happened[looked : happened.index("write")] == ["look", "wait"]


def test_bad_pictures_have_the_codes_of_what_replaces_them(data: Path, bank: Path) -> None:
    lines = (bank / "bad_pictures.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    assert entry["path"].endswith("picture-007a.jpg") and len(lines) == 1
    index = entry["index"]
    codes = TokenBank(bank).read([0, 1, 2], [index] * 3)
    assert codes.shape == (3, 4, 4) and codes.max() < 8


def test_runs_from_before_banks_go_on(live: Path, data: Path, tokenizer: Path) -> None:
    """A recipe.yaml without the fields that came later is that of the same run."""
    file = live / "recipe.yaml"
    lines = file.read_text().splitlines(keepends=True)
    start = lines.index("tokens:\n")
    file.write_text("".join(lines[:start] + lines[start + 4 :]))
    resumed = beit(*run_words(live, data), "--tokenizer", tokenizer, "--resume")
    assert resumed.status == 0, resumed.err
