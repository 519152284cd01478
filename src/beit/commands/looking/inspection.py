"""Looking before running: what a recipe is and costs, what a data source holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from beit.data.sources.indexed import Split
from beit.errors import UserError
from beit.recipes.catalogue import Task, list_recipes, recipe_named
from beit.recipes.downstream_models import ClassifyRecipe, Recipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.recipes.overrides import apply_overrides, dotted_names


def show_recipe(
    name: str, overrides: Sequence[str], *, task: Task | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Resolve a recipe and count its parameters and work; print it unless `quiet`."""
    owner, found = recipe_named(name, task)
    recipe = apply_overrides(found, overrides, ("--json", "--task"))
    from beit.commands.planning.counting import counted

    result = {
        "name": name,
        "description": list_recipes()[owner].get(name, f"as in {name}"),
        "recipe": recipe.model_dump(mode="json"),
        **counted(recipe),
    }
    if not quiet:
        _print_recipe(recipe, result)
    return result


def _print_recipe(recipe: Recipe, result: dict[str, Any]) -> None:
    from beit.commands.planning.counting import CLASSES, MASK_CLASSES

    print(f"{recipe.name}: {result['description']}\n")
    names = list(dotted_names(recipe))
    width = max(len(name) for name, _, _ in names)
    for name, value, description in names:
        print(f"  --{name:{width}}  {json.dumps(value):>14}  {description}")
    work = result["gflop_per_picture"]
    of = {ClassifyRecipe: f"{CLASSES} classes", SegmentRecipe: f"{MASK_CLASSES} classes"}
    what = of.get(type(recipe), "model without tokenizer")
    print(f"\n  parameters       {result['parameters']:>14,}  ({what})")
    both = work["forward_and_backward"]
    if not isinstance(recipe, PretrainRecipe):
        print(f"  GFLOP a picture  {both:>14.3f}  (forward {work['forward']:.3f})")
        return
    print(f"  tokenizer        {result['tokenizer_parameters']:>14,}  (encoder and decoder)")
    print(
        f"  GFLOP a picture  {work['step']:>14.3f}  (forward {work['forward']:.3f}, with backward"
    )
    print(f"  {'':32}  {both:.3f}, tokenizer {work['tokenizer']:.3f})")


def data_info(spec: str, split: Split) -> dict[str, Any]:
    """Count pictures, classes and sizes, and print what was found."""
    from beit.data.checking.check import info
    from beit.data.checking.remarks import masks_beside, nearly_black, remarks
    from beit.data.sources.opening import open_source

    source = open_source(spec, split)
    found = info(source)
    print(f"{found.name}: {found.pictures:,} pictures")
    parts: dict[Split, int] = {}
    if split == "all":
        parts = {part: len(open_source(spec, part)) for part in ("train", "val")}
        print(f"{parts['train']:,} of them to train on, {parts['val']:,} to measure on")
    for name, pictures in found.classes.items():
        print(f"  {pictures:8,}  {name}")
    if found.unlabelled:
        print(f"  {found.unlabelled:8,}  without a class")
    for side in ("height", "width"):
        least, median, most = getattr(found, side)
        print(f"{side} of {found.sampled} pictures: {least} to {most} pixels, median {median}")
    if found.bad_in_sample:
        print(f"{found.bad_in_sample} of them cannot be read; `beit data check` lists all such")
    notes = (
        remarks(source)
        + masks_beside(spec)
        + nearly_black(found.dark, found.sampled - found.bad_in_sample)
    )
    for note in notes:
        print(note)
    print(f"fingerprint {found.fingerprint}")
    return asdict(found) | {"parts": parts, "notes": notes}


def check_data(
    spec: str, split: Split, workers: int | None, *, duplicates: bool = False
) -> dict[str, Any]:
    """Read every picture and print the bad ones, with path and reason; also equal ones if asked.

    What is returned has "duplicates" only where they were looked for.
    """
    from beit.data.checking.check import check
    from beit.data.checking.remarks import masks_beside, nearly_black, remarks
    from beit.data.sources.opening import open_source

    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers}: there cannot be fewer than 0 loader processes")
    source = open_source(spec, split)
    report = check(source, workers or 0, duplicates=duplicates)
    for bad in report.bad:
        print(f"{bad.path}: {bad.reason}")
    for group in report.duplicates:
        print(f"the same pixels: {', '.join(group)}")
    print(f"{report.name}: {report.pictures} pictures, {len(report.bad)} of them unreadable")
    notes = (
        remarks(source)
        + masks_beside(spec)
        + nearly_black(report.dark, report.pictures - len(report.bad))
    )
    for note in notes:
        print(note)
    found = asdict(report) | {"notes": notes}
    if not duplicates:
        del found["duplicates"]
    return found
