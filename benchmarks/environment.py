"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision

import frcnn_plugin

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def cpu_name() -> str:
    """Model of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Instruction sets that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return [flag for flag in _FLAGS if f" {flag}" in text]


def describe() -> dict[str, Any]:
    """Command, hardware and versions, for the JSON file."""
    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "frcnn_plugin": frcnn_plugin.__version__,
        "platform": platform.platform(),
    }
    if hasattr(os, "getloadavg"):
        result["load_before"] = os.getloadavg()[0]
    return result


def headline() -> str:
    """One line for the top of the tables."""
    e = describe()
    device = e["gpu"] or e["cpu"]
    load = f", load {e['load_before']:.1f}" if "load_before" in e else ""
    return f"{device}, {e['threads']} of {e['cores']} cores, torch {e['torch']}{load}"
