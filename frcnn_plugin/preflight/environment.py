"""The software, the devices, and the data sets at hand; nothing here needs a config."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.data import DatasetCatalog
from torchvision import ops

from ..data.datasets.arguments import datasets_root, root_in_words
from ..data.datasets.voc import OFFICIAL_IMAGE_COUNTS, VOCSource
from ..data.datasets.voc_files import split_file
from .finding import Finding, Subject, plural

_ENVIRONMENT, _DATA = Subject("environment"), Subject("data")
_DRIVER = Path("/proc/driver/nvidia/version")
_MOST_FOLDERS = 200  # that are looked into below one folder


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


# ---- data sets: below $DETECTRON2_DATASETS, or a level off what was given ----------------------


def check_data_root() -> Iterator[Finding]:
    """Say which data sets lie below ``$DETECTRON2_DATASETS``."""
    found = []
    for name in OFFICIAL_IMAGE_COUNTS:
        source: Any = DatasetCatalog[name]
        lists = [split_file(folder, source.split) for folder in source.candidates()]
        file = next((f for f in lists if f.is_file()), None)
        if file is not None:
            number = sum(bool(line.strip()) for line in file.read_text().splitlines())
            found.append(f"{name} ({number} images)")
    annotations = datasets_root() / "coco" / "annotations"
    found += [file.name for file in sorted(annotations.glob("instances_*.json"))]
    if found:
        yield _DATA.ok(f"DETECTRON2_DATASETS ({root_in_words()}) has {', '.join(found)}")
        return
    fix = suggest_folder("voc07_trainval") or (
        "For VOC: export DETECTRON2_DATASETS=<folder that holds VOC2007 or VOCdevkit>"
    )
    yield _DATA.warning(f"no VOC or COCO in DETECTRON2_DATASETS ({root_in_words()})", fix)


def suggest_folder(name: str) -> str:
    """Say what to type if a VOC-format set lies a level above or below where it should.

    "" if nothing was found nearby, or nothing is wrong, or the set is of another format.
    """
    source: Any = DatasetCatalog[name] if name in DatasetCatalog else None
    if not isinstance(source, VOCSource):
        return ""
    if any(split_file(folder, source.split).is_file() for folder in source.candidates()):
        return ""
    if not source.official:
        near = _near(source.candidates()[0])
        nearby = (folder for folder in near if split_file(folder, source.split).is_file())
        folder = next(nearby, None)
        return f"It seems to be one level off: root: {folder}" if folder else ""
    year = f"VOC{source.year}"
    for folder in _near(datasets_root()):
        for place in (folder, folder / year, folder / "VOCdevkit" / year):
            if place.name == year and split_file(place, source.split).is_file():
                return f"It seems to be one level off: export DETECTRON2_DATASETS={place.parent}"
    return ""


def _near(folder: Path) -> Iterator[Path]:
    """Yield the folder, three above it, and two levels below it."""
    folder = folder.absolute()
    yield from (folder, *folder.parents[:3])
    for pattern in ("*/", "*/*/"):
        yield from islice(folder.glob(pattern), _MOST_FOLDERS)
