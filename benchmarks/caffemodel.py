"""``caffemodel``: time and memory of converting VGG16's caffemodel.

A file of the true layers and size (553 MB, random values) is written into a temporary folder and
converted by `frcnn weights convert` in a process of its own, which is compared with one that only
imports what the command imports. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.output import write_results
from frcnn_plugin.checkpoint import write_caffemodel
from frcnn_plugin.errors import UserError

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_FC = {"fc6": (4096, 25088), "fc7": (4096, 4096), "fc8": (1000, 4096)}


def write_vgg16(path: Path) -> None:
    """Write all layers of VGG_ILSVRC_16_layers, random."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for block, (width, convolutions) in enumerate(_BLOCKS, 1):
        for i in range(1, convolutions + 1):
            shapes[f"conv{block}_{i}"] = (width, channels, 3, 3)
            channels = width
    rng = np.random.default_rng(0)
    layers = {
        name: [rng.standard_normal(shape, dtype="f4"), np.zeros(shape[0], "f4")]
        for name, shape in {**shapes, **_FC}.items()
    }
    write_caffemodel(path, layers)


def measure(*words: str) -> tuple[float, float]:
    """Run `frcnn weights convert`; return its seconds and peak memory (MB, 1e6 bytes)."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "frcnn_plugin", "weights", "convert", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{' '.join(command)} failed: see above")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``caffemodel``."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        source, target = Path(folder, "vgg16.caffemodel"), Path(folder, "vgg16.pth")
        # In a process of its own: a child's peak counts from what its parent had.
        writer = multiprocessing.get_context("spawn").Process(target=write_vgg16, args=(source,))
        writer.start()
        writer.join()
        size = source.stat().st_size / 1e6
        _, imports = measure("--help")
        seconds, peak = measure(str(source), str(target))
    rows = [
        ("file, MB", f"{size:.0f}", ""),
        ("whole process, s", f"{seconds:.1f}", ""),
        ("peak memory, MB", f"{peak:.0f}", f"{peak / size:.2f} x the file"),
        ("of which imports (torch, Detectron2), MB", f"{imports:.0f}", ""),
        ("conversion, MB", f"{peak - imports:.0f}", f"{(peak - imports) / size:.2f} x the file"),
    ]
    print(tabulate(rows, tablefmt="plain"))
    results = {"file_mb": size, "seconds": seconds, "peak_mb": peak, "imports_mb": imports}
    return write_results(args.output, {"what": "caffemodel", **results})
