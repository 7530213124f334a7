"""Whether a run that is resumed is the run that was interrupted: config, data, processes.

A checkpoint has the config it was trained with (``metadata.config``) and, among the state of
:class:`.trainer.PaperTrainer`, the number of processes and a digest of the training sets. Older
ones lack the latter two, which are then not compared.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..atomic_files import sha256
from ..checkpoint.read import Peek
from ..config_files import flat_keys, read_config_text
from ..data.loading.train_loader import training_dicts
from ..errors import UserError
from ..four_step.checkpoints import INITIAL_WEIGHTS, PROCESSES, check_same

logger = logging.getLogger(__name__)

DATA = "the training data"
# What RESUME_MAY_DIFFER may name beside keys.
NOT_KEYS = (PROCESSES, DATA, INITIAL_WEIGHTS)

# Keys that may change: where files are, how fast it goes, what is kept, logged and evaluated. The
# name of a node stands for all its keys. The training sets are compared by their content.
_HARMLESS = (
    "OUTPUT_DIR", "VERSION", "VIS_PERIOD", "TEST", "RESUME_MAY_DIFFER", "MODEL.WEIGHTS",
    "MODEL.WEIGHTS_MAY_LACK", "MODEL.DEVICE", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "DATALOADER.NUM_WORKERS", "DATASETS.TEST", "DATASETS.REGISTER",
    "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINTS_KEPT", "SOLVER.REFERENCE_WORLD_SIZE", "FOUR_STEP.STOP_AFTER",
    "FOUR_STEP.INITIAL_WEIGHTS", "FOUR_STEP.EVALUATE_STEPS",
)  # fmt: skip
# Only where stages do not train on what was found with them.
_HARMLESS_IN_ONE_STAGE = (
    "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "MODEL.PAPER_RCNN.INFERENCE_DTYPE",
)  # fmt: skip
_NODES = ("INPUT", "DATASETS", "DATALOADER", "MODEL", "SOLVER", "FOUR_STEP", "SEED")


def check_config(cfg: CfgNode, found: Peek, num_processes: int) -> None:
    """Compare a config with that of the checkpoint that a run is resumed from.

    Args:
        cfg: as the trainer scales it for the number of processes.
        found: the checkpoint.
        num_processes: on all machines.

    Raises:
        UserError: keys differ, or the number of processes; names them, and how to go on.
    """
    # The number of processes first: rate and batch may follow from it.
    before = {key: value for key, value in _state(found).items() if key == PROCESSES}
    before |= _compared(_saved_config(found), found.iteration)
    now = _compared(yaml.safe_load(cfg.dump()), found.iteration)
    check_same(before, now | {PROCESSES: str(num_processes)}, cfg.RESUME_MAY_DIFFER)


def check_data(cfg: CfgNode, found: Peek, digest: str) -> None:
    """Compare a :func:`data_digest` with that in the checkpoint.

    Raises:
        UserError: they differ.
    """
    before = _state(found).get(DATA)
    if before is None:
        logger.info(
            "the checkpoint is from an earlier version and does not say on which data: not compared"
        )
        return
    then, now = ({DATA: f"{d[:12]} (SHA-256 of ids, sizes, boxes)"} for d in (before, digest))
    check_same(then, now, cfg.RESUME_MAY_DIFFER)


def run_state(digest: str, num_processes: int) -> dict[str, str]:
    """Return what a checkpoint has to say for :func:`check_config` and :func:`check_data`."""
    return {PROCESSES: str(num_processes), DATA: digest}


def data_digest(cfg: CfgNode) -> str:
    """Return a SHA-256 of what is trained on: ids, sizes, boxes and classes, in their order.

    Where the images lie, and their pixels, do not count; the content of proposal files does.
    """
    result = hashlib.sha256()
    for record in training_dicts(cfg) if cfg.DATASETS.TRAIN else ():
        name = record.get("image_id", os.path.basename(record.get("file_name", "")))
        size = record.get("height"), record.get("width")
        result.update(f"{name} {size}\n".encode())
        for item in record.get("annotations", ()):
            box = np.asarray(item["bbox"], dtype=np.float64).tolist()
            words = int(item["bbox_mode"]), item["category_id"], bool(item.get("iscrowd"))
            result.update(f"{box} {words}\n".encode())
    for file in cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else ():
        if Path(file).is_file():
            result.update(sha256(file).encode())
    return result.hexdigest()


def _state(found: Peek) -> Mapping[str, str]:
    trainer = found.content.get("trainer")
    state = trainer.get("run") if isinstance(trainer, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def _saved_config(found: Peek) -> Any:
    text = (found.metadata and found.metadata.config) or ""
    try:
        return read_config_text(text, "the checkpoint's config")
    except UserError:  # a stranger's
        return None


def _compared(config: Any, iteration: int | None) -> dict[str, str]:
    """Return the values that must be the same after so many iterations, as text by key."""
    if not isinstance(config, Mapping):
        return {}
    values = flat_keys(config)
    stages = values.get("FOUR_STEP.ENABLED") is True
    harmless = [*_HARMLESS]
    if stages:  # follow from FOUR_STEP
        harmless += ["SOLVER.MAX_ITER", "SOLVER.STEPS"]
    else:
        harmless += _HARMLESS_IN_ONE_STAGE
        if values.get("SOLVER.LR_SCHEDULER_NAME") == "WarmupMultiStepLR" and iteration is not None:
            # A run may go on for longer, or drop later: what was trained would have been the same.
            harmless.append("SOLVER.MAX_ITER")
            # The rate of the next iteration is in the checkpoint.
            steps = values.get("SOLVER.STEPS", ())
            values["SOLVER.STEPS"] = [s for s in steps if s <= iteration + 1]
    return {
        key: repr(value)
        for key, value in values.items()
        if key.split(".")[0] in _NODES
        and not any(key == name or key.startswith(f"{name}.") for name in harmless)
    }
