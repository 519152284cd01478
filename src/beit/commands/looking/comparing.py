"""`beit compare`: runs side by side, what they were asked and what was measured last."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.commands.assembly.initial import began_from
from beit.commands.assembly.own_tokenizer import NOTE
from beit.commands.assembly.run_files import RunFiles
from beit.commands.assembly.saved_models import read_config
from beit.errors import UserError
from beit.evaluation.spread import spread
from beit.files import read_json_object
from beit.recipes.downstream_models import COMMANDS, Recipe
from beit.recipes.models import PretrainRecipe
from beit.recipes.overrides import FREE_TO_CHANGE, dotted_names
from beit.report.tables import Table, text_table
from beit.report.text import format_number

_SEED, _TOKENIZER = "engine.seed", "tokenizer"
_NOT_FIGURES = ("step", "split", "epoch", "samples_seen")
_SHOWN = 40  # characters of a field's value


@dataclass(frozen=True)
class _Told:
    """One run: what it is called, what was asked of it, and its last validation row."""

    name: str
    recipe: Recipe
    fields: Mapping[str, Any]
    row: Mapping[str, Any]
    finished: bool
    own_tokenizer: bool  # was trained on the way, by the same recipe

    @property
    def but_for_the_seed(self) -> str:
        """What runs have in common that differ in their seeds alone, and stand at one step."""
        left_out = FREE_TO_CHANGE | {_SEED} | ({_TOKENIZER} if self.own_tokenizer else set())
        told = {
            name: value
            for name, value in self.fields.items()
            if name.removeprefix(f"{_TOKENIZER}.") not in left_out
        }
        return json.dumps([told, self.row.get("step")], sort_keys=True, default=str)

    @property
    def seeds(self) -> tuple[Any, ...]:
        """What its chance follows from."""
        own = (f"{_TOKENIZER}.{_SEED}",) if self.own_tokenizer else ()
        return tuple(self.fields.get(name) for name in (_SEED, *own))

    @property
    def figures(self) -> dict[str, float]:
        """What was measured last."""
        return {
            name: float(value)
            for name, value in self.row.items()
            if name not in _NOT_FIGURES and isinstance(value, (int, float))
        }


def compare(runs: Sequence[str | Path], *, quiet: bool = False) -> dict[str, Any]:
    """Put runs side by side.

    Args:
        runs: Two run folders or more, of one command; they need not have ended.
        quiet: Print nothing.

    Returns:
        "runs", each with its last "validation" row; "differences", the recipe fields, data, start
        and tokenizer that are not the same, with a value a run; "groups" of runs that differ in
        their seeds alone, with the "mean" and "deviation" of each figure; "notes".

    Raises:
        UserError: Fewer than two, one that is no run, or runs of several commands.
    """
    names = [str(run) for run in runs]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError("give two run folders or more to compare, each once")
    paths: dict[str, str] = {}
    told = [_read(name, paths) for name in names]
    kinds = {type(run.recipe): run.name for run in told}
    if len(kinds) > 1:
        said = " and ".join(f"{name} is of {COMMANDS[kind]}" for kind, name in kinds.items())
        raise UserError(f"{said}: compare runs of one command")
    result = {
        "runs": [{"run": r.name, "finished": r.finished, "validation": r.row} for r in told],
        "differences": _differences(told),
        "groups": [_group(group) for group in _alike(told)],
        "notes": _notes(told),
    }
    if not quiet:
        _print(result)
    return result


def _read(name: str, paths: dict[str, str]) -> _Told:
    """Read a run; the same pictures elsewhere are no difference.

    Args:
        name: Its folder.
        paths: Where the pictures of each fingerprint were first said to be; added to.
    """
    files = RunFiles(Path(name))
    rows = [row for row in files.metrics if row.get("split") == "val"]
    recipe = files.recipe
    fields = {field: value for field, value, _ in dotted_names(recipe)}
    data = paths.setdefault(files.data_fingerprint or str(files.data), str(files.data))
    fields |= {"data": data, "init": began_from(files.path) or "none"}
    tokenizer = files.path / _TOKENIZER
    if isinstance(recipe, PretrainRecipe):
        fields[_TOKENIZER] = _fingerprint(tokenizer)
    own = (tokenizer / "recipe.yaml").is_file()
    return _Told(name, recipe, fields, rows[-1] if rows else {}, files.finished, own)


def _fingerprint(tokenizer: Path) -> str:
    """The beginning of a tokenizer's fingerprint; empty where there is none."""
    if (note := tokenizer / NOTE).is_file():
        return str(read_json_object(note).get("fingerprint", ""))[:12]
    if not (tokenizer / "config.json").is_file():
        return ""
    return str(read_config(tokenizer).get("fingerprint", ""))[:12]


