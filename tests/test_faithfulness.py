"""The table of docs/faithfulness.md against the presets: every row, every key, every value."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.config_files import flat_keys
from frcnn_plugin.four_step import apply_four_step

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "faithfulness.md"
PRESETS = ("Base-Paper", "Base-PyAltOpt", "Base-PyEnd2End")
COLUMNS = ["#", "topic", "paper, MATLAB", "py alt-opt", "py end2end", "set by", *PRESETS]
ROWS = range(1, 59)
KEY = re.compile(r"(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|FOUR_STEP|TEST)(?:\.[A-Z][A-Z0-9_]*)+")
# Not keys of training: where data are and results go.
ELSEWHERE = ("DATASETS.", "OUTPUT_DIR")
# Keys that a preset need not show, because they have no effect in it.
JOINT_ONLY = {
    "SOLVER.IMS_PER_BATCH",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
}


@cache
def table() -> dict[int, dict[str, str]]:
    """Row number -> column -> text."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x.startswith("|")]
    start = rows.index(COLUMNS)
    result: dict[int, dict[str, str]] = {}
    for row in rows[start + 2 :]:  # after the header and its rule
        if not row[0].isdigit():
            break
        assert len(row) == len(COLUMNS), row
        assert int(row[0]) not in result, f"row {row[0]} is there twice"
        result[int(row[0])] = dict(zip(COLUMNS, row, strict=True))
    return result


@cache
def preset(name: str) -> dict[str, Any]:
    """Key -> value of a preset, with the schedule filled in."""
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.merge_from_file(get_config_file(f"{name}.yaml"))
    apply_four_step(cfg)
    return flat_keys(cfg)


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def keys_of(row: Mapping[str, str]) -> list[str]:
    """Full names of the keys that a row is about."""
    return [text for text in code(row["set by"]) if KEY.fullmatch(text)]


def values_of(row: Mapping[str, str], name: str) -> dict[str, Any]:
    """Key -> value that a row states for a preset; abbreviated names are completed."""
    values = {}
    for text in code(row[name]):
        short, equals, value = text.partition(" = ")
        assert equals, f"{text}: expected `KEY = value`"
        full = [key for key in keys_of(row) if f".{key}".endswith(f".{short}")]
        assert len(full) == 1, f"{short} means {full}"
        assert full[0] not in values, f"{short} is there twice"
        values[full[0]] = parse(value)
    return values


def parse(value: str) -> Any:
    if value == ".inf":
        return float("inf")
    if "/" in value:
        return float(Fraction(value))
    return ast.literal_eval(value)


def has_no_effect(key: str, name: str) -> bool:
    if name == "Base-PyEnd2End":
        return key.startswith("FOUR_STEP.") and key != "FOUR_STEP.ENABLED"
    return key in JOINT_ONLY


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_every_row_is_there() -> None:
    assert list(table()) == list(ROWS)
    assert all(cell for row in table().values() for cell in row.values())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("number", ROWS)
def test_values(number: int, name: str) -> None:
    row, cfg = table()[number], preset(name)
    values = values_of(row, name)
    for key in keys_of(row):
        assert key in cfg, f"{key} is no key"
        assert key in values or has_no_effect(key, name), f"the table does not say {key}"
    for key, value in values.items():
        assert same(value, cfg[key]), f"{key}: {value!r} in the table, {cfg[key]!r} in {name}.yaml"


@pytest.mark.parametrize("number", ROWS)
def test_words(number: int) -> None:
    """Cells without values say what they mean, and what is not reproduced is explained."""
    row = table()[number]
    states = []
    for name in PRESETS:
        words = re.sub(r"`[^`]+`", "", row[name]).replace("<br>", " ").strip()
        state, _, detail = words.partition(":")
        assert state in ("", "yes", "nearly", "no", "–"), words
        assert (state != "") or code(row[name]), f"row {number}: nothing in {name}"
        assert not detail or state == "no"
        states.append(state)
    unlike = {"nearly", "no"} & set(states)
    assert not unlike or "not reproduced: " in row["set by"], states
    assert "not reproduced" not in row["set by"] or unlike or set(states) == {"–"}, states


def test_every_difference_between_presets_is_in_the_table() -> None:
    first, *others = (preset(name) for name in PRESETS)
    different = {
        key
        for key in first
        if any(not same(first[key], other[key]) for other in others)
        and not key.startswith(ELSEWHERE)
    }
    assert {"FOUR_STEP.ENABLED", "SOLVER.MAX_ITER"} <= different  # or nothing was compared
    shown = {key for row in table().values() for key in keys_of(row)}
    assert different <= shown, f"missing in the table: {sorted(different - shown)}"


def test_every_key_that_a_preset_sets_is_in_the_table_or_plain() -> None:
    """What the YAMLs change in the defaults, but for what names the parts of the model."""
    cfg = get_cfg()
    add_frcnn_config(cfg)
    default = flat_keys(cfg)
    changed = {
        key
        for name in PRESETS
        for key, value in preset(name).items()
        if not same(value, default[key]) and not key.startswith(ELSEWHERE)
    }
    plain = {
        *("MODEL.META_ARCHITECTURE", "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.ROI_HEADS.NAME"),
        *("MODEL.ROI_BOX_HEAD.NAME", "MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_BOX_HEAD.FC_DIM"),
        *("SOLVER.CHECKPOINT_PERIOD", "SEED"),
    }
    shown = {key for row in table().values() for key in keys_of(row)}
    assert changed - shown - plain == set()


def test_names_of_code_exist() -> None:
    sources = "\n".join(p.read_text() for p in (ROOT / "frcnn_plugin").rglob("*.py"))
    for number, row in table().items():
        for text in code(row["set by"]):
            if re.fullmatch(r"\w+(\.\w+)?", text) and not KEY.fullmatch(text):
                for part in text.split("."):
                    assert re.search(rf"\b{part}\b", sources), f"row {number}: no {part}"
