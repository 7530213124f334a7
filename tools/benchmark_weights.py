#!/usr/bin/env python
"""Measure the conversion of VGG16's caffemodel: time and memory.

    python tools/benchmark_weights.py

Writes a caffemodel of the true layers and size (553 MB, random values) into a temporary folder,
converts it with tools/convert_weights.py in a process of its own, and compares with a process that
only imports what the tool imports. Nothing is downloaded.
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

import numpy as np
from tabulate import tabulate

CONVS = (("conv1", 64, 2), ("conv2", 128, 2), ("conv3", 256, 3), ("conv4", 512, 3))
TOOL = Path(__file__).resolve().parent / "convert_weights.py"


def write_vgg16(path: Path) -> None:
    """All layers of VGG_ILSVRC_16_layers, random."""
    # Here, as a child's peak counts from what its parent had when it was forked.
    from frcnn_plugin.checkpoint import write_caffemodel

    rng = np.random.default_rng(0)
    layers = {}
    channels = 3
    for stage, width, convs in (*CONVS, ("conv5", 512, 3)):
        for i in range(1, convs + 1):
            weight = rng.standard_normal((width, channels, 3, 3), dtype="f4")
            layers[f"{stage}_{i}"] = [weight, np.zeros(width, "f4")]
            channels = width
    for name, shape in (("fc6", (4096, 25088)), ("fc7", (4096, 4096)), ("fc8", (1000, 4096))):
        layers[name] = [rng.standard_normal(shape, dtype="f4"), np.zeros(shape[0], "f4")]
    write_caffemodel(path, layers, name="VGG_ILSVRC_16_layers")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory (MB, 1e6 bytes) of a process, which is waited for."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "vgg16.caffemodel", Path(folder) / "vgg16.pth"
        writer = multiprocessing.get_context("spawn").Process(target=write_vgg16, args=(source,))
        writer.start()
        writer.join()
        size = source.stat().st_size / 1e6
        _, imports = measure([sys.executable, str(TOOL), "--help"])
        seconds, peak = measure([sys.executable, str(TOOL), str(source), str(target)])
    rows = [
        ("file, MB", f"{size:.0f}", ""),
        ("whole process, s", f"{seconds:.1f}", ""),
        ("peak memory, MB", f"{peak:.0f}", f"{peak / size:.2f} x the file"),
        ("of which imports (torch, Detectron2), MB", f"{imports:.0f}", ""),
        ("conversion, MB", f"{peak - imports:.0f}", f"{(peak - imports) / size:.2f} x the file"),
    ]
    print(tabulate(rows, tablefmt="plain"))


if __name__ == "__main__":
    main()
