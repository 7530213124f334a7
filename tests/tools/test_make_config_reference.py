"""tools/make_config_reference.py, and that docs/configuration.md is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from frcnn_plugin import add_frcnn_config
from tests.conftest import flatten
from tests.tool_modules import load_tool

SOURCE = '''
def add_frcnn_config(cfg):
    """Docs."""
    if "A" in cfg.MODEL:
        return
    _add_a(cfg)
    _add_b(cfg)


def _add_b(cfg):
    # Counts, see MODEL.A.LARGE:
    #   "few"   one or two, which
    #           is little
    #   "many"  more
    # So much for that. An example is
    #   {a: 1}
    cfg.TEST.COUNT = "few"  # not this


def _add_a(cfg):
    # About the node.
    cfg.MODEL.A = CN()
    # About two.
    cfg.MODEL.A.LARGE = float("inf")
    cfg.MODEL.A.SMALL = [1, 2]

    # A remark.

    # About one.
    cfg.MODEL.A.LAST = False
'''


tool = load_tool("make_config_reference")


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--check"]) == 0, capsys.readouterr().err


def test_every_key_with_its_default() -> None:
    """By the config itself: the parser forgets nothing."""
    cfg = get_cfg()
    stock = flatten(cfg)
    add_frcnn_config(cfg)
    added = {key: value for key, value in flatten(cfg).items() if key not in stock}
    entries = tool.read_entries(tool.SOURCE.read_text(encoding="utf-8"))
    found = {key: default for entry in entries for key, default in entry.keys}
    assert found.keys() == added.keys()
    names = {"inf": float("inf")}
    assert {k: eval(d.replace(".inf", "inf"), names) for k, d in found.items()} == added
    page = tool.OUTPUT.read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in added)


def test_a_stale_page_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "configuration.md"
    assert tool.main(["--check", "--output", str(page)]) == 1
    assert not page.exists()
    assert tool.main(["--output", str(page)]) == 0
    assert tool.main(["--check", "--output", str(page)]) == 0
    page.write_text(page.read_text(encoding="utf-8") + "more\n")
    assert tool.main(["--check", "--output", str(page)]) == 1
    assert "is out of date: run python tools/make_config_reference.py" in capsys.readouterr().err


def test_what_is_read() -> None:
    entries = tool.read_entries(SOURCE)
    assert [(e.comment, e.keys) for e in entries[:-1]] == [
        (["About the node."], []),
        (["About two."], [("MODEL.A.LARGE", ".inf"), ("MODEL.A.SMALL", "[1, 2]")]),
        (["A remark."], []),
        (["About one."], [("MODEL.A.LAST", "False")]),
    ]
    assert entries[-1].keys == [("TEST.COUNT", '"few"')]


def test_what_is_written() -> None:
    page = tool.render(tool.read_entries(SOURCE)).removeprefix(tool.HEAD)
    assert (
        page
        == """
## `MODEL.A`

About the node.

### `MODEL.A.LARGE`, `MODEL.A.SMALL`

Default: `.inf`, `[1, 2]`

About two.

A remark.

### `MODEL.A.LAST`

Default: `False`

About one.

## `TEST`

### `TEST.COUNT`

Default: `"few"`

Counts, see `MODEL.A.LARGE`:

- `"few"`: one or two, which
  is little
- `"many"`: more

So much for that. An example is

    {a: 1}
"""
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("    cfg.MODEL.A.LAST = False", "line 30: MODEL.A.LAST has no comment above it"),
        ("    add(cfg)", r"line 30: expected 'cfg.KEY = value', found 'add\(cfg\)'"),
    ],
)
def test_what_is_refused(line: str, message: str) -> None:
    source = SOURCE.replace("    # About one.\n    cfg.MODEL.A.LAST = False", "\n" + line)
    with pytest.raises(ValueError, match=message):
        tool.read_entries(source)
