"""Which labels are learned from, and whether there is anything to learn in a source's classes."""

import math
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beit.data.sources.index import FolderSource
from beit.data.sources.opening import Source, labels_of
from beit.data.sources.part_names import PARTS
from beit.data.sources.subset import Subset
from beit.errors import UserError
from beit.randomness import sample_generator

_AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(%|/ ?class)")
_WAYS = "all, a percentage such as 10%, or a number a class such as 50/class"

Integers = NDArray[np.int64]


def choose_labels(source: Source, amount: str, seed: int) -> Source:
    """The part of a source whose labels are used.

    Every class gives its share, drawn by the seed; a smaller choice of the same seed is part of a
    larger one (`1%` of `10%` of `50/class`), so results differ by the labels added, not by luck.

    Args:
        source: Labelled pictures; those without a label are chosen by "all" alone.
        amount: "all"; "10%" of each class, rounded, at least one; or "50/class".
        seed: The key of the draw.

    Returns:
        The source itself when all of it is chosen.

    Raises:
        UserError: The amount cannot be understood or cannot be had.
    """
    count_of = _parse(amount)
    if count_of is None:
        return source
    labels = labels_of(source)
    if not source.classes or not (labels >= 0).any():
        raise UserError(
            f"{source.name} has no labels to choose {amount} of: put the pictures of each class "
            "into a folder of its name"
        )
    chosen = []
    # In one pass whatever the number of classes; stable, so a class's pictures stay in order.
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels, np.arange(len(source.classes) + 1), sorter=order)
    for label, name in enumerate(source.classes):
        members = order[bounds[label] : bounds[label + 1]]
        count = count_of(len(members))
        if count > len(members):
            raise UserError(
                f"labels {amount!r} cannot be had: class {name} of {source.name} has "
                f"{len(members)} pictures to train on; ask for fewer, or for a percentage, which "
                "takes one at least, or add some"
            )
        chosen.append(_drawn(members, count, seed, draw=0, label=label))
    places = np.sort(np.concatenate(chosen))
    return source if len(places) == len(source) else Subset(source, places)


def draw_labels(labels: ArrayLike, per_class: int, seed: int, draw: int) -> Integers:
    """Choose as many pictures of each class, at random.

    A pure function of its arguments. Within one draw a smaller choice is part of a larger one, so
    that results with 2, 5 and 20 labels differ by the labels that were added and nothing else.

    Args:
        labels: (N,) classes; negative ones are unlabelled and never chosen.
        per_class: How many of each class.
        seed: The run's seed.
        draw: Which draw, from 0.

    Returns:
        (classes * per_class,) indices in increasing order.

    Raises:
        UserError: A class has too few pictures, or there is no label.
    """
    known = np.asarray(labels)
    classes = np.unique(known[known >= 0])
    if not len(classes) or per_class < 1:
        raise UserError("A draw of labels needs labelled pictures and at least one a class.")
    chosen = []
    for label in classes:
        members = np.flatnonzero(known == label)
        if len(members) < per_class:
            raise UserError(
                f"Class {label} has {len(members)} pictures and {per_class} are asked for; "
                "ask for fewer labels a class."
            )
        chosen.append(_drawn(members, per_class, seed, draw, int(label)))
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _drawn(members: Integers, count: int, seed: int, draw: int, label: int) -> Integers:
    """The first `count` of one permutation of a class, whatever the count."""
    generator = sample_generator(seed, epoch=draw, index=label, stream="few-labels")
    return generator.permutation(members)[:count]


def _parse(amount: str) -> Callable[[int], int] | None:
    """How many of a class of so many pictures are wanted; None = all."""
    text = amount.strip().lower()
    if text == "all":
        return None
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise UserError(f"labels {amount!r} are not understood: write {_WAYS}")
    number = float(match[1])
    if match[2] == "%":
        if not 0 < number <= 100:
            raise UserError(f"labels {amount!r} lie outside 0 to 100 per cent: write {_WAYS}")
        return lambda pictures: max(1, math.floor(number * pictures / 100 + 0.5))
    if number < 1 or not number.is_integer():
        raise UserError(f"labels {amount!r} are no whole number above 0: write {_WAYS}")
    return lambda pictures: int(number)


