"""How the config of a run differs from the file it was started with, and from its preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import base_chain, get_config_file, list_config_files, plugin_cfg

_ABSENT = "–"
_PRESET = "Base-"
# Set by the program, not by anybody.
_DERIVED = {"VERSION"}
_DERIVED_IN_FOUR_STEP = {"SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.REFERENCE_WORLD_SIZE"}

Flat = dict[str, Any]


@dataclass(frozen=True)
class ConfigDiff:
    """Three configs side by side.

    Attributes:
        file: name of the config file; "" for none.
        preset: name of the first Base-*.yaml in its `_BASE_` chain, else of the last file there;
            "" if that is itself.
        recorded: whether the run says that this is its file; if not, it is the nearest of those
            that come with the plugin.
        problem: why the recorded file could not be used; "" if it could.
        rows: key, value in the preset, in the file, in the run: where these differ; first those
            where the run differs from the file.
        num_own: how many those are.
        preset_rows: key, default, value in the preset: where these differ.
    """

    file: str
    preset: str
    recorded: bool
    problem: str
    rows: list[tuple[str, str, str, str]]
    num_own: int
    preset_rows: list[tuple[str, str, str]]


def parse_config(text: str) -> Flat:
    """``{"A.B": value}`` of a YAML text.

    Raises:
        ValueError: it is no YAML of a config.
    """
    try:
        return flatten(CfgNode.load_cfg(text))
    except Exception as error:  # yaml's and yacs' errors have no common base
        raise ValueError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def flatten(node: Mapping[str, Any], prefix: str = "") -> Flat:
    """``{"A.B": value}`` of nested mappings; tuples become lists, as in YAML."""
    flat: Flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _as_list(value)
    return flat


def diff_config(run: Flat, config_file: str | None) -> ConfigDiff:
    """Compares the config of a run with where it comes from.

    Args:
        run: the config.
        config_file: path of the YAML it was started with, "" for none, None if not known.
    """
    default = _defaults()
    problem = ""
    recorded = config_file is not None
    if config_file:
        try:
            chain = _chain(config_file)
            file, preset = _load(chain[0]), _load(chain[-1])
        except Exception as error:  # deleted, moved or edited since
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            config_file = None
    if config_file is None:
        chain, file, preset = _nearest(run)
    elif not config_file:
        chain, file, preset = [], default, default
    ignored = _DERIVED | (_DERIVED_IN_FOUR_STEP if run.get("FOUR_STEP.ENABLED") else set())
    rows = [
        (key, _text(preset, key), _text(file, key), _text(run, key))
        for key in sorted({*run, *file} - ignored)
        if len({_text(preset, key), _text(file, key), _text(run, key)}) > 1
    ]
    rows.sort(key=lambda row: row[2] == row[3])
    preset_rows = [
        (key, _text(default, key), _text(preset, key))
        for key in sorted(preset)
        if _text(default, key) != _text(preset, key)
    ]
    return ConfigDiff(
        file=chain[0].name if chain else "",
        preset=chain[-1].name if len(chain) > 1 else "",
        recorded=recorded and not problem,
        problem=problem,
        rows=rows,
        num_own=sum(file_value != value for _, _, file_value, value in rows),
        preset_rows=preset_rows,
    )


def _nearest(run: Flat) -> tuple[list[Path], Flat, Flat]:
    """The config of ours that differs from `run` in the fewest keys."""
    best: tuple[int, Path, Flat] | None = None
    for name in list_config_files():
        path = Path(get_config_file(name))
        if path.name.startswith(_PRESET):
            continue
        flat = _load(path)
        distance = sum(_text(flat, key) != _text(run, key) for key in {*flat, *run})
        if best is None or distance < best[0]:
            best = distance, path, flat
    if best is None:
        return [], _defaults(), _defaults()
    chain = _chain(best[1])
    return chain, best[2], _load(chain[-1])


def _chain(path: str | Path) -> list[Path]:
    """A config file and those it is based on, itself first, down to its preset."""
    chain = base_chain(path)
    presets = [i for i, file in enumerate(chain) if file.name.startswith(_PRESET)]
    return chain[: presets[0] + 1] if presets else chain


def _load(path: Path) -> Flat:
    cfg = plugin_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return flatten(cfg)


def _defaults() -> Flat:
    return flatten(plugin_cfg())


def _text(flat: Flat, key: str) -> str:
    if key not in flat:
        return _ABSENT
    value = flat[key]
    return repr(value) if isinstance(value, str) else str(value)


def _as_list(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_list(entry) for entry in value]
    if isinstance(value, dict):  # their order means nothing
        return {key: _as_list(value[key]) for key in sorted(value)}
    return value
