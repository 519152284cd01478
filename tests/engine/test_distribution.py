import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from beit.engine import distribution
from beit.engine.checkpoints import Checkpoints, read_snapshot
from beit.engine.distribution import World, current_world, launch, process_group
from beit.engine.failure import Diverged
from beit.engine.running import RunningStatistics
from beit.errors import Interrupted, UserError
from engine.engine_toy import SETTINGS, hash_of, rows_of, run_toy, start_child

PLAIN = replace(SETTINGS, accumulate=2)
POISON = 8 * 9 + 5  # a sample of step 10, on the second rank


def test_one_gpu_is_not_shared_by_several_ranks() -> None:
    """nccl would refuse it as a duplicate, in words of its own, after a minute."""
    with pytest.raises(UserError, match="cuda:1 is a single GPU for 2 processes"):
        World(1, 2, 1, 2).device("cuda:1")
    assert World().device("cuda:1") == torch.device("cuda", 1)


def test_alone_everything_is_local() -> None:
    with process_group("cpu") as world:
        world.barrier()
        assert world == current_world() == World()
        assert world.sum_host([1.5, 2]) == [1.5, 2] and world.tell("x") == "x"
        assert world.any_host(True) and not world.any_host(False)


def test_too_much_is_refused() -> None:
    for count in (0, 64):
        with pytest.raises(UserError):
            launch(count, [sys.executable, "-c", "pass"], "cuda")


def rank_body(folder: str, rank: int, port: int, poison: int | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if rank == 1:
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # as if on a host of its own
    with process_group("cpu") as world:
        assert world.local_size == 2 - rank
        assert world.sum_host([1.0, float(rank)]) == [2.0, 1.0]
        assert world.tell("grüße" if rank == 0 else "") == "grüße"
        assert world.any_host(rank == 1)
        world.barrier()
        joined_statistics(world)
        try:
            run_toy(Path(folder), PLAIN, chance=False, poison=poison)
        except Diverged:
            os._exit(3)


def joined_statistics(world: World) -> None:
    """Norms of all ranks remember the mean of what each rank's own pictures taught them."""
    norm = torch.nn.BatchNorm1d(1, momentum=0.5)
    running = RunningStatistics(norm, world)
    running.remember()
    spread = float(world.rank + 1)
    norm(torch.tensor([[4.0 - spread], [4.0 + spread]]))
    running.settle(torch.tensor(0.0))
    # Means 4 and 4 onto 0; unbiased variances 2 and 8 onto 1; momentum 0.5.
    assert norm.running_mean is not None and norm.running_mean.tolist() == [2.0]
    assert norm.running_var is not None and norm.running_var.tolist() == [3.0]


def two_ranks(folder: Path, poison: int | None = None) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start_child(rank_body, str(folder), rank, port, poison) for rank in range(2)]
    for process in ranks:
        process.join(60)
    return [process.exitcode for process in ranks]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_toy(tmp_path / "one", SETTINGS, chance=False)
    assert two_ranks(tmp_path / "two") == [0, 0]
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [(r["step"], r["split"]) for r in one] == [(r["step"], r["split"]) for r in two]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    ends = [
        read_snapshot(Checkpoints(tmp_path / n / "checkpoints").path(17)) for n in ("one", "two")
    ]
    for group, tensors in ends[0].tensors.items():
        for name, value in tensors.items():
            if name != "count":
                torch.testing.assert_close(
                    ends[1].tensors[group][name], value, rtol=1e-4, atol=1e-5
                )


def test_nan_on_one_rank_stops_both(tmp_path: Path) -> None:
    assert two_ranks(tmp_path, POISON) == [3, 3]
    dump = tmp_path / "failure-step-00000010"
    assert sorted(p.name for p in dump.iterdir()) == [
        "batch-rank-0.json",
        "batch-rank-1.json",
        "state-before-the-step",
        "step.json",
    ]
    assert [r["step"] for r in rows_of(tmp_path) if r["split"] == "train"] == list(range(1, 10))


