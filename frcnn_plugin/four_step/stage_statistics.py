"""Means and deviations of box targets at the start of a step."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.loading.train_loader import training_dicts
from ..modeling.backbone.caffe_backbone import backbone_feature_sizes
from .proposals import StageProposals
from .stages import Stage
from .statistics import broadcast_statistics, head_target_statistics, rpn_target_statistics


def set_target_statistics(cfg: CfgNode, stage: Stage, model: Any) -> None:
    """Measure the targets of what a step trains, if the config asks for it; in all processes.

    Args:
        cfg: config.
        stage: the step that begins.
        model: unwrapped PaperRCNN, its weights being those the step begins with.
    """
    if stage.phase == "rpn" and cfg.FOUR_STEP.RPN_TARGET_STATISTICS:
        _set_rpn_statistics(cfg, model)
    elif stage.phase == "fast_rcnn" and cfg.FOUR_STEP.TARGET_STATISTICS == "per_class":
        _set_head_statistics(cfg, stage, model)


def _set_rpn_statistics(cfg: CfgNode, model: Any) -> None:
    rpn = model.proposal_generator
    mean, std = broadcast_statistics(
        lambda: rpn_target_statistics(
            training_dicts(cfg),
            rpn,
            backbone_feature_sizes(model.backbone, rpn.in_features),
            min_size=cfg.INPUT.MIN_SIZE_TRAIN[0],
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        )
    )
    rpn.target_statistics.set(mean, std)


def _set_head_statistics(cfg: CfgNode, stage: Stage, model: Any) -> None:
    predictor = model.roi_heads.box_predictor
    proposals = StageProposals(cfg, stage.number - 1)
    mean, std, _ = broadcast_statistics(
        lambda: head_target_statistics(
            proposals.training_dicts(),
            predictor.num_classes,
            predictor.box2box_transform,
            mirror=not proposals.mirrored_files,
            class_agnostic=predictor.target_statistics.num_classes == 1,
            class_names=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
        )
    )
    if stage.number == 4 and cfg.FOUR_STEP.PREDICTOR_START == "continue":
        # The function that step 2 learned stays, in the units of the new statistics.
        predictor.target_statistics.unfold(predictor.bbox_pred, mean, std)
    else:
        predictor.target_statistics.set(mean, std)
