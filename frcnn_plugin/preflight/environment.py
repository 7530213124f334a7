"""The software and the devices; nothing here needs a config."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import detectron2
import torch
from torchvision import ops

from .finding import Finding, Subject, plural

_ENVIRONMENT = Subject("environment")
_DRIVER = Path("/proc/driver/nvidia/version")


def check_environment(
    device: str = "", num_processes: int = 1, *, touch_gpus: bool = True
) -> Iterator[Finding]:
    """Check versions, Detectron2, operators and devices.

    Without a ``device``, CUDA is looked at if it can be used. Trying the operators on GPUs takes
    memory there.
    """
    yield _versions()
    yield _detectron2()
    yield _operators("cpu")
    cuda = device.startswith("cuda") if device else torch.cuda.is_available()
    if cuda:
        yield from _gpus(device or "cuda", num_processes, touch_gpus)
    else:
        yield from _no_gpu(num_processes)


def _versions() -> Finding:
    # From the loaded modules: importing the package here would turn the order of imports around.
    names = ("frcnn_plugin", "torch", "torchvision", "numpy", "PIL", "cv2")
    versions = [f"{name} {sys.modules[name].__version__}" for name in names]
    return _ENVIRONMENT.ok(f"Python {platform.python_version()}, {', '.join(versions)}")


def _detectron2() -> Finding:
    folder = Path(detectron2.__file__).parent
    try:
        importlib.import_module("detectron2._C")
    except ImportError as e:
        if "_C" not in str(e):  # it exists, but for another torch
            return _ENVIRONMENT.error(
                f"the compiled part of Detectron2 does not fit this torch ({e})",
                "Build it again: python tools/install_detectron2.py",
            )
        compiled = "without compiled operators (fine: torchvision's are used)"
    else:
        compiled = "with compiled operators"
    return _ENVIRONMENT.ok(f"Detectron2 in {folder}, {compiled}")


def _operators(device: str) -> Finding:
    """Run the operators of torchvision that the networks need, on numbers with known results."""
    try:
        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]], device=device)
        kept = ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1], device=device), 0.5).tolist()
        image = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
        roi = torch.tensor([[0.0, 0, 0, 3, 3]], device=device)
        pooled = ops.roi_pool(image, roi, (2, 2)).flatten().tolist()
    except Exception as e:  # operators that do not fit raise all kinds of errors
        problem = str(e).strip().partition("\n")[0]
    else:
        if kept == [1, 2] and pooled == [5.0, 7.0, 13.0, 15.0]:
            return _ENVIRONMENT.ok(f"torchvision's nms and roi_pool work on {device}")
        problem = f"nms gave {kept} and roi_pool {pooled}"
    return _ENVIRONMENT.error(
        f"torchvision's nms or roi_pool fails on {device} ({problem})",
        "Install a matching pair: python -m pip install --upgrade torch torchvision",
    )


def _gpus(device: str, num_processes: int, touch: bool) -> Iterator[Finding]:
    visible = torch.cuda.device_count()
    number = torch.device(device).index
    if number is not None and number >= visible:
        yield _ENVIRONMENT.error(
            f"MODEL.DEVICE is {device}, but {plural(visible, 'GPU')} can be seen, from cuda:0 on",
            "Type MODEL.DEVICE cuda, or make more of them visible (CUDA_VISIBLE_DEVICES)",
        )
        return
    if num_processes > visible:
        yield _ENVIRONMENT.error(
            f"--num-gpus {num_processes}, but {plural(visible, 'GPU')} can be seen",
            f"Give --num-gpus {visible}, or make more of them visible (CUDA_VISIBLE_DEVICES)",
        )
        return
    for number in range(num_processes):
        name = torch.cuda.get_device_name(number)
        memory = f"{torch.cuda.get_device_properties(number).total_memory / 2**30:.1f} GiB"
        if touch:  # only then it is known what other programs take
            memory = f"{torch.cuda.mem_get_info(number)[0] / 2**30:.1f} of {memory} free"
        yield _ENVIRONMENT.ok(
            f"GPU {number}: {name}, {memory}, CUDA {torch.version.cuda}, driver "
            f"{driver_version() or 'unknown'}"
        )
        if touch:
            yield _operators(f"cuda:{number}")


def _no_gpu(num_processes: int) -> Iterator[Finding]:
    cores, driver = os.cpu_count() or 1, driver_version()
    if driver and torch.version.hip is None and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield _ENVIRONMENT.warning(
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__}, {build}, finds "
            "no device: everything runs on the CPU",
            "Install a build of torch for this driver (pytorch.org), or look at "
            "CUDA_VISIBLE_DEVICES",
        )
    else:
        yield _ENVIRONMENT.ok(
            f"no CUDA device is used: {plural(num_processes, 'process')} on "
            f"{plural(cores, 'CPU core')}"
        )
    if num_processes > cores:
        yield _ENVIRONMENT.warning(
            f"{num_processes} processes share {plural(cores, 'CPU core')}",
            f"Give --num-gpus {cores}, or let the launcher start so many",
        )
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    if threads > 1 and load >= max(1, cores / 4) and load + threads * num_processes > cores:
        free = max(1, int((cores - load) / num_processes))
        yield _ENVIRONMENT.warning(
            f"the load of the last minute is {load:.1f} on {plural(cores, 'CPU core')}: fewer are "
            f"free than the {threads} threads per process, which lose much time waiting for one "
            "another then",
            f"Wait until they are free, or type OMP_NUM_THREADS={free} before the command",
        )


def driver_version() -> str:
    """Return the version of NVIDIA's kernel module; "" if there is none."""
    try:
        words = _DRIVER.read_text().split()
    except OSError:
        return ""
    return next((w for w in words if w[0].isdigit() and "." in w), "of unknown version")