def _differences(told: Sequence[_Told]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for run in told for name in run.fields)
    values = {name: [run.fields.get(name) for run in told] for name in names}
    return {
        name: found for name, found in values.items() if any(value != found[0] for value in found)
    }


def _alike(told: Sequence[_Told]) -> list[list[_Told]]:
    """Runs that differ in their seeds alone, where there are two or more of them.

    Of several with one seed the first counts: the same chance twice tells nothing of chance.
    """
    groups: dict[str, dict[tuple[Any, ...], _Told]] = {}
    for run in told:
        if run.row:
            groups.setdefault(run.but_for_the_seed, {}).setdefault(run.seeds, run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _repeated(told: Sequence[_Told]) -> list[tuple[str, str]]:
    """Runs that were asked for what an earlier one was, seeds and all; each with that one."""
    first: dict[tuple[Any, ...], str] = {}
    found = []
    for run in told:
        earlier = first.setdefault((run.but_for_the_seed, run.seeds), run.name) if run.row else ""
        found += [(run.name, earlier)] if earlier not in ("", run.name) else []
    return found


def _group(group: Sequence[_Told]) -> dict[str, Any]:
    shared = [n for n in group[0].figures if all(n in run.figures for run in group)]
    spreads = {name: spread([run.figures[name] for run in group]) for name in shared}
    return {
        "runs": [run.name for run in group],
        "step": group[0].row.get("step"),
        "mean": {name: found.mean for name, found in spreads.items()},
        "deviation": {name: found.deviation for name, found in spreads.items()},
    }


def _notes(told: Sequence[_Told]) -> list[str]:
    """Why figures that stand side by side may not be comparable."""
    differing = _differences(told)
    notes = [f"{run.name} has not been measured yet" for run in told if not run.row]
    notes += [
        f"{name} repeats {earlier}, with the same seed: no mean counts it"
        for name, earlier in _repeated(told)
    ]
    if len({run.row.get("step") for run in told if run.row}) > 1:
        notes.append("the last rows are of different steps")
    if "data" in differing:
        notes.append("the runs were measured on different pictures")
    if isinstance(told[0].recipe, PretrainRecipe):
        if any(name.startswith("masking.") for name in differing):
            notes.append("each run was measured under its own masks: beit evaluate changes them")
        if _TOKENIZER in differing or "objective.target" in differing:
            notes.append("losses and accuracies of different tokenizers or targets mean nothing")
    return notes


def _print(result: Mapping[str, Any]) -> None:
    runs = result["runs"]
    names = _short([run["run"] for run in runs])
    if result["differences"]:
        rows = [
            [name, *(_shown(value) for value in values)]
            for name, values in result["differences"].items()
        ]
        print(text_table(Table(["asked", *names], rows, "What differs")) + "\n")
    keys = dict.fromkeys(key for run in runs for key in run["validation"] if key != "split")
    if keys:
        rows = [[key, *(_cell(run["validation"].get(key)) for run in runs)] for key in keys]
        print(text_table(Table(["measured", *names], rows, "The last validation rows")) + "\n")
    for group in result["groups"]:
        rows = [
            [name, f"{format_number(mean)} ± {format_number(group['deviation'][name])}"]
            for name, mean in group["mean"].items()
        ]
        alike = ", ".join(names[[run["run"] for run in runs].index(run)] for run in group["runs"])
        caption = f"{len(group['runs'])} runs that differ in seed alone: {alike}"
        print(text_table(Table(["measured", "mean ± deviation"], rows, caption)) + "\n")
    for note in result["notes"]:
        print(f"note: {note}")


def _short(names: Sequence[str]) -> list[str]:
    """Runs by the last part of their paths, where that tells them apart."""
    last = [Path(name).absolute().name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"


def _cell(value: Any) -> str:
    return format_number(value) if isinstance(value, (int, float)) else "–"
