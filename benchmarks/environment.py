"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from frcnn_plugin.process import environment

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
        **_hardware(),
        "environment": environment(),
    }
    if hasattr(os, "getloadavg"):
        result["load_before"] = os.getloadavg()[0]
    return result


def _hardware() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def headline() -> str:
    """One line for the top of the tables."""
    hardware = _hardware()
    device = hardware["gpu"] or hardware["cpu"]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cores = f"{hardware['threads']} of {hardware['cores']} cores"
    return f"{device}, {cores}, torch {torch.__version__}{load}"
