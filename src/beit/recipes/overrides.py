"""Changing a recipe by dotted names, and saying clearly what is wrong with a change.

A value is read as YAML, so that `--optim.lr 3e-4`, `--encoder.image_size [96,96]` and
`--optim.clip null` mean what they look like; it is data and never executed.
"""

import difflib
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
# Fields that count no more: fingerprints hold them as all runs had them that counted them.
ONCE_DECIDING: dict[str, Any] = {
    "engine.compile": False,
    "tokenizer.engine.compile": False,
    "data.bad_share": 0.01,
    "tokenizer.data.bad_share": 0.01,
}
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
_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # YAML 1.1 takes 3e-4 for a string


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
    for name in changes:
        if name not in names:
            raise UserError(_unknown(name, names, flags, recipe))
    return replace(recipe, changes)


def replace(recipe: AnyRecipe, changes: Mapping[str, Any]) -> AnyRecipe:
    """Return a variant of a recipe; keys are dotted names, and the result is validated whole."""
    tree = recipe.model_dump()
    for name, value in changes.items():
        *path, last = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UserError(_unknown(name, [n for n, _, _ in dotted_names(recipe)], (), recipe))
        node[last] = value
    return validated(type(recipe), tree)


def validated(kind: type[AnyRecipe], tree: Mapping[str, Any], origin: str = "") -> AnyRecipe:
    """Build a recipe from plain data; pydantic's findings become one sentence."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}{_sentence(error)}") from None


def parse_value(text: str) -> Any:
    """Read one value as YAML data."""
    if _FLOAT.fullmatch(text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            raise UserError(
                f"unexpected argument {argument!r}; recipe fields are set as --dotted.name value"
            )
        name, equals, value = argument[2:].partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"--{name} needs a value, as in --{name} VALUE")
            value = waiting.pop(0)
        yield name.replace("-", "_"), parse_value(value)


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
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "extra_forbidden":
        return f"there is no recipe field {place}"
    if not place:
        return message
    if first["type"] in ("tuple_type", "list_type"):
        message = "give a list, such as '[224, 224]' or '[0.5, 1]'"
    return f"{place} cannot be {first.get('input')!r}: {message}"
