import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beit.engine import failure as failure_module
from beit.engine import fit as fit_module
from beit.engine.checkpoints import Checkpoints, read_snapshot
from beit.engine.failure import Diverged
from beit.engine.fit import fit
from beit.engine.protocol import Cutting, StepContext, StepOutput
from beit.engine.step import TrainingStep
from beit.errors import UserError
from engine.engine_toy import SETTINGS, ToyTask, rows_of, run_toy, toy_batches

POISON = 8 * 9 + 3  # a sample of step 10


class Deferred(TrainingStep):
    """Steps as on a GPU: the host does not look."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.deferred = True


@pytest.mark.parametrize("deferred", [False, True])
def test_nan_stops_at_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deferred: bool
) -> None:
    """Also when the host only looks 5 steps later, nothing bad is applied, logged or saved."""
    settings = replace(SETTINGS, log_every=15, evaluate_every=0, save_every=4)
    if deferred:
        monkeypatch.setattr(fit_module, "TrainingStep", Deferred)
    with pytest.raises(Diverged, match=r"^step 10 gave .*loss nan.*step 8: try [^.]*$"):
        run_toy(tmp_path, settings, poison=POISON)
    dump = tmp_path / "failure-step-00000010"
    (micro,) = json.loads((dump / "batch-rank-0.json").read_text())["micro_batches"]
    batch = next(toy_batches(settings)(8 * 9))
    assert micro == {"index": batch.index.tolist(), "epoch": [1] * 8}
    assert json.loads((dump / "step.json").read_text())["loss"] == "nan"
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.steps() == [4, 8]
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 10))
    before = read_snapshot(dump / "state-before-the-step")
    monkeypatch.undo()
    run_toy(tmp_path / "other", replace(settings, save_every=9))
    expected = read_snapshot(tmp_path / "other" / "checkpoints" / "step-00000009")
    assert before.step == 9 and before.state["samples_seen"] == 72
    for group, tensors in expected.tensors.items():
        for name, value in tensors.items():
            if name != "count":  # a buffer that counts forward passes, also of steps not applied
                found = before.tensors[group][name]
                if deferred and group == "average":  # moved by another formula, the same
                    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
                else:
                    assert found.equal(value), name


def test_a_disk_that_takes_no_dump_does_not_hide_what_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state.json")

    monkeypatch.setattr(failure_module, "write_snapshot", full)
    with pytest.raises(Diverged, match=r"^step 10 gave .*nothing was dumped \(.*No space"):
        run_toy(tmp_path, poison=POISON)


def test_half_a_dump_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        run_toy(tmp_path, poison=POISON)
    dump = tmp_path / "failure-step-00000010" / "state-before-the-step"
    (dump / "manifest.json").unlink()
    (dump / "model.safetensors").write_bytes(b"half")
    with pytest.raises(Diverged):
        run_toy(tmp_path, poison=POISON)
    assert read_snapshot(dump).step == 9


def test_what_failed_can_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        run_toy(tmp_path, poison=POISON)
    with pytest.raises(Diverged):  # the same again, and the dump is there already
        run_toy(tmp_path, poison=POISON)
    assert run_toy(tmp_path).step == 17
    assert [r["step"] for r in rows_of(tmp_path) if r["split"] == "train"] == list(range(1, 18))


@pytest.mark.parametrize("deferred", [False, True])
def test_a_last_step_that_ruins_the_weights_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deferred: bool
) -> None:
    """Its own loss is finite, and no step follows that would show it."""
    settings = replace(SETTINGS, learning_rate=1e30, warmup_steps=0, total_steps=1, clip=None)
    if deferred:
        monkeypatch.setattr(fit_module, "TrainingStep", Deferred)
    sentence = (
        r"^step 1, the last, left weights whose loss is not finite \((inf|nan)\).*: try [^.]*$"
    )
    with pytest.raises(Diverged, match=sentence):
        run_toy(tmp_path, settings)
    dump = tmp_path / "failure-step-00000001"
    assert (dump / "batch-rank-0.json").is_file()
    after = read_snapshot(dump / "state-after-the-step")
    assert after.step == 1 and after.state["samples_seen"] == 8
    assert after.tensors["model"]["net.0.weight"].abs().max() > 1e20
    assert not Checkpoints(tmp_path / "checkpoints").steps()
    assert [row["split"] for row in rows_of(tmp_path)] == ["train"]  # it was not evaluated


def test_without_a_folder_it_is_one_sentence() -> None:
    settings = replace(SETTINGS, evaluate_every=0)
    with pytest.raises(Diverged, match="nothing was dumped, there is no checkpoint: try"):
        fit(ToyTask(), toy_batches(settings, poison=0), settings)


def test_infinite_gradient_with_a_finite_loss() -> None:
    class Steep(ToyTask):
        def forward(self, batch: object, context: StepContext) -> StepOutput:
            output = super().forward(batch, context)  # type: ignore[arg-type]
            # sqrt has an infinite slope at 0, times a factor that is 0 only in value
            root = (self.table.sum() * 0.0 + self.table[0, 0].square()).sqrt()
            return output._replace(loss=output.loss + root)

    settings = replace(SETTINGS, evaluate_every=0, warmup_steps=0)
    task = Steep()
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    with pytest.raises(Diverged, match=r"^step 1 gave .*loss \d.*gradient norm nan"):
        fit(task, toy_batches(settings), settings)
    for name, value in task.named_parameters():
        assert value.equal(before[name]), name


class Hungry(ToyTask):
    def forward(self, batch: object, context: StepContext) -> StepOutput:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class HungryPairs(Hungry):
    def cutting(self) -> Cutting:
        return Cutting(2, "pairs are then others")


def test_out_of_memory_names_the_next_value() -> None:
    settings = replace(SETTINGS, global_batch=12, accumulate=2)
    text = (
        "cpu ran out of memory at step 1 with 6 pictures at a time: set accumulate to 4 "
        r"\(3 at a time\) in a run of another --out; the result stays the same"
    )
    with pytest.raises(UserError, match=text):
        fit(Hungry(), toy_batches(settings), settings)
    settings = replace(SETTINGS, accumulate=8)
    with pytest.raises(UserError, match="choose a smaller model"):
        fit(Hungry(), toy_batches(settings), settings)


@pytest.mark.parametrize(
    ("batch", "accumulate", "advice"),
    [(24, 2, r"4 \(6"), (12, 2, r"6 \(2"), (12, 6, "choose a smaller")],
)
def test_out_of_memory_minds_what_a_task_says_of_cutting(
    batch: int, accumulate: int, advice: str
) -> None:
    settings = replace(SETTINGS, global_batch=batch, accumulate=accumulate)
    with pytest.raises(UserError, match=advice) as caught:
        fit(HungryPairs(), toy_batches(settings), settings)
    assert "stays the same" not in str(caught.value)
    assert "smaller" in advice or "pairs are then others" in str(caught.value)


def test_disk_full_stops_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-00000008" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr("beit.engine.checkpoints.save_file", failing)
    with pytest.raises(UserError, match="the checkpoint of step 8 could not be written"):
        run_toy(tmp_path)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert run_toy(tmp_path).step == 17


def test_a_full_disk_is_seen_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(UserError, match="1000 bytes free and the run needs"):
        run_toy(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


class _Usage:
    free = 1000
