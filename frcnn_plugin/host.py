"""The host: is there a Detectron2 to work with, and which of its private members are needed.

:func:`check_host` runs before anything else is imported, so that a missing or unsuitable host ends
in one sentence and one command instead of a stack trace from somewhere inside Detectron2. It only
imports what the package needs anyway. Nothing here may import torch or Detectron2 at module level,
and nothing is decided by version number: every Detectron2 since 2021 calls itself "0.6".
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIP = "python -m pip install"
_UPSTREAM = "'git+https://github.com/facebookresearch/detectron2.git'"
_INSTALL_DETECTRON2 = (
    "python tools/install_detectron2.py (in a checkout of frcnn_plugin), or, with a C++ compiler, "
    f"{_PIP} --no-build-isolation {_UPSTREAM}"
)

# Modules whose package on the index has another name.
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "PIL": "Pillow",
    "yaml": "PyYAML",
    "pkg_resources": "'setuptools<82'",  # gone from setuptools 82, and Detectron2 imports it
}


def check_host() -> None:
    """Check that PyTorch, torchvision and Detectron2 can be used together.

    Raises:
        ImportError: one of them is missing or unsuitable; the text says which and names the command
            that repairs it. Its `name` is this package's, by which the console command knows that
            the text is for the user.
    """
    try:
        check_torch()
        check_detectron2()
    except ImportError as error:
        error.name = __package__
        raise


def check_torch() -> None:
    """Check that PyTorch and torchvision are installed and match; raise ImportError otherwise."""
    torch = _import("torch", f"{_PIP} torch torchvision", f"{_PIP} --force-reinstall torch")
    version = str(torch.__version__).partition("+")[0]
    pair = f"{_PIP} --upgrade torch torchvision"
    # Naming the installed torch makes pip choose the torchvision that was made for it.
    torchvision = _import("torchvision", f"{_PIP} torch=={version} torchvision", pair)
    # Some versions import silently when their compiled operators do not fit this torch, and fail at
    # the first NMS, far from the cause.
    if not hasattr(torch.ops.torchvision, "nms"):
        raise ImportError(
            f"torchvision {torchvision.__version__} does not match torch {torch.__version__}: its "
            f"compiled operators (torchvision::nms) are missing. Install a matching pair: {pair}"
        )


def check_detectron2() -> None:
    """Check that Detectron2 is installed and recent enough; raise ImportError otherwise."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        # No origin: a folder of that name without code, such as the root of a clone of Detectron2
        # seen from its parent folder, which Python takes for a namespace package.
        places = spec.submodule_search_locations if spec else None
        folder = f" (the folder {next(iter(places))} is not it)" if places else ""
        raise ImportError(f"Detectron2 is not installed{folder}. Install it: {_INSTALL_DETECTRON2}")
    where = str(spec.origin).removesuffix("__init__.py")
    try:
        # All of Detectron2 that this package uses is loaded by this one import.
        engine = importlib.import_module("detectron2.engine")
    except Exception as error:
        raise ImportError(_explain_detectron2(where, error)) from error
    if not hasattr(engine.SimpleTrainer, "reset_data_loader"):  # 2022
        raise ImportError(_too_old(where))


def _import(name: str, install: str, repair: str) -> ModuleType:
    """Import a module, or say how to install it (missing) or repair it (broken)."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ImportError(f"{name} is not installed. Install it: {install}") from error
        if name == "torchvision":
            # Typically "operator torchvision::nms does not exist" or an undefined symbol.
            raise ImportError(
                "torchvision does not match the installed torch, or is damaged "
                f"({_summary(error)}). Install a matching pair: {repair}"
            ) from error
        raise ImportError(f"{name} is damaged ({_summary(error)}). Repair it: {repair}") from error


def _explain_detectron2(where: str, error: Exception) -> str:
    if isinstance(error, AttributeError) and "LINEAR" in str(error):
        return _too_old(where)  # Image.LINEAR, which Pillow 10 removed
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = _PACKAGES.get(error.name, error.name)
        return (
            f"Detectron2 at {where} needs the module {error.name!r}, which is not installed. "
            f"Install it: {_PIP} {package}"
        )
    return (
        f"Detectron2 at {where} cannot be imported ({_summary(error)}). If it was compiled for "
        "another torch, build it again: "
        f"{_PIP} --force-reinstall --no-deps --no-build-isolation {_UPSTREAM}"
    )


def _too_old(where: str) -> str:
    return (
        f"Detectron2 at {where} is the 2021 release v0.6 or older; main of January 2024 or newer "
        "is needed (both call themselves 0.6). Replace it: python -m pip uninstall detectron2, "
        f"then {_INSTALL_DETECTRON2}"
    )


def _summary(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


# ---- private members of Detectron2 ------------------------------------------------------------
#
# What Detectron2 offers no public way to reach. Nothing else in the package touches such a member,
# so if an update of Detectron2 renames one, only this file changes. Objects come as arguments;
# nothing is imported before it is needed.


def register(registry: Any) -> Callable[[T], T]:
    """Register a class in a registry of Detectron2, by its name.

    If another project took the name first, the class is found as "frcnn_plugin.NAME". A project
    that takes it later fails in Detectron2's own check, so its modules have to be imported first.
    """

    def add(cls: T) -> T:
        name: str = cls.__name__  # type: ignore[attr-defined]
        if name in registry:
            other, name = registry.get(name), f"{__package__}.{name}"
            logger.warning(
                "%s of %s is registered already; frcnn_plugin's class is '%s' in a config",
                *(other.__name__, other.__module__, name),
            )
        _member(registry, "_do_register")(name, cls)
        return cls

    return add


def inner_trainer(trainer: Any) -> Any:
    """Return the SimpleTrainer, or AMPTrainer, that a DefaultTrainer runs its iterations with."""
    return _member(trainer, "_trainer")


def set_inner_trainer(trainer: Any, inner: Any) -> None:
    """Set what :func:`inner_trainer` returns, for a trainer that makes its own."""
    trainer._trainer = inner


def start_data_loader(trainer: Any) -> None:
    """Start the iterator of a DefaultTrainer's data loader, if it has not been started."""
    _member(inner_trainer(trainer), "_data_loader_iter")


