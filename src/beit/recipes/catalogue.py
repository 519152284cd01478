"""Every named recipe of every task: which there are, and which one a name or a file means."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

from beit.errors import UserError
from beit.recipes.downstream_models import COMMANDS, ClassifyRecipe, Recipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe, TokenizerRecipe
from beit.recipes.named import RECIPES
from beit.recipes.named_downstream import CLASSIFY, SEGMENT
from beit.recipes.overrides import replace
from beit.recipes.recipe_files import recipe_file, recipe_in

Task = Literal["pretrain", "classify", "segment"]
Named = PretrainRecipe | ClassifyRecipe | SegmentRecipe
Wanted = TypeVar("Wanted", PretrainRecipe, ClassifyRecipe, SegmentRecipe)
_TASKS: dict[type[Recipe], Task] = {
    PretrainRecipe: "pretrain",
    ClassifyRecipe: "classify",
    SegmentRecipe: "segment",
}
TABLES: dict[Task, Mapping[str, Callable[[], Named]]] = {
    "pretrain": RECIPES,
    "classify": CLASSIFY,
    "segment": SEGMENT,
}


def list_recipes() -> dict[str, dict[str, str]]:
    """Every recipe's name and one line on it, by the command that takes it."""
    return {
        task: {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in table.items()}
        for task, table in TABLES.items()
    }


def recipe_named(name: str | Path, task: Task | None = None) -> tuple[Task, Named]:
    """A recipe by name or from a file, and whose it is.

    Args:
        name: One that `list_recipes` gives; or a run folder, or a recipe's .yaml file.
        task: Whose recipe is meant. Without it pre-training comes first where several have one.

    Raises:
        UserError: There is no such recipe; the nearest right name is told. Or a file holds another
            task's.
    """
    known = {one for table in TABLES.values() for one in table}
    file = None if name in known else recipe_file(name)
    if file is not None:
        found = recipe_in(file)
        owner = _TASKS.get(type(found))
        if owner is None or task not in (None, owner):
            raise UserError(_not_of(file, found, task))
        return owner, cast(Named, found)
    name = str(name)
    if task is not None:
        require_recipe_for(task, name)
    for owner, table in TABLES.items():
        if name in table and task in (None, owner):
            return owner, table[name]()
    tables = TABLES.values() if task is None else [TABLES[task]]
    names = list(dict.fromkeys(one for table in tables for one in table))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"there is no recipe {name!r}{'' if task is None else f' for {task}'}; {hint}")


@overload
def recipe(
    name: str | Path,
    changes: Mapping[str, Any] | None = None,
    task: Literal["pretrain"] = "pretrain",
) -> PretrainRecipe: ...


@overload
def recipe(
    name: str | Path, changes: Mapping[str, Any] | None = None, *, task: Literal["classify"]
) -> ClassifyRecipe: ...


@overload
def recipe(
    name: str | Path, changes: Mapping[str, Any] | None = None, *, task: Literal["segment"]
) -> SegmentRecipe: ...


def recipe(
    name: str | Path, changes: Mapping[str, Any] | None = None, task: Task = "pretrain"
) -> Named:
    """A named recipe, with changes by dotted name: `recipe("tiny", {"optim.lr": 3e-4})`.

    Or that of a run, or of a .yaml file: `recipe("runs/photos")`.

    A group's fields may stand together, and its others stay: `{"encoder": {"depth": 3}}`.
    The `tokenizer` field of a pre-training is the recipe of the tokenizer.

    Raises:
        UserError: There is no such recipe or field, or a value is impossible.
    """
    return replace(recipe_named(name, task)[1], changes or {})


def wanted_recipe(spec: str | Path | Wanted, kind: type[Wanted]) -> Wanted:
    """A recipe of one task: as it is, by name, or from a run folder or a file.

    Raises:
        UserError: There is no such recipe, or it is another task's.
    """
    if not isinstance(spec, (str, Path)):
        return spec
    return cast(Wanted, recipe_named(spec, _TASKS[kind])[1])


def wanted_tokenizer_recipe(spec: str | Path | TokenizerRecipe) -> TokenizerRecipe:
    """The same of a tokenizer: that of a pre-training, or one of its own from a file.

    Raises:
        UserError: There is no such recipe, or it is another task's.
    """
    if isinstance(spec, TokenizerRecipe):
        return spec
    file = None if spec in RECIPES else recipe_file(spec)
    if file is not None and isinstance(found := recipe_in(file), TokenizerRecipe):
        return found
    return wanted_recipe(spec, PretrainRecipe).tokenizer


def _not_of(file: Path, found: Recipe, task: Task | None) -> str:
    wants = "" if task is None else f", and beit {task} wants one of its own"
    ways = " (its fields are those of --tokenizer.*)" if isinstance(found, TokenizerRecipe) else ""
    return f"{file} is a recipe of {COMMANDS[type(found)]}{ways}{wants}"


def require_recipe_for(task: Task, name: str) -> None:
    """Refuse the name of a recipe that only other tasks have."""
    owners = [owner for owner, table in TABLES.items() if name in table]
    if owners and task not in owners:
        raise UserError(
            f"{name} is a recipe of {' and '.join(owners)}; for {task} there are "
            f"{', '.join(TABLES[task])}"
        )
