"""Kept features are those that were computed, kept once, and never half or of something else."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.errors import UserError
from beit.evaluation import feature_store
from beit.evaluation.feature_store import Origin, Parts, kept_features, weights_hash
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder

ORIGIN = Origin("model", "data", "view")
SHAPE = (3, 7, 4)


def _features(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.arange(SHAPE[1]) % 2


def _compute(seed: int = 0, stop: int = SHAPE[1]) -> Callable[[], Parts]:
    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        features, labels = _features(seed)
        for start in range(0, stop, 3):
            part = slice(start, min(start + 3, stop))
            yield features[:, part], labels[part]

    return parts


def _never() -> Parts:
    raise AssertionError("the features were there")


def _killed() -> Iterator[tuple[Tensor, Tensor]]:
    features, labels = _features(1)
    yield features[:, :3], labels[:3]
    raise KeyboardInterrupt


def test_what_is_read_is_what_was_computed_in_half_precision(tmp_path: Path) -> None:
    kept = kept_features(tmp_path / "new" / "train", ORIGIN, SHAPE, _compute())
    features, labels = _features()
    assert kept.features.dtype == np.float16
    np.testing.assert_array_equal(kept.features, features.half().numpy())
    np.testing.assert_array_equal(kept.labels, labels.numpy())
    assert isinstance(kept.features, np.memmap)
    assert kept.note == "computed, none were kept"


def test_they_are_computed_once(tmp_path: Path) -> None:
    first = kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    second = kept_features(tmp_path, ORIGIN, SHAPE, _never)
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert second.note == "kept from before"


@pytest.mark.parametrize(
    ("field", "words"),
    [("model", "another model"), ("data", "other pictures"), ("view", "another view")],
)
def test_another_origin_is_computed_anew_and_says_why(
    tmp_path: Path, field: str, words: str
) -> None:
    kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    other = replace(ORIGIN, **{field: "other"})
    again = kept_features(tmp_path, other, SHAPE, _compute(seed=1))
    assert words in again.note
    np.testing.assert_array_equal(again.features, _features(1)[0].half().numpy())
    assert len(list(tmp_path.iterdir())) == 3, "the old arrays are still there"


def test_pictures_that_could_not_be_read_leave_no_gap(tmp_path: Path) -> None:
    kept = kept_features(tmp_path, ORIGIN, SHAPE, _compute(stop=5))
    assert kept.features.shape == (3, 5, 4)
    np.testing.assert_array_equal(kept.features, _features()[0][:, :5].half().numpy())
    assert kept_features(tmp_path, ORIGIN, SHAPE, _never).features.shape == (3, 5, 4)


def test_a_kill_leaves_the_old_set_whole_and_no_litter(tmp_path: Path) -> None:
    kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    other = replace(ORIGIN, model="other")
    with pytest.raises(KeyboardInterrupt):
        kept_features(tmp_path, other, SHAPE, _killed)
    old = kept_features(tmp_path, ORIGIN, SHAPE, _never)
    np.testing.assert_array_equal(old.features, _features()[0].half().numpy())
    kept_features(tmp_path, other, SHAPE, _compute(seed=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_first_attempt_that_was_killed_counts_as_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        kept_features(tmp_path, ORIGIN, SHAPE, _killed)
    assert not (tmp_path / "manifest.json").exists()
    kept = kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    np.testing.assert_array_equal(kept.features, _features()[0].half().numpy())


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "shape", "version"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    array, manifest = next(tmp_path.glob("features-*")), tmp_path / "manifest.json"
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-20])
    elif damage == "gone":
        array.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        said = json.loads(manifest.read_text())
        said |= {"shape": [3, 6, 4]} if damage == "shape" else {"format": 0}
        manifest.write_text(json.dumps(said))
    kept = kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    assert "computed anew" in kept.note
    np.testing.assert_array_equal(kept.features, _features()[0].half().numpy())


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.npy").write_text("mine")
    kept_features(tmp_path, ORIGIN, SHAPE, _compute())
    assert (tmp_path / "mine.npy").read_text() == "mine"


def test_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture"):
        kept_features(tmp_path, ORIGIN, SHAPE, _compute(stop=0))


def test_broken_weights_are_refused_by_block(tmp_path: Path) -> None:
    features, labels = _features()
    features[1, 2, 3] = torch.nan
    with pytest.raises(UserError, match="after block 2"):
        kept_features(tmp_path, ORIGIN, SHAPE, lambda: [(features, labels)])


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "fsync_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        kept_features(tmp_path, ORIGIN, SHAPE, _compute())


def test_hash_tells_models_apart_by_what_they_compute() -> None:
    config = EncoderConfig(image_size=(8, 8), patch_size=(4, 4), width=8, depth=2, heads=2)
    torch.manual_seed(0)
    encoder = Encoder(config)
    same, other = Encoder(replace(config, drop_path=0.3)), Encoder(replace(config, heads=4))
    same.load_state_dict(encoder.state_dict())
    other.load_state_dict(encoder.state_dict())
    assert weights_hash(same) == weights_hash(encoder) != weights_hash(other)
    other = Encoder(config)
    other.load_state_dict(encoder.state_dict())
    other.get_parameter("blocks.1.mlp.contract.bias").data[3] = 1e-6
    assert weights_hash(other) != weights_hash(encoder)
