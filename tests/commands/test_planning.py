"""`beit plan`: figures counted by hand, a real short run, and one sentence for what cannot be."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import beit
from beit.commands.planning import calibration, pacing, planning
from beit.commands.planning.calibration import Cost, cost
from beit.commands.planning.footprint import packed_size
from beit.commands.planning.machines import MACHINES, Machine, named_machine
from beit.commands.planning.pacing import Pace
from beit.commands.planning.planning import PlanRequest, plan
from beit.data.sources.opening import open_source
from beit.errors import UserError
from beit.recipes.named import pretrain_recipe, tokenizer_recipe
from beit.recipes.named_downstream import classify_recipe
from beit.recipes.overrides import replace
from beit.tasks.pretrain import PretrainTask
from commands.recipe_runs import PRETRAIN, photos, pictures, pretraining
from commands.recipe_runs import beit as command

IMAGENET_1K = 1_281_167
DALLE = {"tokenizer.model.preset": "dalle", "tokens.precision": "bfloat16"}
FEW = [f"--{name}={json.dumps(value)}" for name, value in PRETRAIN.items()]


def on_h200(name: str, changes: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    asked = PlanRequest(images=IMAGENET_1K, machine="h200", **request)
    return plan(replace(pretrain_recipe(name), changes or {}), asked)


@pytest.mark.parametrize(
    ("name", "share", "live", "banked"),
    [
        ("base", 1.0, 4935, 7316),
        ("base", 0.6, 2961, 4390),
        ("large", 1.0, 1859, 2119),
    ],
)
def test_pictures_a_second_are_those_counted_by_hand(
    name: str, share: float, live: int, banked: int
) -> None:
    stages = on_h200(name, DALLE, share=share)["stages"]
    assert stages["pretrain_live"]["pictures_per_second"] == pytest.approx(live, rel=2e-3)
    assert stages["pretrain_banked"]["pictures_per_second"] == pytest.approx(banked, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "stage", "hours"),
    [
        ("base", "pretrain_live", 115),
        ("base", "pretrain_banked", 78),
        ("large", "pretrain_live", 306),
    ],
)
def test_hours_of_eight_hundred_epochs_are_those_counted_by_hand(
    name: str, stage: str, hours: int
) -> None:
    """Counted at half the rate; the devices share the hours evenly."""
    found = on_h200(name, DALLE, devices=8)
    assert 8 * found["stages"][stage]["seconds"] / 3600 == pytest.approx(hours, rel=0.02)
    assert found["stages"][stage]["steps"] == 500_456


def test_work_and_parameters_are_those_counted_by_hand() -> None:
    for name, parameters in (("base-plus", 91.97), ("large-plus", 311.53)):
        assert on_h200(name)["parameters"] / 1e6 == pytest.approx(parameters, abs=0.006)
    work = on_h200("base", DALLE | {"objective.places": "all"})["gflop_per_picture"]
    assert (work["forward"], work["forward_and_backward"]) == pytest.approx(
        (37.59, 112.55), abs=0.01
    )
    assert work["tokenizer"] == pytest.approx(52.12, abs=0.01)
    asked = PlanRequest(images=IMAGENET_1K, machine="h200")
    work = plan(classify_recipe("base"), asked)["gflop_per_picture"]
    assert (work["forward"], work["forward_and_backward"]) == pytest.approx(
        (35.13, 105.15), abs=0.01
    )


def test_memory_is_state_and_activations() -> None:
    found = on_h200("base", devices=8)
    memory = found["memory"]
    assert memory["state"] == 16 * found["parameters"]
    assert memory["micro_batch"] == 256
    assert memory["activations_per_picture"] / 1e6 == pytest.approx(65, rel=0.05)
    parts = ("state", "average", "half_weights", "tokenizer", "activations")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert memory["fits"] and memory["largest_micro_batch"] > 1024


def test_copies_of_the_weights_and_checkpoints_are_counted() -> None:
    """bfloat16 casts the weights, an average is one more; a checkpoint appears beside the kept."""
    found = on_h200("tiny", {"optim.ema": 0.99, "engine.keep": 3})
    assert found["memory"]["half_weights"] == 2 * found["parameters"]
    assert found["memory"]["average"] == 4 * found["parameters"]
    assert found["disk"]["checkpoint"] == pytest.approx(16 * found["parameters"], rel=0.01)
    assert found["disk"]["checkpoints"] == 4 * found["disk"]["checkpoint"]


def test_what_does_not_fit_is_told_how_it_does() -> None:
    found = on_h200("base", memory=20e9)["memory"]
    largest = found["largest_micro_batch"]
    assert not found["fits"] and 128 < largest < 512
    accumulate = found["accumulate"]
    assert 2048 // accumulate <= largest < 2 * 2048 // accumulate
    again = on_h200("base", {"optim.accumulate": accumulate}, memory=20e9)["memory"]
    assert again["fits"] and again["total"] <= 20e9
    small = on_h200("base", memory=1e9)["memory"]
    assert not small["fits"] and small["accumulate"] is None


def test_the_bank_is_as_large_as_a_real_one(tmp_path: Path) -> None:
    data, bank = photos(tmp_path / "photos"), tmp_path / "bank"
    assert command(*pretraining(tmp_path / "run", data)).status == 0
    words = ["--data", data, "--tokenizer", tmp_path / "run" / "tokenizer", "--out", bank]
    for more in ([], ["--bank-views=2"]):
        made = command("bank", "digits", *words, *more, "--json", *FEW)
        told = command("plan", "digits", "--data", data, "--seconds=0.2", "--json", *more, *FEW)
        disk = told.result["disk"]
        assert (disk["bank"], disk["bank_views"]) == (made.result["bytes"], made.result["views"])
        words[-1] = tmp_path / "bank-of-two"
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        size = sum(file.stat().st_size for file in checkpoint.iterdir())
        assert disk["checkpoint"] < size < disk["checkpoint"] + 40_000  # names, hashes, state


def test_views_of_a_bank_are_those_of_the_recipe() -> None:
    assert on_h200("base")["disk"]["bank"] == 801 * IMAGENET_1K * 392  # 800.0002 epochs
    assert on_h200("base", bank_views=10)["disk"]["bank"] == 10 * IMAGENET_1K * 392


def test_here_is_timed_and_pictures_are_counted(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 57, 3)
    outcome = command("plan", "digits", "--data", data, "--seconds=0.3", "--json", *FEW)
    assert outcome.status == 0, outcome.err
    found = outcome.result
    assert (found["images"], found["validation_images"]) == (57, 3)
    assert set(found["stages"]) == {"tokenizer", "pretrain_live", "bank", "pretrain_banked"}
    assert found["stages"]["pretrain_live"]["steps"] == 4
    assert all(stage["seconds"] > 0 for stage in found["stages"].values())
    assert found["machine"]["assumed_share"] is None and found["machine"]["flops"] > 1e8
    reading = found["input"]
    assert reading["workers"] == 0 and reading["live"] > 0
    live = found["stages"]["pretrain_live"]
    assert live["step_seconds"] > 48 * reading["live"]  # without processes they take turns
    assert found["disk"]["packed"] > 0 and live["bottleneck"] in ("input", "step")


def test_pictures_that_packing_leaves_out_are_left_out(tmp_path: Path) -> None:
    """One that is sound, and longer than a JPEG can be."""
    folder = pictures(tmp_path / "pictures", 2)
    Image.new("RGB", (66_000, 1)).save(folder / "panorama.png")
    assert packed_size((open_source(str(folder), "all"),))["packed_sample"] == 2


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_the_table_says_what_the_object_does(task: str) -> None:
    words = ["plan", "base", "--task", task, "--images", "1000000", "--machine", "h200"]
    printed, found = command(*words), command(*words, "--json").result
    assert printed.status == 0, printed.err
    for part in ("1,000,000 pictures", "790 TFLOP/s", f"{found['parameters']:,}", "It fits into"):
        assert part in printed.out
    for stage in found["stages"].values():
        assert f"{stage['pictures_per_second']:,.0f}" in printed.out
    assert ("a bank of 800 views" in printed.out) == (task == "pretrain")
    for note in found["notes"]:
        assert note in printed.out


def test_the_api_plans_as_the_command_does() -> None:
    found = beit.plan("tiny", images=5000, machine="h200", changes={"optim.steps": 10})
    assert found["stages"]["pretrain_live"]["steps"] == 10
    classified = beit.plan("tiny", images=5000, machine="h200", task="classify")
    assert set(classified["stages"]) == {"classify"}


def test_pixels_need_no_tokenizer() -> None:
    found = on_h200("base", {"objective.target": "pixels"})
    assert set(found["stages"]) == {"pretrain"} and "bank" not in found["disk"]
    assert found["tokenizer_parameters"] is None and found["memory"]["tokenizer"] == 0


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no pictures": ([], ["--images N", "--data SRC"]),
    "both": (["--images=5", "--data=digits"], ["--images N", "--data SRC"]),
    "fewer than one": (["--images=0"], ["--images 0"]),
    "no device": (["--images=5", "--devices=0"], ["--devices 0"]),
    "more devices than pictures": (
        ["--images=5", "--devices=100"],
        ["--devices 100", "batch of 64", "--optim.batch"],
    ),
    "an odd share": (["--images=5", "--devices=3"], ["does not divide", "multiple of 3"]),
    "unknown machine": (["--images=5", "--machine=h20"], ["'h20'", "did you mean h200?"]),
    "a machine far from all": (["--images=5", "--machine=zzz"], ["'zzz'", "there are here, h200"]),
    "no share": (["--images=5", "--machine=h200", "--share=2"], ["--share 2"]),
    "a share of here": (["--images=5", "--share=0.5"], ["--share", "name a --machine"]),
    "no memory": (["--images=5", "--machine=h200", "--memory=-1"], ["--memory"]),
    "a rate nobody knows": (
        ["--images=5", "--machine=h200", "--engine.precision=float32"],
        ["float32 rate of h200", "--engine.precision bfloat16", "--rate"],
    ),
    "no view": (["--images=5", "--bank-views=0"], ["--bank-views 0"]),
    "views of nothing": (
        ["--images=5", "--bank-views=2", "--objective.target=pixels"],
        ["--bank-views has no use"],
    ),
    "no time": (["--images=5", "--seconds=0"], ["--seconds 0"]),
    "a field": (["--images=5", "--optim.stps=3"], ["did you mean --optim.steps?"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_planned_is_one_sentence(name: str) -> None:
    words, expected = MISTAKES[name]
    outcome = command("plan", "digits", *words)
    assert outcome.status == 2 and outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    for part in expected:
        assert part in outcome.complaint


def test_a_tokenizer_and_an_unknown_recipe_are_refused() -> None:
    outcome = command("plan", "base", "--task", "tokenizer", "--images", "5")
    assert outcome.status == 2 and "there are pretrain, classify, segment" in outcome.complaint
    with pytest.raises(UserError, match="within the pre-training's"):
        plan(tokenizer_recipe("digits"), PlanRequest(images=5))
    assert "did you mean tiny?" in command("plan", "tny", "--images", "5").complaint


def test_a_machine_can_be_told() -> None:
    told = named_machine("mine", rate=1e15, share=0.4, memory=8e10)
    assert (told.rate("float32"), told.share, told.memory) == (1e15, 0.4, 8e10)
    assert named_machine("h200", share=0.3).rate("bfloat16") == MACHINES["h200"].rate("bfloat16")
    with pytest.raises(UserError, match="--rate"):
        named_machine("h200", rate=-1.0)


def test_devices_share_the_validation_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_input", lambda *given: planning.NO_INPUT)
    data = str(photos(tmp_path, train=5))
    one, two = (
        plan(pretrain_recipe("base"), PlanRequest(data=data, machine="h200", devices=devices))
        for devices in (1, 2)
    )
    for name, stage in one["stages"].items():
        if name != "bank":
            alone, shared = (s["evaluation_seconds"] for s in (stage, two["stages"][name]))
            assert alone > 0 and shared == pytest.approx(alone / 2)


def test_reading_and_computing_take_turns_or_overlap() -> None:
    def seconds(workers: int, crowded: float, read: float) -> tuple[float, str]:
        return planning._Input(0.0, 0.0, 0.0, workers, crowded).seconds(1.0, read)

    assert seconds(0, 0.0, 0.5) == (1.5, "step")
    assert seconds(0, 0.0, 2.0) == (3.0, "input")
    assert seconds(4, 0.0, 2.0) == (1.0, "step")
    assert seconds(4, 0.0, 8.0) == (2.0, "input")
    assert seconds(1, 1.0, 0.5) == (1.5, "step")  # the loader takes the step's cores


class Clock:
    """A clock that only a call moves on, so that no other work can make a test fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self, seconds: float) -> Callable[[], None]:
        def move() -> None:
            self.now += seconds

        return move

    def calls(self, fixed: float, each: float) -> Callable[[int], Callable[[], None]]:
        return lambda pictures: self.call(fixed + each * pictures)


