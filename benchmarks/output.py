"""How results are shown: the headline of a table, benchmark.json, and charts."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from frcnn_plugin.atomic_files import replacing, write_text
from frcnn_plugin.errors import UserError
from frcnn_plugin.process import environment

FILE = "benchmark.json"

# Sections in the order they run; colours that stay apart in print and for the colour-blind.
_COLOURS = {
    "conv": "#4477aa",
    "proposal": "#ee6677",
    "region-wise": "#228833",
    "backward": "#ccbb44",
    "optimizer": "#aa3377",
    "other": "#bbbbbb",
}
_LINES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
# Instruction sets that matter here.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def headline() -> str:
    """Describe the machine in one line, for the top of a table."""
    hardware = _hardware()
    device = hardware["gpu"] or hardware["cpu"]
    cores = f"{hardware['threads']} of {hardware['cores']} cores"
    return f"{device}, {cores}, torch {torch.__version__}, load {hardware['load']:.1f}"


def _hardware() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    _, _, model = text.partition("model name")
    name = model.partition("\n")[0].strip("\t :")
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if f" {flag}" in text],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
    }


def describe() -> dict[str, Any]:
    """Return the command, the hardware and the versions, for ``benchmark.json``."""
    command = shlex.join(["python", *sys.argv])
    return {"command": command, **_hardware(), "environment": environment()}


def prepare_folder(folder: Path | None) -> None:
    """Make the output folder before anything is measured."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output {folder}: {e.strerror}") from e


def write_results(folder: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """Write ``benchmark.json``, if there is a folder; return the results as they were."""
    if folder is not None:
        content = {**describe(), **results}
        write_text(folder / FILE, json.dumps(content, indent=2, default=str) + "\n")
    return results


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def bar_chart(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, path: Path) -> None:
    """Draw one stacked bar per model: its name, and median seconds by section, a colour each."""
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    longest = max(sum(sections.values()) for _, sections in rows)
    used = [name for name in _COLOURS if any(s.get(name, 0) for _, s in rows)]
    left = [0.0] * len(rows)
    for name in used:
        widths = [max(0.0, 1000 * s.get(name, 0.0)) for _, s in rows]
        axes.barh(range(len(rows)), widths, left=left, color=_COLOURS[name], label=name, height=0.7)
        for i, width in enumerate(widths):
            if width > 60 * longest:  # room for a number
                axes.text(
                    left[i] + width / 2, i, f"{width:.0f}", ha="center", va="center", color="white"
                )
            left[i] += width
    for i, total in enumerate(left):
        axes.text(total + 10 * longest, i, f"{total:.0f} ms", va="center", weight="bold")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1140 * longest)
    axes.set_xlabel("median of each section, ms")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(used), frameon=False)
    _save(figure, path)


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    labels: tuple[str, str],
    path: Path,
) -> None:
    """Draw one line per model; the labels are those of the axes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(curves.items(), _LINES * len(curves), strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", color=colour, label=name)
    positions = [x for x, _ in next(iter(curves.values()))]
    if min(positions) > 0 and max(positions) >= 16 * min(positions):
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(positions, [f"{x:g}" for x in positions])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)
