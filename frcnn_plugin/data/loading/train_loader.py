"""The training data loader with the originals' doubled data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm

from ...errors import UserError
from .mappers import MirroringMapper
from .samplers import MirroredDataset, OrientationBatchSampler


def training_dicts(cfg: CfgNode, proposal_files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Load Detectron2's training dicts, with proposals if there are files.

    Args:
        cfg: config.
        proposal_files: one per entry of ``DATASETS.TRAIN``, or none.
    """
    dicts: list[dict[str, Any]] = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        proposal_files=list(proposal_files) or None,
    )
    return dicts


def build_train_loader(
    cfg: CfgNode,
    *,
    images_per_process: int,
    seed: int,
    start_iter: int = 0,
    proposal_files: Sequence[str] = (),
    mirrored_proposal_files: Sequence[str] = (),
) -> Iterable[list[dict[str, Any]]]:
    """Build the loader of the doubled training set, in batches of one orientation.

    Args:
        cfg: config; ``MODEL.LOAD_PROPOSALS`` must be set if there are proposal files.
        images_per_process: batch of this process.
        seed: of the order, the same in all processes.
        start_iter: iterations of this order that were already trained.
        proposal_files: see :func:`training_dicts`.
        mirrored_proposal_files: proposals of the mirrored images, in the coordinates of the images
            themselves; without them those of the images are mirrored.

    Returns:
        an endless iterable of batches, whose content depends on nothing but the arguments.
    """
    dicts = training_dicts(cfg, proposal_files)
    unknown = next((d for d in dicts if "width" not in d or "height" not in d), None)
    if unknown is not None:
        raise UserError(
            f"{unknown['file_name']}: its data set gives no width and height, which "
            "DATALOADER.MIRRORED_COPIES needs; add them, or set DATALOADER.MIRRORED_COPIES False"
        )
    landscape = [d["width"] >= d["height"] for d in dicts]
    mirrored = training_dicts(cfg, mirrored_proposal_files) if mirrored_proposal_files else None
    loader: Iterable[list[dict[str, Any]]] = build_detection_train_loader(
        MirroredDataset(
            DatasetFromList(dicts, copy=False),
            mirrored and DatasetFromList(mirrored, copy=False),
        ),
        mapper=MirroringMapper(cfg, is_train=True),
        sampler=OrientationBatchSampler(landscape * 2, images_per_process, seed, start_iter),
        total_batch_size=images_per_process * comm.get_world_size(),
        aspect_ratio_grouping=False,  # the sampler groups
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # images are copied while the GPU computes
    )
    return loader