def test_a_line_is_laid_through_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cost(Clock(monkeypatch).calls(0.02, 0.001), 64, 3.0, torch.device("cpu"))
    assert found.pictures == 64
    assert tuple(found.cost) == pytest.approx((0.02, 0.001, 0.0))


def test_what_takes_too_long_is_timed_small(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = cost(clock.calls(0.0, 0.004), 4096, 0.5, torch.device("cpu"))
    assert 0.25 < clock.now < 1
    assert found.pictures < 64
    assert found.cost.at(4096) == pytest.approx(4096 * 0.004)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_what_does_not_fit_is_timed_smaller(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Clock(monkeypatch).calls(0.01, 0.001)
    fits = 20

    def limited(pictures: int) -> Callable[[], None]:
        def call() -> None:
            if pictures > fits:
                raise error
            make(pictures)()

        return call

    found = cost(limited, 64, 3.0, torch.device("cpu"))
    assert found.pictures == 16
    assert tuple(found.cost) == pytest.approx((0.01, 0.001, 0.0))
    fits = 3  # not even the least that is timed
    with pytest.raises(type(error)):
        cost(limited, 64, 3.0, torch.device("cpu"))


def test_other_errors_of_a_timed_step_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pictures: int) -> Callable[[], None]:
        assert pictures < 64, "a fault of ours"
        return Clock(monkeypatch).call(0.001)

    with pytest.raises(AssertionError, match="a fault of ours"):
        cost(broken, 64, 3.0, torch.device("cpu"))


def test_a_cost_goes_on_to_the_true_depth() -> None:
    deep = Cost(1.0, 3.0).deeper(Cost(1.5, 5.0), 5.0)
    assert deep == Cost(3.5, 13.0)
    assert Cost(1.0, 3.0).deeper(Cost(0.9, 2.9), 5.0) == Cost(1.0, 3.0)  # noise


def test_a_model_too_large_is_timed_shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth 12 by way of 2 and 4 blocks is depth 12 itself where a block costs what each does."""
    changes = {"encoder.depth": 12, "optim.batch": 8, "objective.target": "pixels"}
    recipe = replace(pretrain_recipe("digits"), changes)
    clock, built = Clock(monkeypatch), []

    def steps(task: PretrainTask, *_: object) -> Callable[[int], Callable[[], None]]:
        built.append(len(task.model.encoder.blocks))
        return clock.calls(0.01 + 0.001 * built[-1], 0.001 + 0.002 * built[-1])

    def pace(rate: float) -> Pace:
        built.clear()
        monkeypatch.setattr(pacing, "matrix_rate", lambda *_: rate)
        monkeypatch.setattr(pacing, "steps_of", steps)
        return pacing.measured_pace(recipe, torch.device("cpu"), 1, 4.0, 10)

    whole = pace(1e15)
    assert built == [12] and "12" not in whole.notes[0]
    shallow = pace(1.0)
    assert built == [2, 4] and "2 and 4 of 12 blocks" in shallow.notes[0]
    assert tuple(shallow.step) == pytest.approx(tuple(whole.step))
    assert tuple(whole.step) == pytest.approx((0.022, 0.025, 0.0))


def test_what_is_known_of_machines_is_not_more_than_was_measured() -> None:
    h200: Machine = MACHINES["h200"]
    assert dict(h200.rates) == {"bfloat16": 790e12}
    assert dict(MACHINES["two-cores"].rates) == {"bfloat16": 330e9, "float32": 170e9}


@pytest.mark.slow
def test_a_plan_agrees_with_a_real_run(tmp_path: Path) -> None:
    """Within 20 %, on a machine with nothing else to do; the best of three."""
    recipe = beit.recipe("digits", {"optim.steps": 150, "tokenizer.optim.steps": 150})
    beit.train_tokenizer(replace(recipe.tokenizer, {"optim.steps": 2}), "digits", tmp_path / "warm")
    ratios = []
    for trial in range(3):
        found = beit.plan(recipe, data="digits", seconds=6.0)["stages"]["pretrain_live"]
        began = time.perf_counter()
        out = tmp_path / f"run-{trial}"
        beit.pretrain(recipe, "digits", out, tokenizer=tmp_path / "warm")
        ratios.append(found["seconds"] / (time.perf_counter() - began))
    assert min(abs(ratio - 1) for ratio in ratios) < 0.2, ratios
