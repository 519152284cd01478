"""`beit plan --task segment`: work, windows and memory of a decoder, counted and timed."""

import json
from pathlib import Path

import pytest
import torch

from beit.commands.planning import pacing
from beit.commands.planning.counting import counted
from beit.commands.planning.footprint import kept_for_segmenting
from beit.commands.planning.planned import fresh_task, looks
from beit.commands.planning.planning import PlanRequest, plan
from beit.objectives.pixels import pixel_cross_entropy
from beit.recipes.downstream_models import SegmentRecipe
from beit.recipes.named_downstream import segment_recipe
from beit.recipes.overrides import replace
from beit.tasks.segment import SegmentTask
from commands.fine_tuning_runs import SEGMENT, halves
from commands.recipe_runs import beit as command


def small_segmenter() -> SegmentRecipe:
    return replace(segment_recipe("tiny"), {"encoder.image_size": [32, 32], "encoder.depth": 2})


@pytest.mark.parametrize("kind", ["pup", "upernet"])
@pytest.mark.parametrize("half", [False, True])
def test_what_a_segmenter_keeps_is_what_a_real_one_keeps(kind: str, half: bool) -> None:
    recipe = replace(small_segmenter(), {"decoder.kind": kind})
    told = kept_for_segmenting(recipe, 5, half=half)
    task = fresh_task(recipe, None, 5).train()
    assert isinstance(task, SegmentTask)

    def kept(pictures: int) -> int:
        seen = {p.untyped_storage().data_ptr() for p in (*task.parameters(), *task.buffers())}
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                found[storage.data_ptr()] = storage
            return tensor

        images, target = torch.rand(pictures, 3, 32, 32), torch.zeros(pictures, 32, 32).byte()
        draws = torch.full((pictures, 4), 0.9), torch.rand(pictures, task.model.channel_draws)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            output = task.model(images, *draws)
            heads = (output.logits, output.auxiliary)
            losses = [pixel_cross_entropy(h, target, 255)[0] for h in heads if h is not None]
        assert losses
        return sum(storage.nbytes() for storage in found.values())

    assert told == pytest.approx(kept(5) - kept(4), rel=0.02)


def test_a_segmenter_is_planned_as_the_others_are() -> None:
    recipe = segment_recipe("tiny")
    found = plan(recipe, PlanRequest(images=367, machine="h200"))
    (stage,) = found["stages"].values()
    assert stage["steps"] == recipe.optim.total_steps(367)
    work = found["gflop_per_picture"]
    assert work == pytest.approx(counted(recipe)["gflop_per_picture"], rel=1e-3)
    assert stage["pictures_per_second"] == pytest.approx(395e3 / work["forward_and_backward"])
    assert found["memory"]["fits"] and "bank" not in found["disk"]
    assert "counted with 150 classes" in found["notes"][1]


def test_windows_of_a_segmenter_are_counted() -> None:
    """Pictures of 112 x 149 pixels through windows of 96 that are 64 apart: two rows of two."""
    recipe = segment_recipe("tiny")
    assert recipe.views.short_side == 112 and recipe.encoder.image_size == (96, 96)
    assert looks(recipe) == 4
    assert looks(replace(recipe, {"inference.flip": True})) == 8
    twice = {"inference.scales": [1.0, 2.0]}  # 224 x 298: three rows of five
    assert looks(replace(recipe, twice)) == 4 + 15
    assert looks(replace(recipe, {"inference.mode": "whole"})) == 1


def test_a_segmenter_is_timed_here(tmp_path: Path) -> None:
    data = halves(tmp_path)
    words = ["plan", "digits", "--task", "segment", "--data", data, "--seconds=0.3", "--json"]
    outcome = command(*words, *[f"--{name}={json.dumps(value)}" for name, value in SEGMENT.items()])
    assert outcome.status == 0, outcome.err
    found = outcome.result
    assert (found["images"], found["validation_images"]) == (6, 3)
    stage = found["stages"]["segment"]
    assert stage["steps"] == 6 and stage["evaluation_seconds"] > 0
    assert found["input"]["live"] > 0 and "packed" not in found["disk"]


def test_a_deep_segmenter_is_timed_with_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its decoder was told to read blocks that few have not."""
    monkeypatch.setattr(pacing, "_GUESS", 1e-9)
    changes = {"decoder.layers": [5], "encoder.image_size": [32, 32], "optim.batch": 4}
    recipe = replace(segment_recipe("tiny"), changes)
    found = plan(recipe, PlanRequest(images=9, seconds=0.2))
    assert "timed with 2 and 4 of 6 blocks" in found["notes"][0]


def test_a_batch_is_not_cut_into_single_pictures_for_batch_norm() -> None:
    """Such a run would be refused; with group norms, or on two devices, it is none."""

    def told(devices: int = 1, **changes: str) -> dict[str, object]:
        fields = {"optim.batch": 4 * devices, **{f"decoder.{k}": v for k, v in changes.items()}}
        recipe = replace(segment_recipe("base"), fields)
        request = PlanRequest(images=100, machine="h200", memory=2.5e9, devices=devices)
        found: dict[str, object] = plan(recipe, request)["memory"]
        assert (found["fits"], found["largest_micro_batch"]) == (False, 1)
        return found

    assert told()["accumulate"] is None
    assert told(norm="group")["accumulate"] == told(devices=2)["accumulate"] == 4
