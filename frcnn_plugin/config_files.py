"""Config files and overrides: found, read, checked key by key, and merged into a config.

All commands read YAML here. It is plain YAML: tags such as ``!!python/object`` are refused, in a
file and in those that it is based on, so that no config can run code. ``_BASE_`` names a file
beside this one, several (later ones win), or, as ``frcnn://faster_rcnn_vgg16_voc.yaml``, a config
that comes with the plugin.
"""

from __future__ import annotations

import contextlib
import os
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN

from .config import RENAMED_NODES, get_config_file, list_config_files, plugin_cfg
from .errors import UserError

NAMED = "frcnn://"  # before the name of a config that comes with the plugin

_BASE = "_BASE_"
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# Far above any config, and read in seconds. Aliases can multiply the values of a small file.
_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS, _MOST_FILES = 2**20, 100_000, 50, 100


@dataclass
class _File:
    """A YAML, read: its sections and keys, and the line of each."""

    source: str
    values: dict[str, Any]
    lines: dict[str, int]

    def where(self, key: str) -> str:
        line = f", line {self.lines[key]}" if key in self.lines else ""
        return f"{self.source}{line}: "


def load_config_file(cfg: CN, name: str | Path) -> None:
    """Merge a config file into ``cfg``, in place; nothing is changed if there is a mistake in it.

    Its name is a path, or ``frcnn://`` and the name of a config that comes with the plugin.

    Raises:
        UserError: a file cannot be read, or has a key or value that ``cfg`` cannot have.
    """
    chain = list(_read_chain(Path(find_config_file(name))))
    _merge(cfg, [file for _, file in reversed(chain)])


def saved_config(text: str) -> CN:
    """Return the config that a run has saved in its folder or checkpoint; not frozen.

    It may be from another version of the plugin or of Detectron2: keys that are not in this one are
    taken over. A typing mistake it cannot have. For the errors see :func:`load_config_file`.
    """
    cfg = plugin_cfg()
    cfg.set_new_allowed(True)
    _merge(cfg, [_parse(text.encode(errors="replace"), "YAML")])
    cfg.set_new_allowed(False)
    return cfg


def read_config_text(text: str, source: str) -> dict[str, Any]:
    """Return the sections and keys of such a config, under today's names; they are not checked."""
    values = _parse(text.encode(errors="replace"), source).values
    _rename(values, plugin_cfg())
    return values


