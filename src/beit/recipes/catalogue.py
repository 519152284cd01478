"""Every named recipe of every task: which there are, and which one a name means."""

import difflib
from collections.abc import Callable, Mapping
from typing import Literal

from beit.errors import UserError
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.recipes.named import RECIPES
from beit.recipes.named_downstream import CLASSIFY, SEGMENT

Task = Literal["pretrain", "classify", "segment"]
Named = PretrainRecipe | ClassifyRecipe | SegmentRecipe
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


def recipe_named(name: str, task: Task | None = None) -> tuple[Task, Named]:
    """A recipe by name, and whose it is.

    Args:
        name: One that `list_recipes` gives.
        task: Whose recipe is meant. Without it pre-training comes first where several have one.

    Raises:
        UserError: There is no such recipe; the nearest right name is told.
    """
    if task is not None:
        require_recipe_for(task, name)
    for owner, table in TABLES.items():
        if name in table and task in (None, owner):
            return owner, table[name]()
    tables = TABLES.values() if task is None else [TABLES[task]]
    names = list(dict.fromkeys(known for table in tables for known in table))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"there is no recipe {name!r}{'' if task is None else f' for {task}'}; {hint}")


def require_recipe_for(task: Task, name: str) -> None:
    """Refuse the name of a recipe that only other tasks have."""
    owners = [owner for owner, table in TABLES.items() if name in table]
    if owners and task not in owners:
        raise UserError(
            f"{name} is a recipe of {' and '.join(owners)}; for {task} there are "
            f"{', '.join(TABLES[task])}"
        )
