"""Imports go one way: tools, tests -> engine -> {data, evaluation, checkpoint, modeling} -> d2.

`visualization` draws what it is given: it stands above `evaluation` and knows no model.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "frcnn_plugin"

# What each part may import from the rest of the package.
ALLOWED = {
    "host": set(),
    "errors": set(),
    "atomic_files": set(),
    "config": {"errors"},
    "run_record": {"errors", "atomic_files"},
    "modeling": {"errors", "atomic_files"},
    "checkpoint": {"errors", "atomic_files"},
    "data": {"errors", "atomic_files"},
    "evaluation": {"errors", "atomic_files", "data"},
    "visualization": {"errors", "atomic_files", "evaluation"},
    "engine": {
        *("", "errors", "atomic_files", "config", "run_record"),
        *("data", "evaluation", "checkpoint", "modeling", "visualization"),
    },
    "report": {"errors", "atomic_files", "config", "run_record", "data", "evaluation"},
    "__init__": {"host", "config", "checkpoint", "data", "modeling"},
}
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
        "frcnn_plugin.data.datasets.voc.load",
        "frcnn_plugin.modeling.backbone.zf",
        "frcnn_plugin.engine",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    own = part(file)
    assert own in ALLOWED, f"{own} is new: say in ALLOWED what it may import"
    forbidden = imported_parts(file) - ALLOWED[own] - {own}
    assert not forbidden, f"{own} must not import {sorted(forbidden)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_tools_or_tests(file: Path) -> None:
    package = ["frcnn_plugin", *file.relative_to(PACKAGE).parts[:-1]]
    roots = {name.partition(".")[0] for name in imported_modules(file.read_text(), package)}
    assert not roots & {"tools", "tests"}


def test_host_check_needs_the_standard_library_only() -> None:
    """It runs before torch and Detectron2 are known to be there."""
    modules = imported_modules((PACKAGE / "host.py").read_text(), ["frcnn_plugin"])
    assert {name.partition(".")[0] for name in modules} <= {"__future__", "importlib", "types"}
