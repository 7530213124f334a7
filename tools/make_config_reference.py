#!/usr/bin/env python
"""Write docs/configuration.md, the list of all config keys, from frcnn_plugin/config.py.

    python tools/make_config_reference.py            # write
    python tools/make_config_reference.py --check    # fail if what is there is out of date

The comment directly above ``cfg.X.Y = value`` becomes the text of ``X.Y``; keys without a comment
of their own, in the lines below it, share it. In a comment, indented lines such as
``"word"  what it means`` become a list, other indented lines code.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "frcnn_plugin" / "config.py"
OUTPUT = ROOT / "docs" / "configuration.md"

HEAD = """\
# Configuration keys

<!-- Made by tools/make_config_reference.py. Edit the comments in frcnn_plugin/config.py. -->

These are the keys that `add_frcnn_config` adds to Detectron2's config. The defaults leave a stock
config as it is; the presets in `configs/` set what the originals had (see
[faithfulness.md](faithfulness.md)). Set a key in a YAML file, or at the end of a command line:

```bash
python tools/train_net.py --config-file configs/faster_rcnn_vgg16_voc.yaml FOUR_STEP.STOP_AFTER 2
```

"paper" is arXiv 1506.01497v3, "MATLAB" the authors' code, "py" py-faster-rcnn, "host" Detectron2,
whose own keys are in its documentation. `.inf` is infinity in YAML.
"""

_ENTRY_FUNCTION = "add_frcnn_config"
_KEY = re.compile(
    r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|FOUR_STEP|TEST)(?:\.[A-Z][A-Z0-9_]*)+"
)
_LIST_ITEM = re.compile(r'\s+("[^"]+")\s{2,}(.*)')


@dataclass
class Entry:
    """Keys that share one comment, or (without keys) a remark on those that follow."""

    comment: list[str]
    keys: list[tuple[str, str]] = field(default_factory=list)  # with their defaults


def read_entries(source: str) -> list[Entry]:
    """All keys of a config module, in the order in which they are added.

    Raises:
        ValueError: a statement that is not understood, or a key without a comment.
    """
    functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    comments = comment_lines(source)
    entries: list[Entry] = []
    for statement in functions[_ENTRY_FUNCTION].body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            entries.extend(_read_function(functions[call.func.id], source, comments))
    return entries


def comment_lines(source: str) -> dict[int, str]:
    """Line number -> text of each comment that has its line to itself, without the "# "."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string[1:].removeprefix(" ")
        for token in tokens
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }


def _read_function(
    function: ast.FunctionDef, source: str, comments: dict[int, str]
) -> Iterator[Entry]:
    entry: Entry | None = None
    above = function.lineno
    for statement in function.body:
        key, default = _read_assignment(statement, source)
        *remarks, own = _comment_blocks(comments, above, statement.lineno)
        for remark in remarks:
            yield from [entry] if entry else []
            entry = None
            yield Entry(remark)
        if default is None:  # a new node: what is said above it is about all of its keys
            yield from [entry] if entry else []
            entry = None
            if own:
                yield Entry(own)
        elif own:
            yield from [entry] if entry else []
            entry = Entry(own, [(key, default)])
        elif entry and above == statement.lineno - 1:
            entry.keys.append((key, default))
        else:
            raise ValueError(f"line {statement.lineno}: {key} has no comment above it")
        above = statement.end_lineno or statement.lineno
    yield from [entry] if entry else []


def _read_assignment(statement: ast.stmt, source: str) -> tuple[str, str | None]:
    """Key and default of ``cfg.KEY = default``; None for the default if it is a node, ``CN()``."""
    text = ast.get_source_segment(source, statement)
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        name = ast.unparse(statement.targets[0])
        if name.startswith("cfg."):
            default = ast.get_source_segment(source, statement.value) or ""
            if default == "CN()":
                return name.removeprefix("cfg."), None
            return name.removeprefix("cfg."), ".inf" if default == 'float("inf")' else default
    raise ValueError(f"line {statement.lineno}: expected 'cfg.KEY = value', found '{text}'")


def _comment_blocks(comments: dict[int, str], first: int, last: int) -> list[list[str]]:
    """Runs of comment lines between two lines; the last one is that directly above ``last``."""
    blocks: list[list[str]] = [[]]
    for line in range(first + 1, last):
        if line in comments:
            blocks[-1].append(comments[line])
        elif blocks[-1]:
            blocks.append([])
    return blocks


def render(entries: Sequence[Entry]) -> str:
    """The whole page."""
    parts = [HEAD]
    section = ""
    pending: list[str] = []  # remarks wait for the heading of the key they are about
    for entry in entries:
        if not entry.keys:
            pending.append(render_comment(entry.comment))
            continue
        parent = entry.keys[0][0].rpartition(".")[0]
        if parent != section:
            section = parent
            parts.append(f"## `{section}`\n")
        parts.extend(pending)
        pending = []
        names = ", ".join(f"`{key}`" for key, _ in entry.keys)
        defaults = ", ".join(f"`{default}`" for _, default in entry.keys)
        parts.append(f"### {names}\n")
        parts.append(f"Default: {defaults}\n")
        parts.append(render_comment(entry.comment))
    return "\n".join(parts)


def render_comment(lines: Sequence[str]) -> str:
    """Markdown of a comment; names of keys are set as code."""
    out: list[str] = []
    kind = "text"
    for line in lines:
        item = _LIST_ITEM.fullmatch(line)
        if item:
            now, text = "list", f"- `{item[1]}`: {_mark_keys(item[2])}"
        elif line.startswith(" ") and kind == "list":
            now, text = "list", f"  {_mark_keys(line.strip())}"
        elif line.startswith(" "):
            now, text = "code", f"    {line.strip()}"
        else:
            now, text = "text", _mark_keys(line)
        if now != kind and out:
            out.append("")
        out.append(text)
        kind = now
    return "\n".join(out) + "\n"


def _mark_keys(text: str) -> str:
    return _KEY.sub(lambda match: f"`{match[0]}`", text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="default: docs/configuration.md"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        text = render(read_entries(SOURCE.read_text(encoding="utf-8")))
    except ValueError as error:
        print(f"error: {SOURCE.name}: {error}", file=sys.stderr)
        return 1
    if not args.check:
        # Here, as importing the plugin takes seconds, and --check does without it.
        from frcnn_plugin.atomic_files import write_text

        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.output, text)
        print(f"wrote {args.output}")
        return 0
    if not args.output.is_file() or args.output.read_text(encoding="utf-8") != text:
        print(
            f"error: {args.output} is out of date: run python tools/make_config_reference.py",
            file=sys.stderr,
        )
        return 1
    print(f"{args.output} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
