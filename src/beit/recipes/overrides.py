"""Changing a recipe by dotted names, and saying clearly what is wrong with a change.

A value is read as YAML 1.2, so that `--optim.lr 3e-4`, `--encoder.image_size [96,96]` and
`--optim.clip null` mean what they look like; it is data and never executed.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from beit.errors import UserError

AnyRecipe = TypeVar("AnyRecipe", bound=BaseModel)
# What changes how fast or how often, but nothing that is trained.
FREE_TO_CHANGE = frozenset(
    {"data.workers", "data.timeout", "engine.log_every", "engine.save_every", "engine.keep"}
    | {"engine.compile"}  # rounds otherwise, as another card does
    | {"data.bad_share"}  # when a run stops, and never what it reads in a bad picture's place
)
# Fields that recipes of finished runs may lack, and what those runs did.
LATER_FIELDS = {
    "tokens.precision": "float32",
    "tokens.listed_only": False,
    "tokens.views": None,
    "optim.schedule": "cosine",
    "tokenizer.optim.schedule": "cosine",
    "class_balance": 0.0,
    "engine.deterministic": False,
    "tokenizer.engine.deterministic": False,
}
# What loses, and what it loses to where both are said.
WON_OVER = {
    "masking.ratio": "masking.count",
    "optim.epochs": "optim.steps",
    "optim.warmup_epochs": "optim.warmup_steps",
}
_NUMBERS = {  # YAML 1.1 takes 3e-4 for a string, 1:30 for 90 and 010 for 8
    "tag:yaml.org,2002:int": re.compile(r"[+-]?(\d|[1-9]\d+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[+-]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][+-]?\d+)?$|[+-]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
}
_KINDS = {"str", "int"}  # how pydantic names what a field of two kinds was tried as
_LONGEST_SHOWN = 60  # characters of a value in a complaint


def dotted_names(recipe: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every leaf of a recipe: its dotted name, its value and its description."""
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            yield from dotted_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""


def deciding_fields(recipe: BaseModel) -> dict[str, Any]:
    """The fields that decide what is trained, by dotted name."""
    return {
        name: value
        for name, value, _ in dotted_names(recipe)
        if name.removeprefix("tokenizer.") not in FREE_TO_CHANGE
    }


def without_later_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields of `LATER_FIELDS` that change nothing."""
    absent = object()
    return {n: v for n, v in fields.items() if v != LATER_FIELDS.get(n, absent)}


def apply_overrides(recipe: AnyRecipe, arguments: Sequence[str], flags: Sequence[str]) -> AnyRecipe:
    """Return the recipe with `--dotted.name value` (or `--dotted.name=value`) applied.

    Args:
        recipe: Where to start from.
        arguments: What the command itself did not understand.
        flags: The command's own flags, offered when a name is close to one of them.

    Raises:
        UserError: Unknown name (with the nearest right one), missing or impossible value.
    """
    changes = dict(_pairs(arguments))
    names = [name for name, _, _ in dotted_names(recipe)]
    for name, text in changes.items():
        if name not in names:
            raise UserError(_unknown(name, names, flags, recipe))
        if text is None:
            raise UserError(f"--{name} needs a value, as in --{name} VALUE")
    return replace(recipe, {name: parse_value(text or "") for name, text in changes.items()})


def changes_of(arguments: Sequence[str]) -> dict[str, Any]:
    """What `--dotted.name value` words say, for a recipe that is yet to be read.

    Raises:
        UserError: A name has no value.
    """
    changes = dict(_pairs(arguments))
    for name, text in changes.items():
        if text is None:
            raise UserError(f"--{name} needs a value, as in --{name} VALUE")
    return {name: parse_value(text or "") for name, text in changes.items()}


def replace(recipe: AnyRecipe, changes: Mapping[str, Any]) -> AnyRecipe:
    """Return a variant of a recipe; keys are dotted names, and the result is validated whole.

    Of a group that is given by some of its fields, the others stay as they are. A field that
    another one wins over is heard: the other is unset, if it is not among the changes.
    """
    tree = recipe.model_dump()
    for name, value in _heard(dict(_fields(changes)), recipe).items():
        *path, last = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UserError(_unknown(name, [n for n, _, _ in dotted_names(recipe)], (), recipe))
        node[last] = value
    return validated(type(recipe), tree)


def _heard(fields: Mapping[str, Any], recipe: BaseModel) -> dict[str, Any]:
    """The changes, and with each that would lose to what the recipe says the winner's end."""
    known = {name for name, _, _ in dotted_names(recipe)}
    unset = {
        f"{group}{winner}": None
        for loser, winner in WON_OVER.items()
        for group in ("", "tokenizer.")
        if fields.get(f"{group}{loser}") is not None and f"{group}{winner}" in known
    }
    return unset | dict(fields)


def _fields(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names with their values, those that groups hold among them."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def validated(kind: type[AnyRecipe], tree: Mapping[str, Any], origin: str = "") -> AnyRecipe:
    """Build a recipe from plain data; pydantic's findings become one sentence."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}{_sentence(error)}") from None


def parse_value(text: str) -> Any:
    """Read one value as YAML data."""
    try:
        return _Reader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError: thousands of digits
        return text


class _Reader(yaml.SafeLoader):
    """Plain values as YAML 1.2 has them: neither dates, nor integers to the base of 8 or 60."""

    yaml_implicit_resolvers = {
        letter: [
            (tag, _NUMBERS.get(tag, pattern))
            for tag, pattern in resolvers
            if not tag.endswith(":timestamp")
        ]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Names and what was said of them, None where nothing was."""
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            raise UserError(
                f"unexpected argument {argument!r}; recipe fields are set as --dotted.name value, "
                "several numbers as one word: 32x48 or '[0.5, 1]'"
            )
        name, equals, value = argument[2:].partition("=")
        said: str | None = value
        if not equals:
            said = None if not waiting or waiting[0].startswith("--") else waiting.pop(0)
        yield name.replace("-", "_"), said


def _unknown(name: str, names: Sequence[str], flags: Sequence[str], recipe: BaseModel) -> str:
    known = [*names, *(flag.lstrip("-") for flag in flags)]
    lasts = {candidate.rsplit(".", 1)[-1]: candidate for candidate in reversed(names)}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        last = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(lasts), n=1, cutoff=0.6)
        near = [lasts[last[0]]] if last else []
    recipe_name = getattr(recipe, "name", "")
    way_out = (
        f"did you mean --{near[0]}?"
        if near
        else f"`beit recipes show {recipe_name}` lists every field"
    )
    return f"there is no option or recipe field --{name}; {way_out}"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "extra_forbidden":
        return f"there is no recipe field {place}"
    if first["type"] == "missing":
        return f"there is no {place}"
    if not place:
        return message
    if first["type"] in ("tuple_type", "list_type"):
        message = "give a list, such as '[224, 320]' or '[0.5, 1]'"
    return f"{place} cannot be {_shown(first.get('input'))}: {message}"


def _shown(value: Any) -> str:
    """A value as it was typed, or nearly, and not all of a very long one."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
