"""The folders that people make for the parts of a data set, in whatever letters.

The same names count everywhere: for folders of pictures and of masks, for shards, for packs and for
data sets of the hub.
"""

from collections.abc import Mapping

TRAINING = (b"train", b"training")
VALIDATION = (b"val", b"validation", b"valid", b"dev")
TEST = (b"test", b"testing")
HELD_OUT = (*VALIDATION, *TEST)  # the first there is is measured on
PARTS = frozenset((*TRAINING, *HELD_OUT))


def named_parts(folders: Mapping[bytes, bool]) -> tuple[bytes | None, bytes | None]:
    """Which folders beside one another are to be trained and to be measured on, None = none.

    A folder `train` makes a part where one to measure on stands beside it, or nothing else. It may
    also be a class: VOC and COCO know trains, beside buses and boats. Then the others hold pictures
    as it does; beside a `train/` that is divided into classes, undivided ones are no classes.

    Args:
        folders: The names, and whether there are folders with pictures in each.
    """
    training, held_out = first_of(TRAINING, folders), first_of(HELD_OUT, folders)
    if training is None or held_out is not None:
        return training, None if training is None else held_out
    others = [divided for name, divided in folders.items() if name != training]
    is_part = not others or (folders[training] and not any(others))
    return (training, None) if is_part else (None, None)


def first_of(wanted: tuple[bytes, ...], names: Mapping[bytes, object]) -> bytes | None:
    """The name that comes first in what is wanted, in its own letters."""
    own = {name.lower(): name for name in sorted(names, reverse=True)}
    return next((own[name] for name in wanted if name in own), None)
