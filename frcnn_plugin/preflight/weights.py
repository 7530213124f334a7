"""Weights: there, recognised, those that the model needs. Only names and shapes are read."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathManager

from ..checkpoint.catalog.download import PREFIX, cached_path
from ..checkpoint.catalog.known_files import find
from ..checkpoint.checkpointer import AtomicCheckpointer, names_detector
from ..checkpoint.matching import check_may_lack
from ..checkpoint.metadata import KEY, Metadata
from ..checkpoint.read import existing, peek
from ..errors import UserError
from ..four_step.stages import build_stages
from ..four_step.statistics import NOT_PER_CLASS
from ..four_step.weights import initial_state
from ..modeling.roi_heads.box_head import each_head
from .finding import Finding, Subject
from .planned_run import PlannedRun, muted
from .rules import BACKBONES, typed, value_of

_WEIGHTS = Subject("weights")
_NARROW = 1024  # units of fc6 and fc7, which need no advice when they start at random


def check_weights(run: PlannedRun) -> Iterator[Finding]:
    """Load the file that the run starts with into a model without memory."""
    file = run.weights
    # If the file of a resumed run is missing, loading it gives better advice.
    if file and file == run.cfg.MODEL.WEIGHTS and "://" not in file:
        try:
            existing(file.partition("?")[0])
        except UserError as e:
            yield _WEIGHTS.error(f"MODEL.WEIGHTS: {e}", "Give the path of a file of weights")
            return
    try:
        model = None if run.bad_values else run.model
    except UserError:
        raise
    except Exception as e:
        yield _not_built(run, e)
        return
    if problem := _no_weights(run):
        yield _WEIGHTS.error(problem)
        return
    if model is None:
        return
    yield from _check_parts(run)
    check_may_lack(run.cfg.MODEL.WEIGHTS_MAY_LACK, model)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not (trained or run.eval_only):
        yield _WEIGHTS.error(
            f"MODEL.PAPER_RCNN.FREEZE {list(run.cfg.MODEL.PAPER_RCNN.FREEZE)} and "
            f"MODEL.BACKBONE.FREEZE_AT {run.cfg.MODEL.BACKBONE.FREEZE_AT} leave nothing to train",
            "Freeze less, or evaluate with --eval-only",
        )
        return
    network = f"{run.cfg.MODEL.META_ARCHITECTURE}, {run.cfg.MODEL.BACKBONE.NAME}"
    numbers = f"{total / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained)"
    yield _WEIGHTS.ok(f"model: {network}, {numbers}")
    if run.cfg.FOUR_STEP.ENABLED and run.cfg.FOUR_STEP.INITIAL_WEIGHTS and not run.eval_only:
        for stage in build_stages(run.cfg):
            if stage.restores:
                initial_state(model, run.cfg.FOUR_STEP.INITIAL_WEIGHTS, stage.trains)
    if not file:
        yield _WEIGHTS.ok("none: training starts from random weights")
    elif "://" not in file:
        yield from _compare(run, file)
    elif (problem := _unknown_address(file)) or not (run.alone or run.failed):
        # If a run is about to start, one process downloads here what all of them will use.
        try:
            local = "" if problem else PathManager.get_local_path(file)
        except UserError:
            raise
        except Exception as e:  # whatever a network, or the handler of an address, raises
            problem = f"{type(e).__name__}: {e}"
        if problem:
            yield _WEIGHTS.error(
                f"MODEL.WEIGHTS {file} cannot be downloaded ({problem})",
                "Check the address and the network, or give a file: MODEL.WEIGHTS path/to/file.pth",
            )
        else:
            yield from _compare(run, local)
    elif file.startswith(PREFIX) and cached_path(find(file.removeprefix(PREFIX))).is_file():
        yield from _compare(run, PathManager.get_local_path(file))
    else:
        yield _WEIGHTS.ok(f"{file} is downloaded when the run starts, and checked then")


# Parts of the model, what the four stages call in them, and the key and value that give it.
_FOUR_STEP_PARTS = (
    ("proposal_generator", "target_statistics", "MODEL.PROPOSAL_GENERATOR.NAME", "PaperRPN"),
    ("proposal_generator.rpn_head", "reset_parameters", "MODEL.RPN.HEAD_NAME", "SoftmaxRPNHead"),
)
# The same of the predictor, each with the value of a key below FOUR_STEP that lets it be called.
_OF_PREDICTOR = (
    ("target_statistics", "TARGET_STATISTICS", "per_class"),
    ("reset_parameters", "PREDICTOR_START", "restart"),
)


def _check_parts(run: PlannedRun) -> Iterator[Finding]:
    """Check that the parts of the model can be trained in four stages."""
    if run.eval_only or not run.cfg.FOUR_STEP.ENABLED:
        return
    called = [
        ("roi_heads.box_predictor", attribute, "MODEL.ROI_HEADS.NAME", "CaffeROIHeads")
        for attribute, key, value in _OF_PREDICTOR
        if run.cfg.FOUR_STEP[key] == value
    ]
    for part, attribute, key, good in (*_FOUR_STEP_PARTS, *called):
        module: Any = run.model
        for name in part.split("."):
            module = getattr(module, name, None)
        modules = each_head(module)
        if attribute == "target_statistics" and len(modules) > 1:
            yield _WEIGHTS.error(NOT_PER_CLASS.format(name=value_of(run.cfg, key)))
            return
        if not (modules and all(hasattr(m, attribute) for m in modules)):
            yield _WEIGHTS.error(
                f"{key} {value_of(run.cfg, key)} cannot be trained in four stages: it has no "
                f"{attribute}",
                f"Type {key} {good}, or FOUR_STEP.ENABLED False",
            )
            return


def _unknown_address(file: str) -> str:
    """Return why an address can never be opened; "" if it is of a kind that somebody handles."""
    try:
        # What nobody handles is taken for a path, which does not exist.
        exists = PathManager.isfile(file)
    except Exception:  # most handlers do not say
        return ""
    known = file.startswith(PREFIX) or exists
    return "" if known else f"nothing here opens {file.partition('://')[0]}:// addresses"


def _not_built(run: PlannedRun, e: Exception) -> Finding:
    """Say why there is no model."""
    for node in ("RPN", "ROI_HEADS"):
        key, wanted = f"MODEL.{node}.IN_FEATURES", list(run.cfg.MODEL[node].IN_FEATURES)
        with suppress(Exception), torch.device("meta"), muted("detectron2"):
            known = list(build_backbone(run.model_cfg).output_shape())
            if any(name not in known for name in wanted):
                return _WEIGHTS.error(
                    f"{key} is {wanted}, but {run.cfg.MODEL.BACKBONE.NAME} gives {known}",
                    f"Type {typed(key, known)}",
                )
    cfg = run.model_cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    try:
        with muted("detectron2"):
            build_model(cfg)
    except Exception as again:
        reason = str(again.args[0] if again.args else again).partition("\n")[0]
        return _WEIGHTS.error(
            f"the model cannot be built ({type(again).__name__}: {reason})",
            "Compare the keys below MODEL with those of a config that works",
        )
    # A component that cannot be built without numbers.
    return _WEIGHTS.warning(f"not compared with the model, which {type(e).__name__} prevents")


def _no_weights(run: PlannedRun) -> str:
    """Return what would be random, or not be evaluated, without a file of weights."""
    cfg, file = run.cfg, run.weights
    if run.eval_only and not (file and names_detector(cfg)):
        which = f", which {file} are not" if file else ""
        return (
            f"--eval-only needs trained weights{which}: add MODEL.WEIGHTS path/to/model_final.pth"
        )
    frozen, parts = cfg.MODEL.BACKBONE.FREEZE_AT, list(cfg.MODEL.PAPER_RCNN.FREEZE)
    if file or run.bad_values:
        return ""
    if parts:
        key, value, none = "MODEL.PAPER_RCNN.FREEZE", str(parts), '"[]"'
    elif frozen > 0 and cfg.MODEL.BACKBONE.NAME in BACKBONES:
        key, value, none = "MODEL.BACKBONE.FREEZE_AT", str(frozen), "0"
    else:
        return ""
    return (
        f"MODEL.WEIGHTS is empty and {key} is {value}: the frozen layers would stay random. Add "
        "MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet (docs/weights.md lists others), or train "
        f"from scratch with {key} {none}, which takes far more images and iterations"
    )


def _compare(run: PlannedRun, file: str) -> Iterator[Finding]:
    folder = "" if run.eval_only else run.cfg.OUTPUT_DIR
    loader = _ShapesOnly(run.model, folder, cfg=run.model_cfg, evaluating=run.eval_only)
    problem = None
    with muted("frcnn_plugin") as messages, muted("detectron2"), muted("fvcore"):
        try:
            loader.load(file)
        except UserError as e:
            problem = _WEIGHTS.error(str(e))
    yield from (_WEIGHTS.warning(message) for message in messages)
    if problem is not None:
        yield problem
        return
    metadata = loader.metadata
    if metadata is None or metadata.preprocessing is None:
        yield _WEIGHTS.warning(
            f"{file} does not say which images it was trained on; INPUT.FORMAT "
            f"{run.cfg.INPUT.FORMAT} and MODEL.PIXEL_MEAN are taken on trust",
            "frcnn weights convert writes files that say so",
        )
    kind = f", {metadata.kind}" if metadata is not None else ""
    classes = f", {len(metadata.classes)} classes" if metadata and metadata.classes else ""
    yield _WEIGHTS.ok(
        f"{file}: {loader.wanted - len(loader.missing)} of {loader.wanted} weights of the model"
        f"{kind}{classes}"
    )
    dim = run.cfg.MODEL.ROI_BOX_HEAD.FC_DIM
    fully = [n for n in loader.missing if ".fc6." in n or ".fc7." in n]
    if fully and not run.eval_only and run.cfg.MODEL.PAPER_RCNN.PHASE != "rpn":
        state = run.model.state_dict()
        number = sum(state[name].numel() for name in fully)
        text = (
            f"fc6 and fc7 start at random, as {file} has none of this shape: your images alone "
            f"teach their {number / 1e6:.3g} M parameters, which takes longer than from ImageNet's"
        )
        fix = f"To have fewer: MODEL.ROI_BOX_HEAD.FC_DIM 512 (it is {dim}), or see docs/weights.md"
        yield _WEIGHTS.ok(text) if dim <= _NARROW else _WEIGHTS.warning(text, fix)


class _ShapesOnly(AtomicCheckpointer):
    """Loads a file into a model on the meta device, without reading numbers if it can."""

    metadata: Metadata | None = None
    wanted = 0
    missing: Collection[str] = ()

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
        self.missing = wanted.intersection(incompatible.missing_keys)
        return incompatible
