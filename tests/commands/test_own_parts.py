"""Runs with parts of one's own, handed in from Python."""

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import beit
from beit import masking
from beit.commands.assembly.saved_models import load_masked_image_model
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.data.sources.opening import as_data
from beit.errors import UserError
from beit.files import sha256_of
from beit.tasks.pretrain import PretrainTask
from commands.recipe_runs import PRETRAIN, rows_of

PIXELS = {**PRETRAIN, "objective.target": "pixels"}  # no tokenizer has to be trained


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(masking, "MASKERS", dict(masking.MASKERS))
    monkeypatch.setattr(masking, "_CAPACITIES", {})
    yield


def half(generator: np.random.Generator, grid: masking.Grid, **settings: Any) -> masking.Mask:
    mask = np.zeros(grid, np.bool_)
    mask[:, : grid[1] // 2] = True
    return mask if generator.random() < 0.5 else ~mask


@pytest.mark.usefixtures("registry")
def test_a_recipe_takes_a_registered_masking(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no masking 'half': choose one of 'blockwise'"):
        beit.recipe("digits", {"masking.kind": "half"})
    masking.register("half", half)
    beit.pretrain(
        beit.recipe("digits", PIXELS | {"masking.kind": "half"}), "digits", tmp_path / "run"
    )
    assert len(rows_of(tmp_path / "run")) == 4


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_without_room_ends_the_run_with_a_sentence(tmp_path: Path, workers: int) -> None:
    masking.register("half", half, lambda grid, **settings: 1)
    changes = PIXELS | {"masking.kind": "half", "data.workers": workers}
    with pytest.raises(UserError, match="8 patches does not fit a list of 1") as refusal:
        beit.pretrain(beit.recipe("digits", changes), "digits", tmp_path / "run")
    assert "\n" not in str(refusal.value)


class Squares:
    """Pictures that are computed: a square of one of two greys on black."""

    name = "squares"
    classes: tuple[str, ...] = ("dark", "light")

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first
        self.fingerprint = f"squares {first} {count}"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Image.Image:
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[3 + (self.first + index) % 8 :, 4:] = 100 + 100 * self.label(index)
        return Image.fromarray(pixels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        return (np.array(self.read(index))[..., 0] > 0).astype(np.uint8)

    def identity(self, index: int) -> str:
        return f"square {self.first + index}"

    def label(self, index: int) -> int:
        return index % 2


PAIR = (Squares(40), Squares(12, 40))


def test_a_source_of_ones_own_is_trained_on_and_resumed(tmp_path: Path) -> None:
    recipe = beit.recipe("digits", PIXELS | {"data.workers": 1})
    beit.pretrain(recipe, PAIR, tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "source.json").read_text())
    assert (noted["data"], noted["fingerprint"]) == ("squares", "squares 0 40")
    beit.pretrain(recipe, PAIR, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="pictures of the run in .* have changed"):
        beit.pretrain(recipe, (Squares(41), PAIR[1]), tmp_path / "run", resume=True)
    assert "handed over from Python, as squares" in beit.write_report(tmp_path / "run").read_text()
    page = beit.write_report(tmp_path / "run", PAIR).read_text()
    assert "Where it looks" in page and "handed over" not in page


def test_what_no_loader_can_be_sent_is_told(tmp_path: Path) -> None:
    class Local(Squares):
        pass

    forked = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        with pytest.raises(UserError, match="squares cannot be sent to a loader's process"):
            recipe = beit.recipe("digits", PIXELS | {"data.workers": 1})
            beit.pretrain(recipe, (Local(40), Squares(12)), tmp_path / "run")
    finally:
        multiprocessing.set_start_method(forked, force=True)


def test_an_array_is_classified_evaluated_probed_and_planned(tmp_path: Path) -> None:
    source = Squares(60)
    array = np.stack([np.array(source.read(index)) for index in range(60)])
    given = beit.pictures(array, np.arange(60) % 2, source.classes)
    changes = {n: v for n, v in PRETRAIN.items() if not n.startswith("tokenizer.")}
    small = changes | {"optim.batch": 8, "optim.steps": 2}
    beit.classify("digits", given, tmp_path / "run", init="none", changes=small)
    found = beit.evaluate(tmp_path / "run", given, split="all", quiet=True)
    assert (found["pictures"], found["labels"], found["data"]) == (60, ["dark", "light"], "array")
    probed = beit.probe(
        tmp_path / "run", (given, given), out=tmp_path / "probe", method="neighbours", quiet=True
    )
    assert probed["data"] == "array"
    planned = beit.plan("digits", data=array, seconds=0.1, changes=small)
    assert planned["images"] + planned["validation_images"] == 60


def test_masks_of_ones_own_are_segmented(tmp_path: Path) -> None:
    changes = {n: v for n, v in PRETRAIN.items() if not n.startswith("tokenizer.")}
    small = changes | {"optim.batch": 4, "optim.steps": 1}
    beit.segment("digits", PAIR, tmp_path / "run", init="none", changes=small)
    found = beit.evaluate(tmp_path / "run", PAIR, quiet=True)
    assert (found["pictures"], found["labels"]) == (12, ["dark", "light"])
    with pytest.raises(UserError, match="came as one: give a pair"):
        beit.segment("digits", PAIR[0], tmp_path / "other", init="none", changes=small)


GREYS = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (object(), "object is no kind of pictures: give a name, an array"),
        (
            type("Bare", (), {"name": "x", "__len__": len})(),
            "Bare is no kind of pictures .it has no fingerprint, classes, read, identity, label.",
        ),
        ((GREYS,), "1 things were given"),
        ((GREYS, np.arange(4)), "labels as beit.pictures"),
        (GREYS.astype(np.float32), "not float32 of shape .*255"),
        (np.zeros((4, 3, 8, 8), np.uint8), "colours stand last"),
        ([np.zeros((40, 40, 3), np.uint8)] * 2, "np.stack.list"),
    ],
)
def test_what_is_no_pictures_is_told_in_a_sentence(
    given: Any, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        beit.pretrain("digits", given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("member", "value", "complaint"),
    [
        ("fingerprint", 7, "the fingerprint of a Squares is 7"),
        ("classes", ["a"], "give a tuple"),
        ("label", lambda index: 2, "label.0. of a Squares is 2 and it has 2 classes"),
        ("identity", lambda index: index, "must be a text"),
        ("read", lambda index: Image.new("L", (4, 4)), "gives L: it must be a PIL.Image of mode"),
    ],
)
def test_a_source_that_is_not_quite_one_is_told_why(
    member: str, value: Any, complaint: str
) -> None:
    source = Squares(3)
    setattr(source, member, value)
    with pytest.raises(UserError, match=complaint):
        as_data(source)


def test_labels_must_fit_their_array() -> None:
    for labels, classes in (
        ([0, 1], None),
        ([0.0] * 4, None),
        ([0, 1, 2, 3], ["a"]),
        ([-2] * 4, None),
    ):
        with pytest.raises(UserError):
            beit.pictures(GREYS, labels, classes)  # type: ignore[arg-type]
    assert beit.pictures(GREYS, [0, 2, -1, 1]).classes == ("0", "1", "2")


def test_a_tracker_and_a_teacher_follow_a_run(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    steps: list[int] = []

    def follow(task: nn.Module, step: int) -> None:
        assert isinstance(task, PretrainTask)
        steps.append(step)

    beit.pretrain(
        beit.recipe("digits", PRETRAIN),
        "digits",
        tmp_path / "run",
        on_row=rows.append,
        after_step=follow,
    )
    assert steps == [1, 2, 3, 4]  # none of the tokenizer's
    assert [row for row in rows if row["split"] == "train"] == rows_of(tmp_path / "run")
    assert [row for row in rows if row["split"] == "val"] == rows_of(tmp_path / "run", "val")


class Mine(Exception):
    pass


@pytest.mark.parametrize("where", ["on_row", "after_step"])
def test_an_error_in_ones_own_function_comes_as_it_is(tmp_path: Path, where: str) -> None:
    def fail(*_: object) -> None:
        raise Mine

    hooks: dict[str, Any] = {where: fail}
    with pytest.raises(Mine):
        beit.pretrain(beit.recipe("digits", PIXELS), "digits", tmp_path / "run", **hooks)


def test_an_optimiser_of_ones_own_is_gone_on_with(tmp_path: Path) -> None:
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9)

    recipe = beit.recipe("digits", PIXELS | {"engine.save_every": 2, "optim.schedule": "constant"})
    ends = []
    for name, stops in (("straight", False), ("stopped", True)):
        out = tmp_path / name

        def stop(task: nn.Module, step: int, stops: bool = stops) -> None:
            if stops and step == 3:
                raise Mine

        with pytest.raises(Mine) if stops else nullcontext():
            beit.pretrain(recipe, "digits", out, optimiser=make, after_step=stop)
        if stops:
            with pytest.raises(UserError, match="the optimiser is not .*SGD then, AdamW now"):
                beit.pretrain(recipe, "digits", out, resume=True)
            beit.pretrain(recipe, "digits", out, resume=True, optimiser=make)
        ends.append(sha256_of(out / "model.safetensors"))
        assert [row["lr"] for row in rows_of(out)][1:] == [recipe.optim.scaled_lr] * 3
    assert ends[0] == ends[1]


class Levels(nn.Module):
    """A code for each patch of a view of 16 x 16 by its brightness."""

    image_size, grid = (16, 16), (4, 4)
    bounds: Tensor

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.linspace(0, 1, levels + 1)[1:-1])

    @property
    def vocabulary(self) -> int:
        return len(self.bounds) + 1

    def codes(self, images: Tensor) -> Tensor:
        return torch.bucketize(avg_pool2d(images.mean(1), 4), self.bounds)


