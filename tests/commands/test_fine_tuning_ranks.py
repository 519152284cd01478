"""How a fine-tuning is cut up changes nothing: two processes, two micro-batches, loader workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands.fine_tuning_runs import classifying, coloured, halves, segmenting
from commands.recipe_runs import beit, rows_of

MIXED = {"mixing__mixup": 0.8, "mixing__cutmix": 1.0, "views__erasing": 0.5}
Words = Callable[[Path], list[str]]


def words_of(task: str, folder: Path) -> Words:
    common = {"encoder__drop_path": 0.2, "optim__lr": 0.01}
    if task == "classify":
        data = coloured(folder / "data")
        return lambda out: classifying(out, data, **common, **MIXED)
    data = halves(folder / "data")
    fields: dict[str, Any] = {"decoder__dropout": 0.2, "decoder__auxiliary": True}
    if task == "segment with batch norm":
        fields["decoder__norm"] = "batch"
    return lambda out: segmenting(out, data, **common, **fields)


@pytest.mark.parametrize("task", ["classify", "segment", "segment with batch norm"])
def test_the_same_losses_however_it_is_cut(task: str, tmp_path: Path) -> None:
    words = words_of(task, tmp_path)
    assert beit(*words(tmp_path / "alone")).status == 0
    alone = rows_of(tmp_path / "alone")
    cuts = {
        "halves": ["--optim.accumulate=2"],
        "workers": ["--data.workers=2"],
        "processes": ["--processes", "2"],
    }
    if task == "segment with batch norm":  # it takes its statistics over a micro-batch of all ranks
        del cuts["halves"]
    for name, cut in cuts.items():
        assert beit(*words(tmp_path / name), *cut).status == 0
        losses = [row["loss"] for row in rows_of(tmp_path / name)]
        assert losses == pytest.approx([row["loss"] for row in alone], abs=2e-5), name
        last = rows_of(tmp_path / name, "val")[-1]
        expected = rows_of(tmp_path / "alone", "val")[-1]
        metric = "top1" if task == "classify" else "miou"
        assert last[metric] == pytest.approx(expected[metric], abs=1e-3)
    assert abs(alone[0]["loss"] - alone[-1]["loss"]) > 0.01  # the comparison can fail


def test_a_picture_a_process_is_enough_for_a_batch_norm(tmp_path: Path) -> None:
    words = words_of("segment with batch norm", tmp_path)
    both = ["--processes", "2", "--optim.accumulate=2"]
    assert beit(*words(tmp_path / "run"), *both).status == 0
    refused = beit(*words(tmp_path / "refused"), "--optim.accumulate=4")
    assert refused.status == 2 and "batch norm needs two or more" in refused.complaint