def check_classes(train: Source, validation: Source) -> None:
    """Refuse data that no classifier can be trained on, before anything is spent on it.

    An empty validation source is let through, but no empty folder for it. So is a class without a
    validation picture when the validation part was drawn by chance and not laid out by the user.

    Raises:
        UserError: One picture, folders that are no classes, pictures without a class, an empty
            class, a single class, or classes that differ between training and validation.
    """
    if len(train) < 2:
        count = "one picture" if len(train) else "no picture"
        raise UserError(
            f"{train.name} holds {count} to train on: a classifier needs some of two classes"
        )
    _refuse_splits_as_classes(train)
    laid_out = len(validation) and not getattr(validation, "held_out", False)
    if not laid_out and isinstance(train, FolderSource) and (empty := train.validation_folder()):
        raise UserError(
            f"{empty}/ of {train.name} holds no picture: fill it, or remove it to have some of the "
            "training pictures held out"
        )
    trained = _counts(train, "training")
    validated: Integers = np.zeros(0, np.int64)
    if len(validation):
        validated = _counts(validation, "validation")
        _refuse_other_names(train, validation)
    for label in np.flatnonzero(trained == 0):
        in_validation = bool(validated[label : label + 1].any())
        if in_validation and not laid_out:
            _refuse_all_held_out(train.classes[label], train)
        _refuse_missing(train.classes[label], train, in_validation)
    if isinstance(train, FolderSource) and (lacking := train.empty_classes()):
        _refuse_missing(lacking[0], train, in_validation=False)
    if len(train.classes) == 1:
        raise UserError(
            f"{train.name} has a single class, {train.classes[0]}: a classifier needs two or more"
        )
    missing = np.flatnonzero(validated == 0)
    if len(missing) and not getattr(validation, "held_out", False):
        raise UserError(
            f"training and validation classes differ: {train.classes[missing[0]]} has training "
            f"pictures but none in validation ({validation.name}); give both the same classes"
        )


def _refuse_splits_as_classes(train: Source) -> None:
    """`Training/` and `test/` are no classes, and nothing is learned from taking them for some."""
    if train.classes and {name.lower() for name in train.classes} <= {
        part.decode() for part in PARTS
    }:
        raise UserError(
            f"the folders {', '.join(train.classes)} of {train.name} look like parts of a set and "
            "not like classes: name those to train on and to measure on train and val"
        )


def _counts(source: Source, role: str) -> Integers:
    """Pictures of each class; refuses those without one."""
    labels = labels_of(source)
    if not source.classes or (labels < 0).all():
        raise UserError(
            f"the {role} pictures of {source.name} have no classes: put those of each class into "
            "a folder of its name"
        )
    lacking = np.flatnonzero(labels < 0)
    if len(lacking):
        raise UserError(
            f"{len(lacking)} of {len(source)} {role} pictures of {source.name} have no class, "
            f"{source.identity(int(lacking[0]))} first: move each into the folder of its class"
        )
    return np.bincount(labels, minlength=len(source.classes)).astype(np.int64)


def _refuse_other_names(train: Source, validation: Source) -> None:
    ours, theirs = train.classes, validation.classes
    if ours == theirs:
        return
    differing = sorted(set(ours) ^ set(theirs))
    if not differing:
        raise UserError(
            f"{train.name} and {validation.name} number the same classes differently: give both "
            "the same order"
        )
    name = differing[0]
    where, other = ("training", "validation") if name in set(ours) else ("validation", "training")
    raise UserError(
        f"training and validation classes differ: {name} is a class of {where} but not of {other} "
        f"({train.name}, {validation.name}); give both the same classes"
    )


def _refuse_all_held_out(name: str, train: Source) -> None:
    raise UserError(
        f"class {name} of {train.name} has so few pictures that chance held out all of them for "
        "validation: add some, or lay out folders train and val yourself"
    )


def _refuse_missing(name: str, train: Source, in_validation: bool) -> None:
    if in_validation:
        raise UserError(
            f"training and validation classes differ: {name} has validation pictures but none in "
            f"training ({train.name}); give both the same classes"
        )
    raise UserError(
        f"class {name} of {train.name} has no training picture: add some, or remove its folder"
    )