def command(mode: str, folder: Path, *more: str) -> tuple[int, str, float]:
    script = Path(__file__).with_name("engine_ranks.py")
    arguments = [sys.executable, str(script), mode, str(folder), *more]
    started = time.monotonic()
    places = [str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.mark.parametrize(
    ("error", "together"),
    [
        (None, True),
        (Interrupted("a stop"), True),
        (Diverged("not a number"), True),
        (UserError("no memory left"), False),
        (KeyError("a bug"), False),
    ],
)
def test_what_one_rank_alone_may_see_waits_for_no_other(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, together: bool
) -> None:
    """nccl's ordered end can last until the time limit when the others sit in a sum."""
    done: list[str] = []

    def destroy(group: object = None) -> None:
        done.append("wait for all" if group is None else "host group")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distribution, "_join", lambda device: World(1, 2))
    monkeypatch.setattr(distribution, "_host_group", object())
    monkeypatch.setattr(
        distribution, "_abort_device_group", lambda: done.append("abort"), raising=False
    )
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    with suppress(Exception, Interrupted), process_group("cuda"):
        if error is not None:
            raise error
    assert done == (["wait for all"] if together else ["abort", "host group"])


def test_a_mistake_that_one_rank_finds_in_the_middle_ends_all_soon(tmp_path: Path) -> None:
    status, told, _ = command("alone", tmp_path)
    assert status == 2 and told.endswith("\nuser: the second rank has no memory left\n")
    assert told.count("no memory left") == 1


def test_a_users_mistake_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    status, told, _ = command("mistake", tmp_path)
    assert status == 2 and told == "user: the second rank does not like it\n"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "status"), [("term", 143), ("int", 130)])
def test_a_stopped_launcher_waits_for_the_ranks(tmp_path: Path, mode: str, status: int) -> None:
    code, told, _ = command(mode, tmp_path / "run")
    assert code == status
    line = told.splitlines()[-1]
    assert line.startswith("interrupted: stopped by SIG") and "the state is saved in" in line
    assert "Traceback" not in told and "torch" not in told
    assert command("plain", tmp_path / "run")[0] == 0
    assert command("plain", tmp_path / "whole")[0] == 0
    assert hash_of(tmp_path / "run") == hash_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_dead_rank_is_named_and_a_restart_recovers(tmp_path: Path) -> None:
    code, told, seconds = command("die", tmp_path / "run")
    assert code == 1 and "rank 1 of 2" in told and "was killed by SIGKILL" in told
    assert seconds < 60
    assert "Traceback" not in told
    code, told, _ = command("die", tmp_path / "again", "--restart")
    assert told.count("was killed by SIGKILL; all ranks are started again (1 of 2)") == 1
    assert code == 0 and command("plain", tmp_path / "whole")[0] == 0
    assert hash_of(tmp_path / "again") == hash_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "starts"), [("alone", 1), ("diverge", 1), ("bug", 3)])
def test_only_what_may_pass_is_started_again(tmp_path: Path, mode: str, starts: int) -> None:
    code, told, _ = command(mode, tmp_path, "--restart")
    assert code == (2 if mode == "alone" else 1)
    assert told.count("started again") == starts - 1


@pytest.mark.slow
def test_a_bug_names_its_rank(tmp_path: Path) -> None:
    code, told, _ = command("bug", tmp_path)
    assert code == 1 and told.endswith("failed: rank 0 of 2 failed: KeyError: 'a bug'\n")


@pytest.mark.slow
def test_ranks_save_and_leave_when_the_launcher_is_killed(tmp_path: Path) -> None:
    code, _, _ = command("kill", tmp_path)
    assert code == -9
    for _ in range(100):
        if Checkpoints(tmp_path / "checkpoints").steps()[-1:] == [7]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the ranks went on")
