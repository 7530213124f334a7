"""Weights: there, recognised, those that the model needs. Only names and shapes are read."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from ..checkpoint.catalog.download import PREFIX, cached_path
from ..checkpoint.catalog.known_files import find
from ..checkpoint.checkpointer import AtomicCheckpointer, names_detector
from ..checkpoint.metadata import KEY, Metadata
from ..checkpoint.read import peek
from ..errors import UserError
from .finding import Finding, error, ok, warning
from .planned_run import PlannedRun, muted, warnings_of

_SUBJECT = "weights"


def check_weights(run: PlannedRun) -> Iterator[Finding]:
    """Load the file that the run starts with into a model without memory."""
    problem = _missing(run)
    if problem:
        yield error(_SUBJECT, problem)
        return
    try:
        model = run.model
    except KeyError as e:
        # From a registry: "No object named 'VGG17' found in 'BACKBONE' registry!"
        yield error(_SUBJECT, f"the model cannot be built: {e.args[0] if e.args else e}")
        return
    except UserError:
        raise
    except Exception as e:  # a component that cannot be built without numbers
        yield warning(_SUBJECT, f"not compared with the model, which {type(e).__name__} prevents")
        return
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    network = f"{run.cfg.MODEL.META_ARCHITECTURE}, {run.cfg.MODEL.BACKBONE.NAME}"
    numbers = f"{total / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained)"
    yield ok(_SUBJECT, f"model: {network}, {numbers}")
    file = run.weights
    if not file:
        yield ok(_SUBJECT, "none: training starts from random weights")
    elif "://" not in file:
        yield from _compare(run, file)
    elif file.startswith(PREFIX) and (
        cached_path(find(file.removeprefix(PREFIX))).is_file() or not (run.alone or run.failed)
    ):
        # If a run is about to start, one process downloads here what all of them will use.
        yield from _compare(run, PathManager.get_local_path(file))
    else:
        yield ok(_SUBJECT, f"{file} is downloaded when the run starts, and checked then")


def _missing(run: PlannedRun) -> str:
    """Return what is wrong with the names of files."""
    cfg, file = run.cfg, run.weights
    initial = cfg.FOUR_STEP.INITIAL_WEIGHTS if cfg.FOUR_STEP.ENABLED else ""
    if initial and not run.eval_only and not Path(initial).is_file():
        return f"FOUR_STEP.INITIAL_WEIGHTS: there is no file '{initial}'"
    if run.eval_only and not (file and names_detector(cfg)):
        which = f", which {file} are not" if file else ""
        return (
            f"--eval-only needs trained weights{which}: add MODEL.WEIGHTS path/to/model_final.pth"
        )
    if file:
        # If the file of a resumed run is missing, loading it gives better advice.
        if Path(file).is_dir():
            return f"MODEL.WEIGHTS: {file} is a folder: name a file in it, such as model_final.pth"
        there = "://" in file or Path(file.partition("?")[0]).is_file()
        missing = file == cfg.MODEL.WEIGHTS and not there
        return f"MODEL.WEIGHTS: there is no file '{file}'" if missing else ""
    if cfg.MODEL.BACKBONE.NAME in ("VGG16", "ZF") and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        return (
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}: the frozen layers would stay random. Add "
            "MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet (docs/weights.md lists others), or train "
            "from scratch with MODEL.BACKBONE.FREEZE_AT 0"
        )
    return ""


def _compare(run: PlannedRun, file: str) -> Iterator[Finding]:
    folder = "" if run.eval_only else run.cfg.OUTPUT_DIR
    loader = _ShapesOnly(run.model, folder, cfg=run.model_cfg, evaluating=run.eval_only)
    with warnings_of("frcnn_plugin") as messages, muted("detectron2"), muted("fvcore"):
        loader.load(file)
    yield from (warning(_SUBJECT, message) for message in messages)
    metadata = loader.metadata
    if metadata is None or metadata.preprocessing is None:
        yield warning(
            _SUBJECT,
            f"{file} does not say which images it was trained on; INPUT.FORMAT "
            f"{run.cfg.INPUT.FORMAT} and MODEL.PIXEL_MEAN are taken on trust",
            "frcnn weights convert writes files that say so",
        )
    kind = f", {metadata.kind}" if metadata is not None else ""
    classes = f", {len(metadata.classes)} classes" if metadata and metadata.classes else ""
    yield ok(
        _SUBJECT, f"{file}: {loader.found} of {loader.wanted} weights of the model{kind}{classes}"
    )


class _ShapesOnly(AtomicCheckpointer):
    """Loads a file into a model on the meta device, without reading numbers if it can."""

    metadata: Metadata | None = None
    found = wanted = 0

    def _torch_load(self, f: str) -> Any:
        return peek(f).content

    def _load_model(self, checkpoint: Any) -> Any:
        self.metadata = Metadata.from_dict(checkpoint.get(KEY))
        with python_warnings.catch_warnings():
            # They say that copying to the meta device does nothing, which is the point of it.
            python_warnings.simplefilter("ignore")
            incompatible = super()._load_model(checkpoint)
        wanted = {name for name in self.model.state_dict() if ".target_statistics." not in name}
        self.wanted = len(wanted)
        self.found = len(wanted.difference(incompatible.missing_keys))
        return incompatible
