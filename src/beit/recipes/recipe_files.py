"""Recipes that are read from files: a run's recipe.yaml, or one that somebody sent or wrote."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from beit.errors import UserError
from beit.recipes.downstream_models import Recipe, kind_of
from beit.recipes.overrides import LATER_FIELDS, validated

FILE = "recipe.yaml"
PUBLISHED = "recipe.json"  # beside a model that was pushed; JSON is YAML
_ENDINGS = (".yaml", ".yml")


def read_recipe(file: Path) -> dict[str, Any]:
    """Read a recipe as plain data.

    Raises:
        UserError: It is not YAML, or not a recipe.
    """
    try:
        text = file.read_text(encoding="utf-8")
        # A few lines with names for their parts can stand for more than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{file} is not a recipe: it has a YAML alias (*name)")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as a recipe ({reason})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} is not a recipe")
    return tree


def recipe_in(file: Path) -> Recipe:
    """The recipe of any task that a file holds; fields that it lacks are as in earlier versions.

    Raises:
        UserError: It is not YAML, not a recipe, or says something impossible.
    """
    tree = read_recipe(file)
    kind = kind_of(tree)
    for name, value in LATER_FIELDS.items():
        _fill(tree, kind, name, value)
    return validated(kind, tree, f"{file}: ")


def _fill(tree: dict[str, Any], kind: type[BaseModel], name: str, value: Any) -> None:
    """Set a field that recipes of this kind have and this one lacks; optional groups too."""
    first, _, rest = name.partition(".")
    field = kind.model_fields.get(first)
    if field is None or (rest and first not in tree and field.is_required()):
        return
    if not rest:
        tree.setdefault(first, value)
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        group = tree.setdefault(first, {})
        if isinstance(group, dict):
            _fill(group, field.annotation, rest, value)


def recipe_beside(folder: Path) -> Path:
    """The recipe of a run, or of what was published of it.

    Raises:
        UserError: There is neither.
    """
    for name in (FILE, PUBLISHED):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {FILE} and no {PUBLISHED}: give a run, or what it pushed")


def recipe_file(spec: str | Path) -> Path | None:
    """Where the recipe is that a path means: a run's, or the file itself; None for a mere name.

    Raises:
        UserError: It is a path, and there is no recipe.
    """
    path = Path(spec)
    if path.is_dir():
        if (path / FILE).is_file():
            return path / FILE
        raise UserError(f"{path} is not a run folder: it has no {FILE}; give a run or a recipe")
    if path.is_file():
        return path
    if os.sep in str(spec) or path.suffix.lower() in _ENDINGS:
        raise UserError(f"there is no recipe {path}: give a name, a run folder or a .yaml file")
    return None
