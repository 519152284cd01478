"""Values without the folders of whoever made them: nobody need know where your files lie."""

import re
from collections.abc import Mapping
from typing import Any

_PATH = re.compile(r"(?:[A-Za-z]:[/\\]|[/~\\]|\.\.?[/\\]).*", re.DOTALL)
_PATH_INSIDE = re.compile(r"(?<![\w:/~.])~?/(?:[^\s/:;,()'\"]+/)+(?=[^\s/])")
_NO_PATHS = ("labels", "config")  # a class may be called anything


def without_paths(value: Any) -> Any:
    """The same with every path cut down to its last part: nobody need know your folders."""
    if isinstance(value, Mapping):
        return {
            name: inner if name in _NO_PATHS else without_paths(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if _PATH.fullmatch(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _PATH_INSIDE.sub("", value)