def registered_hooks(trainer: Any) -> list[Any]:
    """Return the hooks of a trainer, in the order in which they are called."""
    hooks: list[Any] = _member(trainer, "_hooks")
    return hooks


def last_results(trainer: Any) -> Any:
    """Return what a DefaultTrainer's last evaluation gave; None if there was none."""
    return getattr(trainer, "_last_eval_results", None)


def set_last_results(trainer: Any, results: Any) -> None:
    """Set what :func:`last_results` returns; DefaultTrainer looks for it there as well."""
    trainer._last_eval_results = results


def eval_period_and_function(hook: Any) -> tuple[int, Callable[[], Any]]:
    """Return what an EvalHook was made with."""
    return _member(hook, "_period"), _member(hook, "_func")


def forget_scalars(storage: Any, word: str) -> None:
    """Drop all values whose name contains a word from an EventStorage.

    If a version of Detectron2 keeps them elsewhere, the log still shows their last values.
    """
    for members in ("_history", "_latest_scalars"):
        values = getattr(storage, members, {})
        for name in [n for n in values if word in n]:
            del values[name]


def transform_rois(roi_heads: Any, features: Any, boxes: Any) -> Any:
    """Pool boxes and pass them through the last block of a Res5ROIHeads: (R, C, H, W)."""
    return _member(roi_heads, "_shared_roi_transform")(features, boxes)


def head_losses(roi_heads: Any, features: Any, rois: Any, *names: str) -> dict[str, Any]:
    """Compute losses of a StandardROIHeads, which samples on its own, on given RoIs.

    The `names` are those of its heads: "box", "mask", "keypoint".
    """
    losses: dict[str, Any] = {}
    for name in names:
        losses.update(_member(roi_heads, f"_forward_{name}")(features, rois))
    return losses


def replace_metadata(name: str, **values: object) -> None:
    """Change what Detectron2's catalog says about a data set.

    ``Metadata.set`` refuses a value other than the present one, although the files of a data set
    may change while a notebook is open. Its values are its attributes.
    """
    catalog = importlib.import_module("detectron2.data").MetadataCatalog
    vars(catalog.get(name)).update(values)


@contextmanager
def metadata_replaced(name: str, **values: object) -> Iterator[None]:
    """Change what the catalog says about a data set, as :func:`replace_metadata`, for a while."""
    held = vars(importlib.import_module("detectron2.data").MetadataCatalog.get(name))
    before = dict(held)
    held.update(values)
    try:
        yield
    finally:
        held.clear()
        held.update(before)


def coco_content(evaluator: Any) -> dict[str, Any]:
    """Return what a COCOEvaluator has read of its annotation file."""
    content: dict[str, Any] = _member(evaluator, "_coco_api").dataset
    return content


def set_coco_content(evaluator: Any, content: dict[str, Any]) -> None:
    """Let a COCOEvaluator evaluate against this in place of what it has read."""
    api = _member(evaluator, "_coco_api")
    api.dataset = content
    with redirect_stdout(None):  # it prints that it does so
        api.createIndex()
    evaluator._do_evaluation = "annotations" in content


def forget_process_groups() -> None:
    """Empty Detectron2's caches of process groups, which keep them alive."""
    comm: Any = importlib.import_module("detectron2.utils.comm")
    comm._LOCAL_PROCESS_GROUP = None
    for cached in ("_get_global_gloo_group", "create_local_process_group"):
        clear = getattr(getattr(comm, cached, None), "cache_clear", None)
        if clear is not None:
            clear()


def _member(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise RuntimeError(
            f"{type(owner).__name__} has no {name}, which frcnn_plugin needs: it works with "
            "trainers made like Detectron2's DefaultTrainer, and with Detectron2's main of "
            "January 2024 to June 2026"
        ) from error