def merge_overrides(cfg: CN, words: Sequence[Any]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` into ``cfg``, in place; nothing is changed by a mistake.

    Raises:
        UserError: an unknown key, a value that it cannot have, or none.
    """
    pairs: list[Any] = []
    for given, *rest in (words[i : i + 2] for i in range(0, len(words), 2)):
        key = _current_name(str(given), cfg)
        node, name = _find(cfg, key)
        if name not in node and cfg.key_is_deprecated(key):  # which logs a line
            continue
        if name not in node:
            _explain_word(key)
        _check_key(cfg, node, name, key)
        if not rest or str(rest[0]).startswith("--"):
            follows = f"{rest[0]} follows" if rest else "it is the last word"
            raise UserError(f"{key} has no value, {follows}: overrides are pairs, KEY VALUE")
        pairs += key, _checked_value(cfg, node[name], rest[0], key, quote='"')
    cfg.merge_from_list(pairs)


def base_chain(name: str | Path) -> list[Path]:
    """Return the paths of a config file and of those that it is based on, itself first.

    Raises:
        UserError: one of the files cannot be read; keys are not checked.
    """
    return [path.resolve() for path, _ in _read_chain(Path(find_config_file(name)))]


def find_config_file(name: str | Path) -> str:
    """Return the path of a config file; see :func:`load_config_file`."""
    name = str(name)
    if name.startswith(NAMED):
        return get_config_file(name.removeprefix(NAMED))
    if not Path(name).is_file():
        what = "it is a folder" if Path(name).is_dir() else _advice(name)
        raise UserError(f"no config file {name!r}; {what}")
    return name


def _advice(name: str) -> str:
    """Say how the packaged config is called that a path seems to mean, or where they all are."""
    parts = Path(name).parts
    for ours in list_config_files():
        if ours in {"/".join(parts[i:]) for i in range(len(parts))}:
            return f"the one that comes with frcnn_plugin is {NAMED}{ours}"
    start = "faster_rcnn_vgg16_voc.yaml"
    return (
        f"give the path of a YAML, or one that comes with frcnn_plugin, such as {NAMED}{start} "
        f"(all are in {Path(get_config_file(start)).parent})"
    )


# ---- files ------------------------------------------------------------------------------------


def _read_chain(path: Path, way: tuple[Path, ...] = ()) -> Iterator[tuple[Path, _File]]:
    """Yield a file, and after it those that it is based on, in the order in which they win."""
    way = (*way, path.resolve())
    file = _parse(_read(path), _plain(path))
    where, bases = file.where(_BASE), file.values.pop(_BASE, [])
    yield path, file
    count = 1
    for base in reversed(bases if isinstance(bases, list) else [bases]):
        following = _base_path(base, path.parent, where)
        if following.resolve() in way:
            raise UserError(f"{where}{_BASE} {_shown(base)} is itself based on this file")
        for found in _read_chain(following, way):
            yield found
            count += 1
            if count > _MOST_FILES:
                raise UserError(f"{_plain(path)} is based on more than {_MOST_FILES} files")


def _base_path(base: Any, folder: Path, where: str) -> Path:
    if not isinstance(base, str) or not base or ("://" in base and not base.startswith(NAMED)):
        raise UserError(
            f"{where}{_BASE} is {_shown(base)}: give the path of a YAML on this machine, or "
            f"{NAMED} and the name of one that comes with frcnn_plugin"
        )
    path = base if base.startswith(NAMED) else folder / os.path.expanduser(base)
    try:
        return Path(find_config_file(path))
    except UserError as error:
        raise UserError(f"{where}{_BASE}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{_plain(path)} cannot be read: {error.strerror}") from error


def _decode(content: bytes, source: str) -> str:
    if len(content) > _MOST_BYTES:
        raise UserError(f"{source} is larger than {_MOST_BYTES // 2**20} MiB: it is no config")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise UserError(f"{source} is not in UTF-8 but in UTF-16 or UTF-32: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{source}, line {line} is not UTF-8 text: save it as UTF-8") from error


def _parse(content: bytes, source: str) -> _File:
    try:
        loader = yaml.SafeLoader(_decode(content, source))
        node = loader.get_single_node()
        if node is None:  # nothing but comments
            return _File(source, {}, {})
        if not isinstance(node, yaml.MappingNode):
            what = "a list" if isinstance(node, yaml.SequenceNode) else "one value"
            raise UserError(
                f"{source} holds {what}, not sections of keys as SOLVER: {{GAMMA: 0.1}}"
            )
        _measure(node, source, {})
        lines = dict(_lines(node))
        return _File(source, loader.construct_document(node), lines)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        if isinstance(error, yaml.constructor.ConstructorError):
            problem += ". A config is plain text and numbers, without such tags"
        elif "'\\t'" in problem:
            problem += ". Indent with spaces, not with tabs"
        elif str(source).endswith(".py"):
            problem = "a .py config is for Detectron2's LazyConfig; use the .yaml of that name"
        raise UserError(f"{source}{line} is not YAML: {problem}") from error
    except Exception as error:  # PyYAML lets through whatever its converters raise
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _measure(node: yaml.Node, source: str, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Count the values below a node, aliases written out, and the levels; find repeated keys."""
    place = f"{source}, line {node.start_mark.line + 1}"
    if id(node) not in known:
        known[id(node)] = (0, 0)  # not done
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag not in (_STRING, _MERGE):
                    shown = _shown(key.value if isinstance(key, yaml.ScalarNode) else key.id)
                    raise UserError(f"{source}, line {line}: the key {shown} is not text")
                if key.value in first:
                    raise UserError(
                        f"{source}, line {line}: {_shown(key.value)} occurs already, in line "
                        f"{first[key.value]}: put what belongs to it in one place"
                    )
                first[key.value] = line
                children.append(value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        below = [_measure(child, source, known) for child in children]
        count, levels = sum(x for x, _ in below) + 1, max((x for _, x in below), default=0) + 1
        if count > _MOST_VALUES or levels > _MOST_LEVELS:
            what = f"{_MOST_VALUES} values" if count > _MOST_VALUES else f"{_MOST_LEVELS} levels"
            raise UserError(f"{place}: more than {what} follow: it is no config")
        known[id(node)] = count, levels
    if known[id(node)] == (0, 0):
        raise UserError(f"{place}: an alias (*name) is part of what it stands for")
    return known[id(node)]


def _lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        yield prefix + key.value, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{prefix}{key.value}.")


# ---- keys -------------------------------------------------------------------------------------


def _merge(cfg: CN, files: Sequence[_File]) -> None:
    """Check all files, then merge them, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for file in files:
        version = file.values.get("VERSION", cfg.VERSION)
        if str(version) != str(cfg.VERSION):
            raise UserError(
                f"{file.where('VERSION')}VERSION {_shown(version)}: only configs of VERSION "
                f"{cfg.VERSION} can be read; leave the line out and correct the keys "
                "that are then reported"
            )
        _rename(file.values, cfg)
        _update(merged, _checked_section(file.values, cfg, cfg, "", file))
    try:
        cfg.merge_from_other_cfg(type(cfg)(merged))
    except (AssertionError, KeyError, TypeError, ValueError) as error:  # in keys not known here
        raise UserError(f"{files[-1].source}: {error.args[0] if error.args else error}") from error


def _update(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = value


def _checked_section(
    values: dict[str, Any], node: CN, cfg: CN, prefix: str, file: _File
) -> dict[str, Any]:
    """Return the keys of a section with values that can be merged into ``node``."""
    checked: dict[str, Any] = {}
    for name, value in values.items():
        key, where = prefix + name, file.where(prefix + name)
        if name not in node and node.is_new_allowed():
            checked[name] = value
        elif name not in node and cfg.key_is_deprecated(key):  # which logs a line
            continue
        elif isinstance(node.get(name), CN) and isinstance(value, dict):
            checked[name] = _checked_section(value, node[name], cfg, f"{key}.", file)
        else:
            _check_key(cfg, node, name, key, where, section=isinstance(value, dict))
            checked[name] = _checked_value(cfg, node[name], value, key, where)
    return checked


def _find(cfg: CN, key: str) -> tuple[CN, str]:
    """Return the section of a key, and its name there; the whole key if there is no section."""
    node = cfg
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(node.get(section), CN):
            return cfg, key
        node = node[section]
    return node, name


def _check_key(
    cfg: CN, node: CN, name: str, key: str, where: str = "", *, section: bool = False
) -> None:
    """Raise an error unless ``node`` has the key, and it is no section."""
    if name not in node:
        if key in RENAMED_NODES:
            raise UserError(f"{where}{key} is now called {RENAMED_NODES[key]}: rename it")
        what, known = "section" if section else "key", flat_keys(cfg)
        if section:
            known = dict.fromkeys(name.rpartition(".")[0] for name in known if "." in name)
        raise UserError(
            f"{where}there is no {what} {_shown(key)}; did you mean {_close(key, known)}?"
        )
    if isinstance(node[name], CN):
        keys = ", ".join(f"{key}.{k}" for k in list(node[name])[:3])
        raise UserError(
            f"{where}{key} is a section: give keys in it, such as {keys}, or leave it out"
        )


def _explain_word(word: str) -> None:
    """Raise an error if a word where a key is expected is clearly something else."""
    if "=" in word:
        raise UserError(f"{word}: write {word.replace('=', ' ', 1)}, with a space instead of =")
    if word.endswith((".yaml", ".yml")):
        raise UserError(f"{word} is where a key is expected: write --config-file {word}")
    if not word.replace(".", "").replace("_", "").isalnum() or os.path.exists(word):
        raise UserError(
            f"{_shown(word)} is where a key is expected: overrides are pairs, KEY VALUE, a value "
            "with spaces or brackets stands in quotes, and files need the name of their option"
        )


def _close(key: str, names: Iterable[str]) -> str:
    """Return up to three names that are most like a key."""
    known, upper = list(names), key.upper()
    # The right name in the wrong section, or without one, means that name.
    same = [k for k in known if k.rpartition(".")[2] == upper.rpartition(".")[2]]
    close = get_close_matches(upper, same or known, n=3, cutoff=0.0 if same else 0.6)
    return " or ".join(close or get_close_matches(upper, known, n=3, cutoff=0.0))


def flat_keys(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"A.B": value}`` of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        nested = isinstance(value, Mapping)
        flat |= flat_keys(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


# ---- values -----------------------------------------------------------------------------------


def _checked_value(
    cfg: CN, old: Any, value: Any, key: str, where: str = "", *, quote: str = ""
) -> Any:
    """Return a value as yacs takes it for a key; ``quote`` is what a shell needs around it."""
    try:
        new = _literal(value)
    except (TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}{key} {_shown(value)} cannot be read: {error}") from error
    if type(old) is str and type(value) is str:
        # yacs would make a number of a folder called "2007".
        return value if type(new) is str else repr(value)
    if type(new) is type(old) or {type(new), type(old)} == {tuple, list}:
        return value
    if old is None and type(new) in (bool, int, float, str, tuple, list):
        return value
    if new is None and cfg.is_new_allowed():
        return value
    fix = "leave it out" if old is None else _fix(old, new, quote)
    raise UserError(f"{where}{key} {'has no value' if new is None else _shown(value)}: {fix}")


def _fix(old: Any, new: Any, quote: str) -> str:
    """Say what to write instead of a value that has not the type of ``old``."""
    if isinstance(old, (tuple, list)):
        if isinstance(new, dict):
            return "write a list, [{...}]"
        items = [] if new is None else [new]
        if isinstance(new, str) and new[:1] in ("(", "[") and new[-1:] not in (")", "]"):
            return 'it was split at a space or comma: put all of it in quotes, as "(30, 40)"'
        if isinstance(new, str) and "{" in new:
            # As it stands in a YAML file; an override is a Python literal.
            with contextlib.suppress(yaml.YAMLError):
                entries = yaml.safe_load(new)
                if isinstance(entries, list) and all(isinstance(x, dict) for x in entries):
                    return f"write {quote}{entries!r}{quote}"
        if isinstance(new, str):
            items = [_literal(x.strip(" '\"")) for x in new.strip("()[] ").split(",") if x.strip()]
        return f"write {quote}{type(old)(items)!r}{quote}"
    if isinstance(old, bool):
        return "write True or False"
    if isinstance(old, float):
        point = (
            "write the number with a point, " if type(new) is int else "write a number, such as "
        )
        return point + repr(float(new) if type(new) is int and abs(new) < 1e15 else old)
    if isinstance(old, int):
        whole = type(new) is float and new.is_integer()
        return f"write {int(new)}" if whole else f"write a whole number, such as {old}"
    if type(new) in (int, float):
        return f'write it in quotes, "{new}"'
    return f"write text, such as {old!r}" if old else 'write text, or "" for none'


def _literal(value: Any) -> Any:
    """Return what yacs makes of a value: text that looks like a Python literal becomes it."""
    try:
        return literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _shown(value: object) -> str:
    """Return a value as a message shows it: short, in one line."""
    text = _plain(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and text else repr(text)


# ---- keys of earlier versions -----------------------------------------------------------------


def _rename(values: dict[str, Any], cfg: CN) -> None:
    """Move what a file of an earlier version says to the keys of today, in place."""
    model = values.get("MODEL")
    for old, new in RENAMED_NODES.items():
        before, now = old.removeprefix("MODEL."), new.removeprefix("MODEL.")
        # A node of that name may also be another project's.
        if not isinstance(model, dict) or before in cfg.MODEL or now in model:
            continue
        section = model.get(before)
        if isinstance(section, dict) and set(section) <= set(cfg.MODEL.get(now, ())):
            model[now] = model.pop(before)


def _current_name(key: str, cfg: CN) -> str:
    """Return today's name of a key."""
    for old, new in RENAMED_NODES.items():
        if key.startswith(f"{old}.") and old.removeprefix("MODEL.") not in cfg.MODEL:
            return new + key.removeprefix(old)
    return key
