"""From a YAML to a checked config, before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from ..config import add_frcnn_config
from ..data.checks import check_datasets
from ..data.entries import register_from_config_entries
from ..data.proposals import check_proposals
from ..errors import UserError
from .stage_checkpoints import check_start
from .stages import apply_four_step
from .weights import names_detector

logger = logging.getLogger(__name__)


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config with the plugin's keys, register its data sets, choose the device.

    Without CUDA, ``MODEL.DEVICE cuda`` becomes ``cpu``.

    Args:
        config_file: path of a YAML; "" for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.

    Returns:
        the frozen config.

    Raises:
        UserError: missing or malformed file, unknown key, bad value.
    """
    cfg = get_cfg()
    add_frcnn_config(cfg)
    if config_file:
        if not Path(config_file).is_file():
            raise UserError(f"no config file '{config_file}'; see the folder configs/ for ours")
        _merge(config_file, lambda: cfg.merge_from_file(config_file))
    merge_overrides(cfg, opts)
    register_from_config_entries(cfg.DATASETS.REGISTER)
    apply_four_step(cfg)
    cfg.freeze()
    return cfg


def merge_overrides(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Apply overrides, then replace a ``MODEL.DEVICE`` that is not there by the CPU; in place.

    Args:
        cfg: not frozen.
        opts: ``KEY VALUE KEY VALUE ...``.

    Raises:
        UserError: an odd number of words, unknown key, bad value.
    """
    if len(opts) % 2:
        raise UserError(
            f"overrides come as KEY VALUE pairs, but there are {len(opts)} words: {' '.join(opts)}"
        )
    _merge("the command line", lambda: cfg.merge_from_list(list(opts)))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s but there is no CUDA: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def _merge(source: str, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, TypeError) as e:
        # yacs says what is wrong, but as a KeyError whose text is quoted twice.
        message = str(e.args[0]) if e.args else str(e)
        raise UserError(f"{source}: {message}") from e


def check_cfg(
    cfg: CfgNode, *, eval_only: bool = False, resume: bool = False, overwrite: bool = False
) -> None:
    """Stop on what would otherwise fail, or silently go wrong, after hours.

    Args:
        cfg: a config from :func:`setup_cfg`.
        eval_only: nothing will be trained.
        resume: a run in ``OUTPUT_DIR`` will be taken up.
        overwrite: a run in ``OUTPUT_DIR`` may be lost.

    Raises:
        UserError: names the key and the override to type.
    """
    if not (eval_only or resume or overwrite):
        _check_output_dir(cfg)
    train = () if eval_only else tuple(cfg.DATASETS.TRAIN)
    if not eval_only and not train:
        raise UserError("DATASETS.TRAIN is empty: name at least one data set to train on")
    if not cfg.MODEL.MASK_ON and not cfg.MODEL.KEYPOINT_ON:
        check_datasets([*train, *cfg.DATASETS.TEST], cfg.MODEL.ROI_HEADS.NUM_CLASSES, train=train)
    if cfg.FOUR_STEP.ENABLED and not eval_only:
        check_start(cfg)
    if cfg.MODEL.LOAD_PROPOSALS:
        _check_proposals("TRAIN", train, cfg.DATASETS.PROPOSAL_FILES_TRAIN)
        _check_proposals("TEST", cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST)
    _check_weights(cfg, eval_only)
    if not eval_only:
        _check_solver(cfg)


def _check_proposals(which: str, names: Sequence[str], files: Sequence[str]) -> None:
    # The host opens them with plain pickle, and says little if they are of another data set.
    if not names:
        return
    if len(names) != len(files):
        raise UserError(
            f"MODEL.LOAD_PROPOSALS is True, but DATASETS.{which} has {len(names)} data sets and "
            f"DATASETS.PROPOSAL_FILES_{which} {len(files)} files: give one file per data set"
        )
    for name, file in zip(names, files, strict=True):
        check_proposals(file, DatasetCatalog.get(name), name)


def _check_output_dir(cfg: CfgNode) -> None:
    if (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists():
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run already: go on with it (--resume), start "
            "anew and lose it (--overwrite), or choose another OUTPUT_DIR"
        )


def forget_run(cfg: CfgNode) -> None:
    """Start anew in a folder that holds a run; call it before the processes start.

    Otherwise, if the new run were stopped before its first checkpoint, the old one would be
    resumed.
    """
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").unlink(missing_ok=True)


def _check_weights(cfg: CfgNode, eval_only: bool) -> None:
    weights = cfg.MODEL.WEIGHTS
    if eval_only and weights and not names_detector(cfg):
        raise UserError(
            f"--eval-only needs trained weights, which {weights} are not: add MODEL.WEIGHTS "
            "path/to/model_final.pth"
        )
    if weights.startswith("frcnn://"):
        # Here, where one process downloads what all of them will use.
        PathManager.get_local_path(weights)
    elif weights and "://" not in weights and not Path(weights.partition("?")[0]).is_file():
        raise UserError(f"MODEL.WEIGHTS: there is no file '{weights}'")
    if weights:
        return
    if eval_only:
        raise UserError(
            "--eval-only needs trained weights: add MODEL.WEIGHTS path/to/model_final.pth"
        )
    if cfg.MODEL.BACKBONE.NAME in ("VGG16", "ZF") and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise UserError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}: the frozen layers would stay random. Add "
            "MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet (docs/weights.md lists others), or train "
            "from scratch with MODEL.BACKBONE.FREEZE_AT 0"
        )


def _check_solver(cfg: CfgNode) -> None:
    late = [s for s in cfg.SOLVER.STEPS if s >= cfg.SOLVER.MAX_ITER]
    if late:
        # The host ignores later steps with a warning and fails on an equal one.
        raise UserError(
            f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} must lie below SOLVER.MAX_ITER "
            f"{cfg.SOLVER.MAX_ITER}: the learning rate would never drop. Type for example "
            f'SOLVER.STEPS "({cfg.SOLVER.MAX_ITER * 5 // 7},)"'
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError("SOLVER.AMP.ENABLED needs a CUDA device: add SOLVER.AMP.ENABLED False")
