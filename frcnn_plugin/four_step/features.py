"""Features of the frozen convolutions in steps 3 and 4 of four-step training, kept on disk."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..errors import UserError
from . import weights as stage_weights
from .feature_cache import SUFFIX, FeatureCache
from .statistics import broadcast_statistics

logger = logging.getLogger(__name__)

GB = 1e9  # bytes
STEPS = (3, 4)  # in which all convolutions are frozen
_DIGEST = re.compile("[0-9a-f]{64}")
# Modules whose output is not a function of the image alone while a model trains.
_UNSTEADY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def check_feature_cache(cfg: CfgNode) -> None:
    """Make sure that ``FOUR_STEP.FEATURE_CACHE_GB`` can have an effect.

    Raises:
        UserError: it is negative, there are no steps, or hardly an image comes twice.
    """
    gb = cfg.FOUR_STEP.FEATURE_CACHE_GB
    if gb == 0:
        return
    key = f"FOUR_STEP.FEATURE_CACHE_GB is {gb:g}"
    if not gb > 0:
        raise UserError(f"{key}: it must be 0.0 (off) or more")
    if not cfg.FOUR_STEP.ENABLED:
        raise UserError(
            f"{key}, but FOUR_STEP.ENABLED is False: features are kept in steps 3 and 4 only, "
            "where the convolutions are frozen. Add FOUR_STEP.FEATURE_CACHE_GB 0.0"
        )
    sizes = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
    random = []
    if cfg.INPUT.CROP.ENABLED:
        random.append("INPUT.CROP.ENABLED False")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(set(sizes)) > 1:
        random.append('INPUT.MIN_SIZE_TRAIN_SAMPLING "choice"')
    if random:
        raise UserError(
            f"{key}, but images change at random from epoch to epoch, and features that were kept "
            f"would not be needed again. Add {' and '.join(random)}, or FOUR_STEP.FEATURE_CACHE_GB "
            "0.0"
        )


class StageFeatures:
    """Gives a model a :class:`~frcnn_plugin.four_step.feature_cache.FeatureCache` for these steps.

    The files are in ``OUTPUT_DIR/features/DIGEST``; step 4 reads those of step 3, and a resumed run
    those from before.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Read ``FOUR_STEP.FEATURE_CACHE_GB``.

        Raises:
            UserError: see :func:`check_feature_cache`.
        """
        check_feature_cache(cfg)
        self._cfg = cfg
        self._root = features_root(cfg)
        self._cache: FeatureCache | None = None

    def start(self, number: int, model: Any) -> None:
        """Set the model's ``feature_store``, if a step that begins or is resumed can use one.

        All processes must call it.

        Args:
            number: of the step.
            model: an unwrapped PaperRCNN whose backbone has the weights of the step.
        """
        limit = self._cfg.FOUR_STEP.FEATURE_CACHE_GB * GB
        if number not in STEPS or not limit:
            return
        images = self._cfg.FOUR_STEP.IMS_PER_BATCH[number - 1]
        if images > 1 and not model.one_by_one:
            logger.info("features are not kept: %d images per batch are padded to one size", images)
            return
        unsteady = [n for n, m in model.backbone.named_modules() if isinstance(m, _UNSTEADY)]
        if unsteady:
            logger.warning(
                "features are not kept: backbone.%s gives others for the same image", unsteady[0]
            )
            return
        folder = self._root / features_digest(self._cfg, model)
        found, size = broadcast_statistics(lambda: _prepare(folder))
        logger.info(
            "features are kept in %s: %s of %s GB, those of %s images are there from before",
            folder, f"{size / GB:.1f}", f"{limit / GB:g}", f"{found:,}",
        )  # fmt: skip
        each = max(0.0, limit - size) / comm.get_world_size()
        self._cache = model.feature_store = FeatureCache(folder, each, model.device)

    def stop(self, model: Any) -> None:
        """Take the ``feature_store`` away, and say what it did. Files stay."""
        model.feature_store = None
        if self._cache is not None:
            logger.info(
                "features of %s images were read, of %s computed and of %s of these kept%s",
                f"{self._cache.read:,}", f"{self._cache.computed:,}", f"{self._cache.kept:,}",
                " (in this process)" if comm.get_world_size() > 1 else "",
            )  # fmt: skip
        self._cache = None

    def forget(self) -> None:
        """Remove the files, also those of a run whose limit was another; main process only."""
        if comm.is_main_process():
            _remove_others(self._root)
            with suppress(OSError):  # something of another's is in it
                self._root.rmdir()


def features_root(cfg: CfgNode) -> Path:
    """Where the folders of features are."""
    return Path(cfg.OUTPUT_DIR) / "features"


def features_digest(cfg: CfgNode, model: nn.Module) -> str:
    """A name for everything but the pixels that features depend on.

    Args:
        cfg: config of the model.
        model: has a ``backbone``.
    """
    node = cfg.MODEL.clone()
    node.defrost()
    node.WEIGHTS = ""  # a place, not what was loaded
    parts = (
        stage_weights.digest(model.backbone),  # type: ignore[arg-type]
        repr(model.backbone),
        node.dump(),  # also means, memory layout, algorithm, device
        cfg.SOLVER.AMP.ENABLED,
        torch.get_float32_matmul_precision(),
        torch.__version__,
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _prepare(folder: Path) -> tuple[int, int]:
    """Make a folder, or tidy up an old one, and remove those of other backbones.

    Returns:
        files in it, and their bytes.
    """
    _remove_others(folder.parent, folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    for path in folder.iterdir():
        if path.suffix == SUFFIX:
            sizes.append(path.stat().st_size)
        else:
            path.unlink()  # left by a killed process
    return len(sizes), sum(sizes)


def _remove_others(root: Path, name: str = "") -> None:
    for path in root.iterdir() if root.is_dir() else ():
        if path.name != name and _DIGEST.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
