"""What is worth knowing about data before a run is spent on it, and is no fault."""

from pathlib import Path

from beit.data.decoding.formats import counted, way_out
from beit.data.sources.indexed import IndexedSource
from beit.data.sources.opening import Source, labels_of
from beit.data.sources.part_names import TEST
from beit.data.sources.path_names import printable

_FEW = 5  # names that are told


def remarks(source: Source) -> list[str]:
    """Sentences about what a source holds and does not give, in whatever part.

    A folder of test pictures is meant to be left alone, and not spoken of.
    """
    if not isinstance(source, IndexedSource):
        return []
    found = []
    tests = {name.decode() for name in TEST}
    left = {name: n for name, n in source.left_out.items() if name.lower() not in tests}
    if left and source.training_folder is not None:
        beside = printable(source.training_folder)
        where = [f"{n:,} in {name or 'no folder'}" for name, n in left.items()]
        found.append(f"pictures beside {beside}/ in {source.name} are left out: {_some(where)}")
    if foreign := source.passed_over:
        found.append(
            f"{source.name} holds pictures that cannot be read here and are passed over: "
            f"{counted(foreign)}; to use them {way_out(foreign)}"
        )
    return found


def masks_beside(spec: str) -> list[str]:
    """A sentence about masks that lie beside the pictures, if there are any."""
    if not all(Path(spec, name).is_dir() for name in ("images", "annotations")):
        return []
    return [
        "the masks in annotations/ are not looked at here: `beit segment` reads each of them "
        "before its first step"
    ]


def nearly_black(dark: tuple[int, str], looked_at: int) -> list[str]:
    """A sentence about pictures without a bright pixel, if there are any.

    Args:
        dark: How many, and the first of them.
        looked_at: How many could be read.
    """
    count, first = dark
    if not count:
        return []
    return [
        f"{count:,} of {looked_at:,} pictures are nearly black: no pixel above a quarter of white, "
        f"{first} first. 16-bit greys are read as parts of 65,535: bring those of a camera of 10, "
        "12 or 14 bits to that range before"
    ]


def unmeasured_classes(train: Source, validation: Source) -> list[str]:
    """A sentence about classes of which no picture was held out, if there are any."""
    seen = set(labels_of(validation).tolist())
    missing = [name for label, name in enumerate(train.classes) if label not in seen]
    if not missing or not seen:
        return []
    return [
        f"chance held out pictures of {len(train.classes) - len(missing)} of the "
        f"{len(train.classes)} classes: nothing is measured on {_some(missing)}; lay out folders "
        "train and val to choose yourself"
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" * (len(names) > _FEW))
