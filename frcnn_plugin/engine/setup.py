"""From a YAML to a complete config, before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..config import plugin_cfg
from ..config_files import load_config_file, merge_overrides
from ..data.datasets.checks import class_names
from ..data.datasets.config_entries import register_from_config_entries
from ..errors import UserError
from ..four_step.stages import apply_four_step

logger = logging.getLogger(__name__)


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config with the plugin's keys, register its data sets, choose the device.

    Whether it makes sense, :func:`frcnn_plugin.preflight.stop_on_errors` says.

    Args:
        config_file: path of a YAML, or ``frcnn://`` and the name of one that comes with the plugin;
            "" for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.

    Returns:
        The frozen config. Without CUDA, a ``MODEL.DEVICE`` of cuda has become cpu; in four-step
        training the SOLVER keys follow from FOUR_STEP.

    Raises:
        UserError: missing or malformed file, unknown key, value of another type.
    """
    cfg = plugin_cfg()
    if config_file:
        load_config_file(cfg, config_file)
    merge_overrides(cfg, opts)
    use_cpu_without_cuda(cfg)
    # Detectron2 takes the path of a checkpoint for a URL, and drops these when it is loaded.
    if bad := sorted(set(cfg.OUTPUT_DIR) & set("?\n\r\t")):
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} contains {bad[0]!r}: a run in it could not be resumed. "
            "Give a folder without it"
        )
    # From here on, any part may ask Detectron2's catalogs for the data sets of the config.
    register_from_config_entries(cfg.DATASETS.REGISTER)
    _count_classes(cfg)
    # After the overrides, as SOLVER.MAX_ITER and STEPS follow from FOUR_STEP.
    apply_four_step(cfg)
    cfg.freeze()
    return cfg


def _count_classes(cfg: CfgNode) -> None:
    """Replace a ``MODEL.ROI_HEADS.NUM_CLASSES`` of -1 by the classes of the data sets, in place."""
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != -1:
        return
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise UserError(
            "MODEL.ROI_HEADS.NUM_CLASSES -1 stands for the classes of DATASETS.TRAIN and TEST, "
            "which are empty: give the number, background not counted"
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(class_names(names[0]))


def use_cpu_without_cuda(cfg: CfgNode) -> None:
    """Replace a ``MODEL.DEVICE`` that does not exist by the CPU, with a warning; in place."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s but there is no CUDA: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
