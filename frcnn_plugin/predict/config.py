"""The config and class names of a detector, from its weights alone where possible."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..checkpoint.checkpointer import class_names
from ..checkpoint.metadata import Metadata
from ..checkpoint.read import local_file, read_metadata
from ..config_files import merge_overrides, saved_config
from ..engine.setup import setup_cfg, use_cpu_without_cuda
from ..errors import UserError
from ..four_step.evaluation import stage_of
from ..four_step.stages import STAGES

logger = logging.getLogger(__name__)


def predictor_cfg(
    weights: str,
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    device: str | None = None,
    score_threshold: float | None = None,
) -> tuple[CfgNode, tuple[str, ...]]:
    """Make the config of a model for running it, and find the names of its classes.

    Args:
        weights: file; its own config is used unless ``config_file`` is given.
        config_file: YAML to use instead.
        opts: ``KEY VALUE ...`` overrides of either.
        device: "cpu", "cuda", "cuda:1"; None: the config's.
        score_threshold: of detections, 0 to 1; None: the config's.

    Returns:
        The config, without data sets, its ``MODEL.WEIGHTS`` a local file, and one name per class.

    Raises:
        UserError: the weights are missing, are not a detector's or carry no config; a value is bad.
    """
    path = local_file(weights)
    metadata = read_metadata(path)
    if metadata is not None and metadata.kind != "detector":
        raise UserError(
            f"{weights} holds weights of ImageNet, where training starts: give those of a trained "
            "detector, such as model_final.pth"
        )
    if config_file:
        cfg = setup_cfg(config_file, opts)
        cfg.defrost()
    else:
        cfg = _own_cfg(weights, metadata)
        merge_overrides(cfg, opts)
    if device is not None:
        cfg.MODEL.DEVICE = _checked_device(device)
    use_cpu_without_cuda(cfg)
    if score_threshold is not None:
        if not 0 <= score_threshold <= 1:
            raise UserError(f"the score threshold is {score_threshold}: it must be from 0 to 1")
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
    stage = stage_of(path)
    if stage is not None and cfg.MODEL.PAPER_RCNN.PHASE == "joint":
        logger.info(
            "%s is from stage %d of %d: used as '%s'",
            weights, stage.number, len(STAGES), stage.phase,
        )  # fmt: skip
        cfg.MODEL.PAPER_RCNN.PHASE = stage.phase
    names = _names(cfg, metadata, weights)
    cfg.MODEL.WEIGHTS = path
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # none is needed
    cfg.DATASETS.REGISTER = []
    cfg.freeze()
    return cfg, names


def _own_cfg(weights: str, metadata: Metadata | None) -> CfgNode:
    """Read the config inside a checkpoint; it is not frozen."""
    if metadata is None or metadata.config is None:
        raise UserError(
            f"{weights} carries no config: give the one that it was trained with (--config-file, "
            "or config_file in Python); for the detectors that the authors released, such as "
            "frcnn://released/vgg16_voc07_alt_opt.yaml"
        )
    try:
        return saved_config(metadata.config)
    except UserError as e:
        raise UserError(
            f"the config in {weights} cannot be used ({e}): give one with --config-file, or "
            "config_file in Python"
        ) from e


def _checked_device(device: str) -> str:
    try:
        return str(torch.device(device))
    except RuntimeError as e:
        raise UserError(f"there is no device '{device}': give cpu, cuda or cuda:1") from e


def _names(cfg: CfgNode, metadata: Metadata | None, weights: str) -> tuple[str, ...]:
    """Name all classes by the checkpoint, else by the config's data sets."""
    number: int = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    names = metadata.classes if metadata is not None else None
    if names is None or len(names) != number:
        names = class_names(cfg)
    if names is None:
        logger.warning(
            "%s does not name its %d classes; `frcnn weights convert --classes` adds names",
            weights,
            number,
        )
        names = tuple(f"class {i + 1}" for i in range(number))
    return names
