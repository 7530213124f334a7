"""Imports go down only: each room of the package imports from the floors below its own.

And no two files import each other, also not through others.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "frcnn_plugin"

# From the ground up. Rooms on one floor do not import each other.
FLOORS: tuple[set[str], ...] = (
    {"host", "errors", "stopping"},
    {"atomic_files", "plain_pickle", "process", "config"},
    {"config_files"},
    {"layers"},
    {"modeling"},
    {"checkpoint", "data"},
    {"__init__"},  # importing the package registers everything below
    {"evaluation"},
    {"four_step"},
    {"engine"},
    {"visualization"},
    {"predict", "report"},
    {"preflight", "explain"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str, package: list[str]) -> set[str]:
    """Full names of all that a file in `package` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # "from frcnn_plugin import data" names the part after the word import
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def imported_parts(file: Path) -> set[str]:
    package = ["frcnn_plugin", *file.relative_to(PACKAGE).parts[:-1]]
    modules = (name.split(".") for name in imported_modules(file.read_text(), package))
    return {name[1] if len(name) > 1 else "" for name in modules if name[0] == "frcnn_plugin"}


def test_imported_modules_resolves_every_form() -> None:
    source = """
import os.path, tools.demo
from ..data.voc import load
from . import zf
def late():
    from frcnn_plugin import engine
"""
    assert imported_modules(source, ["frcnn_plugin", "modeling"]) == {
        "os.path",
        "tools.demo",
        "frcnn_plugin.data.voc.load",
        "frcnn_plugin.modeling.zf",
        "frcnn_plugin.engine",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    own = part(file)
    assert own in FLOOR, f"{own} is new: say in FLOORS where it stands"
    rooms = {room if room in FLOOR else "__init__" for room in imported_parts(file)} - {own}
    forbidden = sorted(room for room in rooms if FLOOR[room] >= FLOOR[own])
    assert not forbidden, f"{own} must not import {forbidden}: they stand no lower"


def modules_imported(file: Path) -> set[Path]:
    """Files of the package that a file imports when it is loaded itself."""
    package = ["frcnn_plugin", *file.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for name in imported_modules(file.read_text(), package):
        parts = name.split(".")
        if parts[0] != "frcnn_plugin":
            continue
        # The longest beginning that is a file: what follows are names in it.
        for end in range(len(parts), 0, -1):
            path = PACKAGE.joinpath(*parts[1:end])
            if path.with_suffix(".py").is_file():
                found.add(path.with_suffix(".py"))
                break
            if (path / "__init__.py").is_file():
                found.add(path / "__init__.py")
                break
    return found - {file}


def test_no_circles() -> None:
    graph = {file: modules_imported(file) for file in FILES}
    done: set[Path] = set()

    def visit(file: Path, way: tuple[Path, ...]) -> None:
        if file in way:
            circle = [str(f.relative_to(PACKAGE)) for f in (*way[way.index(file) :], file)]
            raise AssertionError(" -> ".join(circle))
        if file not in done:
            for other in sorted(graph[file]):
                visit(other, (*way, file))
            done.add(file)

    for file in FILES:
        visit(file, ())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_tools_or_tests(file: Path) -> None:
    package = ["frcnn_plugin", *file.relative_to(PACKAGE).parts[:-1]]
    roots = {name.partition(".")[0] for name in imported_modules(file.read_text(), package)}
    assert not roots & {"tools", "tests"}


def test_host_check_needs_the_standard_library_only() -> None:
    """It runs before torch and Detectron2 are known to be there."""
    modules = imported_modules((PACKAGE / "host.py").read_text(), ["frcnn_plugin"])
    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names


LIGHT = """
import sys
import frcnn_plugin.engine.hooks, frcnn_plugin.four_step
from frcnn_plugin.engine import CaffeMomentum
from frcnn_plugin.four_step import FourStepHook
heavy = {"matplotlib", "frcnn_plugin.engine.trainer", "frcnn_plugin.visualization"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def test_importing_a_hook_is_light() -> None:
    """It loads neither what draws nor the trainer with all its evaluators."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_engine_offers_what_it_names() -> None:
    engine = importlib.import_module("frcnn_plugin.engine")
    assert sorted(engine._MODULES) == sorted(engine.__all__)
    for name in engine.__all__:
        assert getattr(engine, name).__name__ == name
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from frcnn_plugin.engine import Nothing")