def test_a_tokenizer_of_ones_own_is_predicted_measured_and_resumed(tmp_path: Path) -> None:
    recipe, run = beit.recipe("digits", PRETRAIN), tmp_path / "run"
    found = beit.pretrain(recipe, "digits", run, tokenizer=Levels())
    assert found["validation"].keys() >= {"accuracy", "neighbour_copy_accuracy", "bits_saved"}
    assert load_masked_image_model(run).head.output.out_features == 5
    beit.pretrain(recipe, "digits", run, tokenizer=Levels(), resume=True)
    for other in (None, Levels(6), tmp_path / "elsewhere"):
        with pytest.raises(UserError, match="made with the tokenizer Levels, handed over"):
            beit.pretrain(recipe, "digits", run, tokenizer=other, resume=True)
    page = beit.write_report(run).read_text()
    assert "Where it looks" in page and "What the model fills in" not in page
    beit.pretrain(recipe, "digits", tmp_path / "on", tokenizer=Levels(), init=run)
    initial = json.loads((tmp_path / "on" / "initial.json").read_text())
    assert not initial["not_used"]  # the head goes on, too


def test_a_loaded_tokenizer_may_be_handed_over(tmp_path: Path) -> None:
    recipe = beit.recipe("digits", PRETRAIN)
    beit.train_tokenizer(recipe.tokenizer, "digits", tmp_path / "tokenizer")
    ends = []
    folder = tmp_path / "tokenizer"
    for name, given in (("path", folder), ("loaded", load_tokenizer(folder))):
        beit.pretrain(recipe, "digits", tmp_path / name, tokenizer=given)
        ends.append(sha256_of(tmp_path / name / "model.safetensors"))
    assert ends[0] == ends[1]
    with pytest.raises(UserError, match="made with another tokenizer than Levels"):
        beit.pretrain(recipe, "digits", tmp_path / "path", tokenizer=Levels(), resume=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"codes": lambda images: torch.zeros(2, 4, 4)}, "are torch.float32 of shape .2, 4, 4."),
        ({"codes": lambda images: torch.full((2, 4, 4), 5)}, "from 0 to 4"),
        ({"grid": (8, 8)}, "gives 8 x 8 codes and the encoder has 4 x 4 patches"),
        ({"grid": 4}, "grid of the tokenizer Levels is 4"),
        ({"bounds": None}, "no weights to be known by"),
    ],
)
def test_what_is_no_tokenizer_is_told_why(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    tokenizer = Levels()
    if "bounds" in changes:
        tokenizer = type("Bare", (), dict.fromkeys(("vocabulary", "codes"), 5))()
        changes = {"image_size": (16, 16), "grid": (4, 4)}
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(UserError, match=complaint):
        beit.pretrain(
            beit.recipe("digits", PRETRAIN), "digits", tmp_path / "run", tokenizer=tokenizer
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="object is no tokenizer .it has no vocabulary"):
        beit.pretrain("digits", "digits", tmp_path / "run", tokenizer=object())  # type: ignore[arg-type]
