"""What README.md and docs/ name exists: links, files, commands, options, config keys."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from frcnn_plugin import add_frcnn_config, config_files, layers, modeling
from frcnn_plugin.checkpoint.catalog.known_files import find
from frcnn_plugin.cli import split_overrides
from frcnn_plugin.cli.__main__ import GROUPS, choose, load, parse
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.four_step.log import format_plan, plan_rows
from frcnn_plugin.four_step.stages import build_stages
from frcnn_plugin.preflight import PlannedRun

ROOT = Path(__file__).resolve().parents[1]
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = [
    *READMES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
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
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
# What may stand before the command of a line.
BEFORE = re.compile(r"[A-Z_0-9]+=.*|if|then|srun|torchrun|--\S+=\S+")

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
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets()
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


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in a page's shell blocks, without comments and what stands before.

    Where a page's text has whole commands, not parts of them, those too.
    """
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    if page.name in ("paper.md", "settings.md"):
        inline = re.findall(r"`((?:frcnn|python) [^`]+)`", BLOCK.sub("", text))
        blocks += [("", command.replace("\n", " ")) for command in inline]
    for language, block in blocks:
        lines = block.replace("\\\n", " ").splitlines() if language in ("", "bash") else []
        for line in lines:
            words = shlex.split(line, comments=True)
            while words:
                ends = (i for i, word in enumerate(words, 1) if word.endswith(";"))
                end = next(ends, len(words))
                command, words = [word.rstrip(";") for word in words[:end]], words[end:]
                while command and BEFORE.fullmatch(command[0]):
                    command.pop(0)
                if command:
                    yield command


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))


def script_parser(file: str) -> Callable[[list[str]], Any]:
    """`parse_args` of a script of tools/."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    assert spec and spec.loader, f"there is no {file}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parse_args


def parsed(words: list[str]) -> Any:
    """Read a command of this project as it would itself; None: another program's command."""
    name, rest = Path(words[0]).name, [word for word in words[1:] if word != "..."]
    if name == "make":
        assert {word for word in rest if "=" not in word} <= targets(), f"make {rest}"
        return None
    if words[0].startswith("tools/"):  # under torchrun
        name, rest = "python", [words[0], *rest]
    if name == "frcnn":
        return parse(rest)[1]
    if name == "python" and rest[:2] == ["-m", "benchmarks"]:
        from benchmarks.__main__ import parse_args

        return parse_args(rest[2:])
    if name == "python" and rest[0] in (forwards := scripts_of_commands()):
        return parse([*forwards[rest[0]].split(), *rest[1:]])[1]
    if name == "python" and rest[0].startswith("tools/"):
        return script_parser(rest[0])(rest[1:])
    if name == "python" and rest[0].startswith("docs/"):
        assert (ROOT / rest[0]).is_file(), f"there is no {rest[0]}"
    return None


def check_values(args: Any) -> None:
    """Config file, overrides and names of weights that a command is given exist."""
    cfg = config()
    file = getattr(args, "config_file", "") or ""
    if file.startswith(("frcnn://", "configs/")):  # others are the reader's
        config_files.load_config_file(cfg, file)
    opts = split_overrides(getattr(args, "inputs", []))[1] or getattr(args, "opts", [])
    config_files.merge_overrides(cfg, opts)
    files = [cfg.MODEL.WEIGHTS, getattr(args, "weights", ""), getattr(args, "input", "")]
    names = [str(name).removeprefix("frcnn://") for name in files if "frcnn://" in str(name)]
    for name in [*names, *getattr(args, "names", [])]:
        find(name)


@every_page
def test_commands(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of a shell block can be read: its options, values, config files and overrides."""
    monkeypatch.chdir(ROOT)
    for words in shell_commands(page):
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                args = parsed(words)
            if args is not None:
                check_values(args)
        except (SystemExit, config_files.UserError) as error:
            pytest.fail(f"{shlex.join(words)}: {errors.getvalue() or error}")


@pytest.mark.parametrize(
    "line",
    [
        "frcnn tran --config-file my.yaml",
        "frcnn train --config my.yaml SOLVER.MAX_ITERS 3",
        "frcnn train --config-file configs/no_such.yaml",
        "frcnn visualize --mode anchor --config-file my.yaml",
        "frcnn predict --weights frcnn://vgg16_voc photo.jpg --output found",
        "python tools/train_net.py --config-file my.yaml --evaluate-only",
        "python -m benchmarks infer --against detectron2",
        "make tests",
    ],
)
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, AssertionError, config_files.UserError)):
        args = parsed(shlex.split(line))
        assert args is not None
        check_values(args)


def test_the_readmes_agree() -> None:
    """The translation has the headings, links, numbers and code of the original."""
    texts = [page.read_text(encoding="utf-8") for page in READMES]
    # Comments are translated.
    code = [[re.sub(r" *#.*", "", found) for _, found in BLOCK.findall(text)] for text in texts]
    assert code[0] == code[1]
    assert len(code[0]) >= 6
    prose = [BLOCK.sub("", text) for text in texts]
    # Pages have English headings, and so have the links to them.
    for pattern in (r"^#+(?= )", r"`[^`]+`", r"\]\(([^)]+\.(?:md|jpg)[^)]*)\)", r"\d+(?:\.\d+)*"):
        found = [re.findall(pattern, text, flags=re.MULTILINE) for text in prose]
        if not pattern.startswith("^"):  # a language has its own order of words
            found = [sorted(s for s in x if not s.startswith("README")) for x in found]
        assert found[0] == found[1]
        assert found[0]


def test_the_readme_is_short() -> None:
    assert len(READMES[0].read_text(encoding="utf-8").splitlines()) <= 140


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked


def test_the_plan_is_the_printed_one() -> None:
    cfg = setup_cfg("frcnn://faster_rcnn_vgg16_voc.yaml", ["MODEL.DEVICE", "cpu"])
    rows = plan_rows(cfg, build_stages(cfg), PlannedRun(cfg).model)
    page = (ROOT / "docs" / "four_step.md").read_text(encoding="utf-8")
    assert f"```text\n{format_plan(cfg, rows)}\n```" in page


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
