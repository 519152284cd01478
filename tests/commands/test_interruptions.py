"""A run that was killed, stopped and interrupted ends in the same bytes as one that was not."""

import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from beit.commands.training import tokenizer
from commands.recipe_runs import (
    Blow,
    beit,
    ends_of,
    in_child,
    photos,
    pretraining,
    rows_of,
    start_child,
    stopped,
    tokenizing,
)

STEPS = 8
SMALL = {
    "optim__steps": STEPS,
    "optim__batch": 16,  # 38 pictures to train on: 2.4 steps an epoch, 3.4 epochs
    "encoder__drop_path": 0.1,
    "optim__ema": 0.9,
    "engine__save_every": 3,
    "engine__evaluate_every": 2,
    "tokenizer__optim__steps": STEPS,
    "tokenizer__optim__batch": 16,
    "tokenizer__engine__save_every": 3,
    "tokenizer__engine__evaluate_every": 2,
}
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


def words_of(out: Path, data: Path) -> list[str]:
    return [*pretraining(out, data, **SMALL), "--resume"]


def assert_same_end(run: Path, whole: Path) -> None:
    assert ends_of(run) == ends_of(whole)
    for folder in (run, run / "tokenizer"):
        assert [row["step"] for row in rows_of(folder)] == list(range(1, STEPS + 1))
        assert rows_of(folder)[-1]["epoch"] > 3
        assert [row["step"] for row in rows_of(folder, "val")] == [2, 4, 6, 8]
        assert (folder / "result.json").is_file() and (folder / "config.json").is_file()
        assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_five_interruptions_and_more(tmp_path: Path) -> None:
    """kill -9, SIGTERM and Ctrl-C, in steps and before files appear, over six epoch edges."""
    data, run, log = photos(tmp_path / "photos"), tmp_path / "run", tmp_path / "log"
    blows = [
        (Blow(KILL, "TokenizeTask", 1), -KILL),  # before the first checkpoint
        (Blow(TERM, "TokenizeTask", 4), 128 + TERM),
        (Blow(KILL, "TokenizeTask", 6), -KILL),
        (Blow(KILL, file="tokenizer/config.json"), -KILL),  # weights without a description
        (Blow(KILL, file="tokenizer/result.json"), -KILL),
        (Blow(INT, "PretrainTask", 2), 128 + INT),
        (Blow(KILL, "PretrainTask", 5), -KILL),
        (Blow(KILL, "PretrainTask", 7), -KILL),  # the last step
        (Blow(KILL, file="run/config.json"), -KILL),
        (None, 0),
    ]
    for number, (blow, status) in enumerate(blows):
        words = words_of(run, data)
        if number % 3 == 1:
            words += ["--data.workers=1", "--tokenizer.data.workers=1"]
        assert in_child(words, log, blow) == status, log.read_text()
    whole = tmp_path / "whole"
    assert beit(*pretraining(whole, data, **SMALL)).status == 0
    assert_same_end(run, whole)
    told = log.read_text()
    assert "stopped by SIGTERM after step 5 of 8; the state is saved in" in told
    assert "stopped by SIGINT after step 3 of 8" in told
    assert told.count("go on with the same command and --resume") == 2
    went_on = [int(step) for step in re.findall(r"going on from step-(\d+)", told)]
    assert went_on == [5, 6, 8, 8, 3, 3, 6, 8]  # never again from the start


def test_a_stopped_run_says_how_to_go_on_and_exits_with_its_signal(tmp_path: Path) -> None:
    run = tmp_path / "t"
    outcome = stopped(tokenizing(run), "TokenizeTask", 2)
    assert (outcome.status, outcome.out) == (128 + TERM, "")
    assert "after step 2 of 4" in outcome.complaint and "--resume" in outcome.complaint
    assert not (run / "config.json").exists()
    refused = beit(*tokenizing(run))
    assert refused.status == 2 and "is not empty: add --resume" in refused.complaint
    assert beit(*tokenizing(run), "--resume").status == 0
    assert beit(*tokenizing(tmp_path / "whole")).status == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"optim__lr": 0.5}, ["--optim.lr", "0.5"]),
        ({"engine__seed": 3}, ["--engine.seed 0, not 3"]),
        ({"tokenizer__model__vocabulary": 9}, ["--tokenizer.model.vocabulary 8, not 9"]),
    ],
)
def test_another_recipe_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object], names: list[str]
) -> None:
    run = tmp_path_factory.getbasetemp() / "recipe-refused"
    if not run.exists():
        assert beit(*pretraining(run)).status == 0
    before = ends_of(run), (run / "recipe.yaml").read_text()
    refused = beit(*pretraining(run, **changes), "--resume")
    assert refused.status == 2 and all(name in refused.complaint for name in names)
    assert "another --out" in refused.complaint
    other = ["pretrain", "tiny", *pretraining(run)[2:], "--resume"]
    for words, reason in (
        (other, "was made with"),
        ([*tokenizing(run), "--resume"], "holds a run of beit pretrain"),
    ):
        refused = beit(*words)
        assert refused.status == 2 and reason in refused.complaint
    assert (ends_of(run), (run / "recipe.yaml").read_text()) == before


def test_giving_up_remembers_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run stops early where an uninterrupted one would."""
    seen: list[list[float]] = []

    def judge(perplexities: list[float], progress: float) -> bool:
        seen.append(list(perplexities))
        return len(perplexities) == 3

    monkeypatch.setattr(tokenizer, "hopeless", judge)
    words = tokenizing(
        tmp_path / "t",
        relaxation__kl_warmup=0.2,
        optim__steps=8,
        engine__evaluate_every=1,
        engine__save_every=1,
    )
    assert stopped(words, "TokenizeTask", 3).status == 128 + TERM
    outcome = beit(*words, "--resume")
    assert outcome.status == 0 and "the codebook is dead" in outcome.result["stopped_early"]
    assert [len(perplexities) for perplexities in seen] == [1, 2, 3]  # steps 2 | 3, 4
    assert seen[2][:2] == seen[1] and seen[1][:1] == seen[0]
    assert outcome.result["steps"] == 4
    assert beit(*words, "--resume").result["steps"] == 4


@pytest.mark.slow
def test_thirty_kills_at_random_moments(tmp_path: Path) -> None:
    data, run, log = photos(tmp_path / "photos"), tmp_path / "run", tmp_path / "log"
    assert beit(*pretraining(tmp_path / "whole", data, **SMALL)).status == 0
    chance, ends = random.Random(3), set()
    for _ in range(30):
        process = start_child(words_of(run, data), log)
        time.sleep(chance.uniform(0.2, 2.0))
        with suppress(ProcessLookupError):  # it may have finished
            os.kill(process.pid or 0, chance.choice([KILL, KILL, TERM, INT]))
        process.join(600)
        ends.add(process.exitcode)
        if process.exitcode == 0:
            assert_same_end(run, tmp_path / "whole")
            shutil.rmtree(run)
    assert ends <= {-KILL, -TERM, -INT, 128 + TERM, 128 + INT, 0} and -KILL in ends
    assert in_child(words_of(run, data), log) == 0, log.read_text()
    assert_same_end(run, tmp_path / "whole")
