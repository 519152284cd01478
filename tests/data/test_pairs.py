"""Folders of pictures and masks are read right or refused in one sentence before a run."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.data.decoding.decode import BadPicture
from beit.data.pairs import mask_survey
from beit.data.pairs.pair_files import FolderPairs
from beit.data.pairs.pairs import PairSource, check_pairs, open_pairs
from beit.errors import UserError
from data.pair_folders import Mask, add_pair, add_split, pair_folder, some_mask
from oracles.picture_zoo import scene


def _stored(root: Path, split: str, name: str) -> Mask:
    return np.asarray(Image.open(root / "annotations" / split / f"{name}.png"))


def test_a_folder_is_a_source_with_masks(tmp_path: Path) -> None:
    root = pair_folder(tmp_path)
    (root / "palette.txt").write_text("0 0 0\n255 0 0\n0,128,255\n\n")
    pairs = open_pairs(str(root), "train")
    assert len(pairs) == 4 and pairs.classes == ("kind 0", "kind 1", "kind 2")
    assert pairs.palette == ((0, 0, 0), (255, 0, 0), (0, 128, 255))
    for index in range(4):
        assert pairs.identity(index) == f"p{index}.png" and pairs.label(index) == -1
        assert np.array_equal(np.asarray(pairs.read(index)), scene(20 + index, 24))
        assert pairs.mask(index).dtype == np.uint8
        assert np.array_equal(pairs.mask(index), _stored(root, "train", f"p{index}"))
    assert len(open_pairs(str(root), "val")) == 2


def test_masks_that_are_read_in_another_way_are_other_data(tmp_path: Path) -> None:
    """Number 1 is class 1, or class 0 where 0 stands for unlabelled."""
    for split in ("train", "val"):
        add_pair(tmp_path, "a", np.ones((8, 8), np.uint8), split=split)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    plain, reduced = (
        open_pairs(str(tmp_path), "train", reduce_zero_label=reduce) for reduce in (False, True)
    )
    assert plain.classes == reduced.classes
    assert plain.mask(0).max() == 1 and reduced.mask(0).max() == 0
    assert plain.fingerprint != reduced.fingerprint


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("training", "validation", "testing")]
)
def test_the_folders_may_be_called_as_ade20k_calls_them(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    for number, split in enumerate((train, val, test)):
        add_split(tmp_path, split, number + 2)
    for number, split in enumerate(("train", "val", "test")):
        assert len(open_pairs(str(tmp_path), split)) == number + 2  # type: ignore[arg-type]


def test_pictures_and_masks_may_use_different_ones_of_the_names(tmp_path: Path) -> None:
    add_split(tmp_path, "training", masks_in="train")
    assert len(open_pairs(str(tmp_path), "train")) == 4


def test_a_test_split_without_masks_does_not_hinder_the_others(tmp_path: Path) -> None:
    root = pair_folder(tmp_path)
    (root / "images" / "test").mkdir()
    Image.fromarray(scene()).save(root / "images" / "test" / "secret.png")
    for named in (True, False):
        assert open_pairs(str(root), "train").classes[0] == ("kind 0" if named else "class 0")
        (root / "classes.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"images/test have no masks: .*annotations/test$"):
        open_pairs(str(root), "test")


def test_each_picture_finds_its_mask_though_endings_change_the_order(tmp_path: Path) -> None:
    """As text a.jpg stands before a.k.jpg, but a.k.png before a.png."""
    for number, name in enumerate(("a", "a.k", "a-b", "a.a")):
        mask = np.full((8, 8), number, np.uint8)
        add_pair(tmp_path, name, mask, picture=Image.new("RGB", (8, 8)), suffix=".jpg")
    pairs = open_pairs(str(tmp_path), "train")
    found = {pairs.identity(index): int(pairs.mask(index)[0, 0]) for index in range(4)}
    assert found == {"a.jpg": 0, "a.k.jpg": 1, "a-b.jpg": 2, "a.a.jpg": 3}


def test_zero_becomes_ignored_and_the_rest_moves_down(tmp_path: Path) -> None:
    root = pair_folder(tmp_path, classes=2)
    pairs = open_pairs(str(root), "train", reduce_zero_label=True)
    for index in range(len(pairs)):
        stored, mask = _stored(root, "train", f"p{index}"), pairs.mask(index)
        assert np.array_equal(mask[stored == 0], mask[stored == 0] * 0 + 255)
        assert np.array_equal(mask[stored == 255], mask[stored == 255] * 0 + 255)
        inside = (stored != 0) & (stored != 255)
        assert inside.any() and np.array_equal(mask[inside], stored[inside] - 1)
    assert pairs.fingerprint != open_pairs(str(pair_folder(root)), "train").fingerprint
    masks = [pairs.mask(index) for index in range(len(pairs))]
    assert pairs.pixels == tuple(sum(int((m == k).sum()) for m in masks) for k in range(2))


def test_without_names_the_masks_of_all_splits_say_how_many_classes_there_are(
    tmp_path: Path,
) -> None:
    add_pair(tmp_path, "a", some_mask(12, 12, 3))
    add_pair(tmp_path, "b", some_mask(12, 12, 5), split="val")
    train, val = open_pairs(str(tmp_path), "train"), open_pairs(str(tmp_path), "val")
    assert train.classes == val.classes == tuple(f"class {k}" for k in range(5))
    reduced = open_pairs(str(tmp_path), "train", reduce_zero_label=True)
    assert len(reduced.classes) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_picture_and_mask_alike(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    mask = some_mask(20, 24)
    picture = Image.fromarray(mask[..., None].repeat(3, 2))  # each picture is its own mask
    for number, suffix in enumerate((".png", ".tif", ".webp")):
        add_pair(
            tmp_path, f"p{number}", mask, picture=picture, suffix=suffix, exif=exif, lossless=True
        )
    pairs = open_pairs(str(tmp_path), "train")
    for index in range(len(pairs)):
        turned = np.asarray(pairs.read(index))[..., 0]
        assert turned.shape == ((24, 20) if orientation > 4 else (20, 24))
        assert np.array_equal(pairs.mask(index), turned)


def test_a_pickled_source_reads_the_same(tmp_path: Path) -> None:
    """Workers that are spawned get one."""
    pairs = open_pairs(str(pair_folder(tmp_path)), "train")
    copy: PairSource = pickle.loads(pickle.dumps(pairs))
    assert np.array_equal(copy.mask(2), pairs.mask(2)) and copy.classes == pairs.classes


def _no_folder(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def _no_images(root: Path) -> None:
    (root / "images").rename(root / "pictures")


def _no_annotations(root: Path) -> None:
    (root / "annotations").rename(root / "labels")


def _no_split(root: Path) -> None:
    (root / "images" / "train").rename(root / "images" / "first")


def _no_masks_of_the_split(root: Path) -> None:
    (root / "annotations" / "train").rename(root / "annotations" / "first")


def _empty_masks(root: Path) -> None:
    for path in (root / "annotations" / "train").iterdir():
        path.unlink()


def _mask_missing(root: Path) -> None:
    for name in ("p1", "p2"):
        (root / "annotations" / "train" / f"{name}.png").unlink()


def _picture_missing(root: Path) -> None:
    (root / "images" / "train" / "p1.png").unlink()


def _name_differs(root: Path) -> None:
    (root / "annotations" / "train" / "p1.png").rename(root / "annotations" / "train" / "q.png")


def _two_pictures_one_mask(root: Path) -> None:
    Image.fromarray(scene(21, 24)).save(root / "images" / "train" / "p1.jpg")


def _other_size(root: Path) -> None:
    for name in ("p1", "p2"):
        add = root / "annotations" / "train" / f"{name}.png"
        Image.fromarray(some_mask(12, 10)).save(add)


def _colours(root: Path) -> None:
    Image.fromarray(scene(21, 24)).save(root / "annotations" / "train" / "p1.png")


def _sixteen_bits(root: Path) -> None:
    deep = some_mask(21, 24).astype(np.uint16) * 100
    Image.fromarray(deep).save(root / "annotations" / "train" / "p1.png")


def _unknown_value(root: Path) -> None:
    Image.fromarray(some_mask(21, 24, 4)).save(root / "annotations" / "train" / "p1.png")


def _all_ignored(root: Path) -> None:
    for path in (root / "annotations" / "train").iterdir():
        with Image.open(path) as image:
            Image.new("L", image.size, 255).save(path)


def _all_ignored_without_names(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "annotations").rglob("*.png"):
        with Image.open(path) as image:
            Image.new("L", image.size, 255).save(path)


def _binary_as_black_and_white(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "annotations").rglob("*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.where(np.asarray(image) == 0, 0, 255).astype(np.uint8)).save(path)


def _greys(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "annotations").rglob("*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image) % 4 * 60).save(path)


def _no_names(root: Path) -> None:
    (root / "classes.txt").write_text("\n\n")


def _one_name(root: Path) -> None:
    (root / "classes.txt").write_text("everything\n")


def _gap_in_names(root: Path) -> None:
    (root / "classes.txt").write_text("sky\n\nroad\n")


def _name_twice(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nroad\nsky\n")


def _too_many_names(root: Path) -> None:
    (root / "classes.txt").write_text("".join(f"{k}\n" for k in range(256)))


def _short_palette(root: Path) -> None:
    (root / "palette.txt").write_text("1 2 3\n4 5 6\n")


def _no_colour(root: Path) -> None:
    (root / "palette.txt").write_text("1 2 3\n4 5 6\n7 8 256\n")


def _nothing_readable(root: Path) -> None:
    for path in (root / "annotations" / "train").iterdir():
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_folder, r"there is no folder .*spoilt$"),
        (_no_images, "no folder .*images with the pictures; segmentation reads"),
        (_no_annotations, "no folder .*annotations with the masks; segmentation reads"),
        (_no_split, "images has no folder train or training; there is: val. Put .* images/train"),
        (_no_masks_of_the_split, "images/train have no masks: there is no folder .*/train$"),
        (_empty_masks, "no picture in .*annotations/train"),
        (_mask_missing, r"2 of 4 files in .* have no mask of the same name .* first of all p1.png"),
        (_picture_missing, "1 of 4 files in .* have no picture of the same name .* p1.png"),
        (_name_differs, r"1 of 4 files in .*images/train have no mask .* p1.png"),
        (_two_pictures_one_mask, "5 files for 4 masks: several are called p1"),
        (_other_size, r"p1.png in .* is 24 x 21 pixels and its mask 10 x 12 \(and 1 more such\)"),
        (_colours, r"mask of p1.png .* holds colours \(RGB\).*0, 1, 2"),
        (_sixteen_bits, "mask of p1.png .* 16-bit values up to 25500"),
        (_unknown_value, "mask of p1.png in .* the unknown value 3: 3 classes .* 0 to 2, .*zero"),
        (_all_ignored, r"hold no class at all: every pixel is 255"),
        (_all_ignored_without_names, r"hold no class at all"),
        (_binary_as_black_and_white, r"a single class \(class 0\)"),
        (_greys, "hold the numbers 0, 60, 120, 180, .*not look like classes.* or more, in c"),
        (_no_names, "classes.txt names no class"),
        (_one_name, r"a single class \(everything\)"),
        (_gap_in_names, "line 2 of .*classes.txt is empty"),
        (_name_twice, "line 3 of .*classes.txt names sky a second time"),
        (_too_many_names, "names 256 classes, more than 255"),
        (_short_palette, "holds 2 colours for 3 classes"),
        (_no_colour, "line 3 of .*palette.txt is no colour"),
        (_nothing_readable, r"no picture of .* together with its mask; .* p0.png \(mask: "),
    ],
)
def test_what_will_not_do_is_refused_in_a_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    root = pair_folder(tmp_path / "spoilt")
    open_pairs(str(root), "train")  # its survey is remembered: that must not hide what comes
    spoil(root)
    with pytest.raises(UserError, match=told) as refusal:
        open_pairs(str(root), "train", rescan=True)
    assert "\n" not in str(refusal.value)


def test_too_many_unreadable_ones_are_refused_before_training(tmp_path: Path) -> None:
    root = pair_folder(tmp_path)
    (root / "annotations" / "train" / "p1.png").write_bytes(b"no picture")
    for rescan in (True, False):  # seen, and remembered
        train, val = open_pairs(str(root), "train", rescan=rescan), open_pairs(str(root), "val")
        check_pairs(train, val, 0.25)
        with pytest.raises(UserError, match=r"1 of 4 .* more than the 1.0% allowed, p1.png first"):
            check_pairs(train, val, 0.01)


def test_classes_that_do_not_fit_beside_two_ignored_numbers_are_refused(tmp_path: Path) -> None:
    root = pair_folder(tmp_path, classes=255)
    assert len(open_pairs(str(root), "train").classes) == 255
    with pytest.raises(UserError, match="255 classes do not fit"):
        open_pairs(str(root), "train", reduce_zero_label=True)


def test_splits_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    root = pair_folder(tmp_path / "one")
    train, val = open_pairs(str(root), "train"), open_pairs(str(root), "val")
    check_pairs(train, val)
    other = open_pairs(str(pair_folder(tmp_path / "two", classes=4)), "val")
    with pytest.raises(UserError, match=r"\(3\) and .*\(4\) differ, first in: kind 3"):
        check_pairs(train, other)
    add_pair(tmp_path / "three", "alone")
    with pytest.raises(UserError, match="holds a single picture"):
        check_pairs(open_pairs(str(tmp_path / "three"), "train"), val)


def test_masks_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pair_folder(tmp_path)
    looks: list[str] = []
    original = mask_survey._look_at_all

    def counted(pairs: FolderPairs, workers: int) -> mask_survey.Survey:
        looks.append(pairs.name)
        return original(pairs, workers)

    monkeypatch.setattr(mask_survey, "_look_at_all", counted)
    for _ in range(3):
        open_pairs(str(root), "train")
    assert len(looks) == 1
    add_pair(root, "another")
    open_pairs(str(root), "train")
    assert len(looks) == 2, "the fingerprint has changed"
    open_pairs(str(root), "train", rescan=True)
    assert len(looks) == 3


def test_a_mask_mended_in_place_is_noticed(tmp_path: Path) -> None:
    """Without compression it keeps its size, so that nothing tells of it."""
    root = pair_folder(tmp_path, classes=2)
    masks = sorted((root / "annotations" / "train").iterdir())
    stored = [np.asarray(Image.open(path)) for path in masks]
    for path, values in zip(masks, stored, strict=True):
        Image.fromarray(values).save(path, compress_level=0)
    sizes = [path.stat().st_size for path in masks]
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(UserError, match="unknown value 2"):
            open_pairs(str(root), "train")
    for path, values in zip(masks, stored, strict=True):
        mended = np.where(values == 2, 1, values).astype(np.uint8)
        Image.fromarray(mended).save(path, compress_level=0)
    assert [path.stat().st_size for path in masks] == sizes
    assert open_pairs(str(root), "train").classes == ("kind 0", "kind 1")


def test_a_few_bad_files_are_left_to_the_loader(tmp_path: Path) -> None:
    root = pair_folder(tmp_path)
    cut = root / "annotations" / "train" / "p1.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (root / "images" / "train" / "p2.png").write_bytes(b"no picture")
    pairs = open_pairs(str(root), "train")
    with pytest.raises(BadPicture, match="^mask: "):
        pairs.mask(1)
    with pytest.raises(BadPicture, match="not a readable"):
        pairs.read(2)


def test_a_value_that_becomes_unknown_later_is_a_bad_picture(tmp_path: Path) -> None:
    root = pair_folder(tmp_path)
    pairs = open_pairs(str(root), "train")
    Image.fromarray(some_mask(20, 24, 6)).save(root / "annotations" / "train" / "p0.png")
    with pytest.raises(BadPicture, match="mask: unknown value 5"):
        pairs.mask(0)


def test_workers_see_the_same(tmp_path: Path) -> None:
    root = pair_folder(tmp_path, classes=2)
    for workers in (0, 2):
        with pytest.raises(UserError, match="mask of p0.png .* unknown value 2"):
            open_pairs(str(root), "train", workers=workers, rescan=True)


def test_camvid(camvid: Path) -> None:
    pairs = open_pairs(str(camvid), "val")
    assert len(pairs) == 101 and len(pairs.classes) == 11
    assert pairs.palette is not None and pairs.palette[0] == (128, 128, 128)
    assert pairs.read(3).size == (480, 360) and pairs.mask(3).shape == (360, 480)
    assert set(np.unique(pairs.mask(3))) <= {*range(11), 255}
