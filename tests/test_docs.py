"""What README.md and docs/ name exists: links, files, options, config keys."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from frcnn_plugin import add_frcnn_config, layers, modeling
from frcnn_plugin.cli.__main__ import GROUPS, choose, load

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(
    r"\b(?:benchmarks|configs|tools|tests|frcnn_plugin|docs)/[\w./*-]*\w\.(?:py|yaml|md|png)\b"
)
YAML_NAME = re.compile(r"`([\w./-]+\.yaml)`")
KEY = re.compile(
    r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|FOUR_STEP|TEST)(?:\.[A-Z][A-Z0-9_]*)+\b"
)
# "frcnn weights check", "python tools/demo.py", "python -m benchmarks", and the words after it.
COMMAND = re.compile(
    r"(?:python ((?:tools|docs)/\w+\.py|-m benchmarks)|\bfrcnn(?= [a-z]))((?:[^`\n]*\\\n)*[^`\n]*)"
)
# Written by a run, not part of the repository.
OUTPUTS = {"config.yaml"}

every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def keys(node: CfgNode, prefix: str = "") -> set[str]:
    """Names of all keys and nodes."""
    names = set()
    for key, value in node.items():
        names.add(prefix + key)
        if isinstance(value, CfgNode):
            names |= keys(value, f"{prefix}{key}.")
    return names


def config() -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    return cfg


def test_there_are_pages() -> None:
    names = ("README.md", "faithfulness.md", "worked_examples.md", "four_step.md")
    assert {f"docs/{name}" for name in names} <= set(IDS)


@every_page
def test_links(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no {target}"
        assert ROOT in (target, *target.parents), f"{link} leads out of the repository"
        if anchor:
            assert anchor in slugs(target), f"{link}: no such heading"


@every_page
def test_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in PATH.findall(text):
        assert list(ROOT.glob(path)), f"there is no {path}"
    known = {file.name for file in (ROOT / "configs").rglob("*.yaml")} | OUTPUTS
    for name in YAML_NAME.findall(text):
        if "*" not in name:
            assert Path(name).name in known, f"there is no config {name}"


@every_page
def test_keys(page: Path) -> None:
    unknown = set(KEY.findall(page.read_text(encoding="utf-8"))) - keys(config())
    assert not unknown, f"no such keys: {sorted(unknown)}"


def options(command: str) -> set[str]:
    """Options of a command of `frcnn`."""
    parser = argparse.ArgumentParser()
    load(command).add_arguments(parser)
    return set(re.findall(r"--[\w-]+", parser.format_usage()))


def scripts_of_commands() -> dict[str, str]:
    """Command behind each script of tools/ that only forwards."""
    found = {}
    for script in (ROOT / "tools").glob("*.py"):
        words = re.search(r"main\(\[(.*), \*sys\.argv", script.read_text(encoding="utf-8"))
        if words:
            found[f"tools/{script.name}"] = " ".join(re.findall(r'"([\w-]+)"', words[1]))
    return found


@every_page
def test_options_of_commands(page: Path) -> None:
    forwards = scripts_of_commands()
    for script, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
        words = rest.partition(" #")[0].replace("\\\n", " ").split()
        if not script and len(words) == 1 and words[0] in GROUPS:
            continue  # "the commands of `frcnn weights`"
        if not script or script in forwards:
            command, words = choose([*forwards.get(script, "").split(), *words])
            known = options(command)
        else:
            files = ROOT.glob("benchmarks/*.py") if script.startswith("-m") else [ROOT / script]
            texts = "".join(file.read_text(encoding="utf-8") for file in files)
            known = set(re.findall(r"\"(--[\w-]+)\"", texts))
        unknown = {word for word in words if re.fullmatch(r"--[\w-]+", word)} - known
        assert not unknown, f"{script or 'frcnn'} {rest.strip()}: there is no {sorted(unknown)}"


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked


def test_components_page_runs() -> None:
    """The Python of docs/components.md, block after block, and the shapes it promises."""
    text = (ROOT / "docs" / "components.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/components.md", "exec"), names)
    assert type(names["model"].backbone).__name__ == "VGG16"
    assert type(names["resnet"].proposal_generator).__name__ == "PaperRPN"
    shapes = {name: tuple(feature.shape) for name, feature in names["features"].items()}
    assert shapes == {"conv4": (1, 512, 75, 125), "conv5": (1, 512, 38, 63)}
    assert tuple(names["fc7"].shape) == (2, 4096)
    assert len(names["given"][0].fc7) == len(names["proposals"][0]) > 0
    assert names["detections"][0].has("pred_boxes")


def test_readme_snippet_runs() -> None:
    """For other projects: every import and key that it takes is in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    (result,) = names["model"].eval()([{"image": torch.zeros(3, 64, 96)}])
    assert len(result["instances"]) > 0


def test_components_page_names_all_exports() -> None:
    text = (ROOT / "docs" / "components.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)[.`]", text))
    assert not ({*modeling.__all__, *layers.__all__} - named)
