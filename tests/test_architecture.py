"""The house keeps its shape: imports point down, files stay small, nothing is pickled."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "beit"

# Who may know whom. A room always knows itself, `errors`, `files` and `version`.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "files": set(),
    "machine": set(),
    "randomness": set(),
    "shares": set(),
    "batch": set(),
    "pixels": set(),
    "weights": set(),
    "nn": {"batch"},
    "objectives": set(),
    "report": set(),
    "masking": {"randomness"},
    "engine": {"machine", "randomness", "shares"},
    "tokenizer": {"nn", "weights"},
    "interop": {"nn", "tokenizer", "pixels", "weights"},
    "data": {"batch", "masking", "pixels", "randomness", "shares"},
    "tasks": {"nn", "tokenizer", "objectives", "batch", "engine.protocol"},
    "evaluation": {
        *("nn", "tokenizer", "objectives", "batch", "randomness", "pixels", "weights"),
    },
    "recipes": {"masking", "nn", "tokenizer"},
    "commands": {
        *("nn", "tokenizer", "objectives", "batch", "engine", "data", "tasks", "evaluation"),
        *("report", "machine", "masking", "randomness", "interop", "pixels", "weights", "recipes"),
    },
    "cli": {"commands", "recipes", "report", "engine.distribution", "interop"},
    "api": {"commands", "data", "engine.protocol", "nn", "recipes", "tokenizer"},
    "__main__": {"cli"},
}

# The parts of large rooms: each knows those before it alone. What lies beside them knows them all.
PARTS = {
    "commands": ("assembly", "preparing", "training", "using", "sharing", "planning", "looking"),
    "data": ("decoding", "sources", "views", "reading", "pairs", "loading", "checking"),
}


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path, *, files: bool = False) -> list[str]:
    """What a file imports; with `files` also the names it takes, some of which are files."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("beit."):
            room = (node.module or "").removeprefix("beit.")
            names += [room, *(f"{room}.{alias.name}" for alias in node.names if files)]
        elif isinstance(node, ast.Import):
            names += [
                a.name.removeprefix("beit.") for a in node.names if a.name.startswith("beit.")
            ]
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = _room(path)
    for name in _imports(path):
        if name.partition(".")[0] in (room, "errors", "files", "version"):
            continue
        allowed = MAY_IMPORT[room]
        assert name in allowed or name.partition(".")[0] in allowed, f"{room} imports {name}"


@pytest.mark.parametrize("room", PARTS)
def test_parts_of_a_room_know_those_before_them_alone(room: str) -> None:
    for place, part in enumerate(PARTS[room]):
        for path in (PACKAGE / room / part).glob("*.py"):
            known = {name.split(".")[1] for name in _imports(path) if name.startswith(f"{room}.")}
            assert known <= {*PARTS[room][: place + 1]}, f"{path.name} of {part} imports {known}"
    folders = {path.name for path in (PACKAGE / room).iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {*PARTS[room]}


def test_no_two_files_need_each_other() -> None:
    """No circle of imports, those inside functions counted too."""
    modules = {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", "."): p for p in MODULES}
    waiting = {name: {*_imports(path, files=True)} & {*modules} for name, path in modules.items()}
    while free := {name for name, needs in waiting.items() if not needs}:
        waiting = {name: needs - free for name, needs in waiting.items() if name not in free}
    assert not waiting


def test_every_room_stands_in_the_plan() -> None:
    assert {_room(path) for path in MODULES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_no_file_is_past_400_lines(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_no_function_is_past_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= 60
    ]
    assert not long


def test_torch_reads_weights_alone_and_in_one_place() -> None:
    reader = PACKAGE / "interop" / "weight_files.py"
    calls = [
        (path, ast.unparse(node))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("torch.load")
    ]
    assert [path for path, _ in calls] == [reader]
    assert "weights_only=True" in calls[0][1]


def test_no_module_reads_or_writes_pickles() -> None:
    """Only the reader and writer of other people's files (see above) may name torch's format."""
    foreign = PACKAGE / "interop" / "weight_files.py"
    for path in MODULES:
        text = path.read_text()
        torch_format = () if path == foreign else ("torch.save(", "torch.load(")
        for forbidden in ("import pickle", "yaml.load(", "eval(", *torch_format):
            found = [
                line for line in text.splitlines() if forbidden in line and ".eval(" not in line
            ]
            assert not found, f"{path.name}: {found}"


def test_every_departure_is_labelled_and_listed() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = text.partition("| where | what | why |")[2].splitlines()
    listed = {path for row in rows for path in re.findall(r"`(\S+\.py)`", row.split(" | ")[0])}
    labelled = {
        str(path.relative_to(PACKAGE)) for path in MODULES if "Departure:" in path.read_text()
    }
    assert listed == labelled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_of_ours_on_a_page_are_there(page: Path) -> None:
    for name in {*re.findall(r"\bbeit(?:\.[A-Za-z_]+){2,}", page.read_text(encoding="utf-8"))}:
        resolve_name(name)


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from beit.cli import parser\n"
        "parser().format_help()\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'PIL', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
