"""Means and deviations of box targets, measured on the training set at the start of a stage.

They are taken before the stage trains, over all candidates instead of a sample and with mirrored
images, as in the originals, unless training sees none. Unit: deltas as
``box2box_transform.get_deltas`` returns them, see :mod:`~frcnn_plugin.modeling.target_statistics`.
Results are on the CPU.

Source: MATLAB fast_rcnn_prepare_image_roidb.m, proposal_prepare_image_roidb.m; py-faster-rcnn
roidb.py.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils import comm

from ..data.datasets.arguments import objects_that_count, progress
from ..data.loading.train_loader import training_dicts
from ..errors import UserError
from ..modeling import box_ops
from ..modeling.backbone.caffe_backbone import backbone_feature_sizes
from ..modeling.proposal_generator.rpn import PaperRPN
from ..modeling.roi_heads.box_head import each_head
from .proposals import StageProposals
from .stages import ScheduledStage

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Below this a deviation is rounding error only. Real ones are at least 100 times as large, with any
# BBOX_REG_WEIGHTS in use.
_MIN_STD = 1e-4

# They are those of the proposals, which of a cascade's heads only the first is trained on.
NOT_PER_CLASS = (
    "FOUR_STEP.TARGET_STATISTICS 'per_class' needs ROI heads with one box_predictor, which "
    "{name} has not: type FOUR_STEP.TARGET_STATISTICS fixed"
)

_WHAT = "box target statistics"  # for the progress bar


def set_target_statistics(
    cfg: CfgNode, stage: ScheduledStage, model: Any, proposals: StageProposals | None
) -> None:
    """Measure the box targets of what a stage trains, if the config asks for it; in all processes.

    Args:
        cfg: config of the run.
        stage: the stage that begins.
        model: unwrapped PaperRCNN with the weights that the stage begins with.
        proposals: those that the stage trains on, if any.
    """
    if proposals is None and cfg.FOUR_STEP.RPN_TARGET_STATISTICS:
        _set_rpn_statistics(cfg, model)
    elif proposals is not None and cfg.FOUR_STEP.TARGET_STATISTICS == "per_class":
        _set_head_statistics(cfg, stage, model, proposals)


def _set_rpn_statistics(cfg: CfgNode, model: Any) -> None:
    rpn = model.proposal_generator
    mean, std = on_main_process(
        lambda: rpn_target_statistics(
            training_dicts(cfg),
            rpn,
            backbone_feature_sizes(model.backbone, rpn.in_features, len(cfg.MODEL.PIXEL_MEAN)),
            min_size=cfg.INPUT.MIN_SIZE_TRAIN[0],
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            mirror=_sees_mirror_images(cfg),
        )
    )
    # Measured again in stage 3, as those of stage 1 were folded into a head that is gone. Set and
    # not unfolded: the head is new in both RPN stages, so there is no function to keep.
    rpn.target_statistics.set(mean, std)


def _set_head_statistics(
    cfg: CfgNode, stage: ScheduledStage, model: Any, proposals: StageProposals
) -> None:
    # Measured again in stage 4, whose proposals are those of another RPN. With the numbers of stage
    # 2, its targets would not have mean 0 and deviation 1.
    predictors = each_head(getattr(model.roi_heads, "box_predictor", None))
    if len(predictors) != 1:
        raise UserError(NOT_PER_CLASS.format(name=type(model.roi_heads).__name__))
    (predictor,) = predictors
    mean, std, _ = on_main_process(
        lambda: head_target_statistics(
            proposals.training_dicts(),
            predictor.num_classes,
            predictor.box2box_transform,
            mirror=_sees_mirror_images(cfg) and not proposals.mirrored_files,
            class_agnostic=predictor.target_statistics.num_classes == 1,
            class_names=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
        )
    )
    if stage.weights_of and not stage.redraws:
        # The predictor keeps the function that it learned, in the units of the new statistics.
        predictor.target_statistics.unfold(predictor.bbox_pred, mean, std)
    else:
        predictor.target_statistics.set(mean, std)


def _sees_mirror_images(cfg: CfgNode) -> bool:
    return bool(cfg.DATALOADER.MIRRORED_COPIES or cfg.INPUT.RANDOM_FLIP == "horizontal")


def head_target_statistics(
    dataset_dicts: Sequence[dict[str, Any]],
    num_classes: int,
    transform: Any,
    *,
    mirror: bool = True,
    fg_iou: float = 0.5,
    class_agnostic: bool = False,
    class_names: Sequence[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Measure the detector's box targets, per class.

    Each ground truth counts with itself (target 0), and each proposal with IoU >= ``fg_iou`` counts
    for the class of the ground truth that it overlaps most. Crowd regions (and difficult VOC
    objects) do not count. In a mirror image the proposals are mirrored too, so dx changes its sign
    and has mean 0.

    Args:
        dataset_dicts: in Detectron2's format, with "height" and "width", and "proposal_boxes"
            (N, 4) in original-image pixels, as its ``load_proposals_into_dataset`` adds them.
        num_classes: K.
        transform: the head's ``box2box_transform``.
        mirror: count each image's mirror image as well.
        fg_iou: smallest IoU of a proposal that counts.
        class_agnostic: one row over all classes.
        class_names: K names for messages; numbers if None.

    Returns:
        mean (K, 4) and std (K, 4), float32, std with divisor n (example E30); number of targets
        (K,), int64. A class without targets has mean 0 and std 1, and a coordinate that does not
        vary has std 1, which leaves ``BBOX_REG_WEIGHTS`` alone. One warning names them.

    Raises:
        UserError: an image has no size or no "proposal_boxes", or a class outside 0..K-1.
    """
    moments = TargetMoments(1 if class_agnostic else num_classes)
    for record in progress(dataset_dicts, _WHAT, "image"):
        gt_boxes, classes = _ground_truth(record, num_classes)
        proposals = _proposals(record)
        if class_agnostic:
            classes = torch.zeros_like(classes)
        moments.add(torch.zeros_like(gt_boxes), classes)
        if len(gt_boxes) and len(proposals):
            iou, matched = pairwise_iou(Boxes(gt_boxes), Boxes(proposals)).max(dim=0)
            fg_inds = (iou >= fg_iou).nonzero().squeeze(1)
            matched = matched[fg_inds]
            targets = transform.get_deltas(proposals[fg_inds], gt_boxes[matched])
            moments.add(targets, classes[matched])
    if mirror:
        moments.add_mirrored()
    names = ["all classes"] if class_agnostic else class_names or [*map(str, range(num_classes))]
    mean, std = moments.result(names)
    return mean, std, moments.count


def rpn_target_statistics(
    dataset_dicts: Sequence[dict[str, Any]],
    rpn: PaperRPN,
    feature_sizes: Callable[[int, int], Sequence[tuple[int, int]]],
    *,
    min_size: int,
    max_size: int,
    mirror: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure the RPN's box targets: one row over all anchors and classes.

    All positive anchors count, by the labels that ``rpn`` trains with, before sampling. Mirror
    images are matched anew, since the grid of anchors has no mirror symmetry.

    Args:
        dataset_dicts: in Detectron2's format, with "height" and "width"; crowd regions (and
            difficult VOC objects) do not count.
        rpn: gives anchors and labels.
        feature_sizes: see :func:`~frcnn_plugin.modeling.backbone_feature_sizes`.
        min_size: shorter side of the network input, ``INPUT.MIN_SIZE_TRAIN``; 0: no resizing.
        max_size: longest side allowed, ``INPUT.MAX_SIZE_TRAIN``.
        mirror: count each image's mirror image as well.

    Returns:
        mean (1, 4) and std (1, 4), float32, std with divisor n; 0 and 1, with a warning, if nothing
        is positive.

    Raises:
        UserError: an image has no size.
    """
    moments = TargetMoments(1)
    transform = rpn.box2box_transform.stock
    by_size = defaultdict(list)  # images of one size share their anchors
    for record in dataset_dicts:
        by_size[_network_size(record, min_size, max_size)].append(record)
    images = [(size, record) for size, records in by_size.items() for record in records]
    size_now, anchors = None, torch.empty(0)
    for size, record in progress(images, _WHAT, "image"):
        gt_boxes, _ = _ground_truth(record)
        if not len(gt_boxes):
            continue
        if size != size_now:
            size_now, anchors = size, _anchors(rpn, size, feature_sizes(*size))
        height, width = size
        gt_boxes *= gt_boxes.new_tensor([width / record["width"], height / record["height"]] * 2)
        views = (gt_boxes, box_ops.mirror(gt_boxes, width)) if mirror else (gt_boxes,)
        for boxes in (view.to(anchors) for view in views):
            labels, matched = rpn.match_anchors(Boxes(anchors), Boxes(boxes))
            positive = (labels == 1).nonzero().squeeze(1)
            matched_boxes = boxes[matched[positive]].double()
            targets = transform.get_deltas(anchors[positive].double(), matched_boxes).cpu()
            moments.add(targets, torch.zeros(len(targets), dtype=torch.int64))
    return moments.result(["positive anchors"])


class TargetMoments:
    """Count, sum and sum of squares of box targets in float64, per row: class, or the only one."""

    def __init__(self, rows: int) -> None:
        self.count = torch.zeros(rows, dtype=torch.int64)
        self._total = torch.zeros(rows, 4, dtype=torch.float64)
        self._squares = torch.zeros(rows, 4, dtype=torch.float64)

    def add(self, targets: torch.Tensor, rows: torch.Tensor) -> None:
        """Count targets, (R, 4) float64 on the CPU, each in its row, (R,) int64."""
        self.count += torch.bincount(rows, minlength=len(self.count))
        self._total.index_add_(0, rows, targets)
        self._squares.index_add_(0, rows, targets**2)

    def add_mirrored(self) -> None:
        """Count all a second time, with the sign of dx changed."""
        self.count *= 2
        self._total *= self._total.new_tensor([0, 2, 2, 2])
        self._squares *= 2

    def result(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and std as :func:`head_target_statistics` does; ``names`` are the rows'."""
        count = self.count.clamp(min=1)[:, None]
        mean = self._total / count
        std = (self._squares / count - mean**2).clamp(min=0).sqrt()
        constant = std < _MIN_STD
        if constant.any():
            rows = constant.any(dim=1).nonzero().squeeze(1).tolist()
            logger.warning(
                "too few box targets to take their deviation, using 1: %s",
                ", ".join(f"{names[i]} ({self.count[i].item()})" for i in rows),
            )
        std[constant] = 1.0
        return mean.float(), std.float()


def on_main_process(compute: Callable[[], T]) -> T:
    """Call ``compute`` in the main process and return its result, which is pickled, in all.

    Raises:
        RuntimeError: in the other processes, if ``compute`` failed; the main process raises the
            original exception.
    """
    result, error = None, None
    if comm.is_main_process():
        try:
            result = compute()
        except Exception as e:  # the others must not wait forever
            error = e
    shared, failure = comm.all_gather((result, repr(error) if error else ""))[0]
    if error is not None:
        raise error
    if failure:
        raise RuntimeError(f"the main process could not do its part: {failure}")
    return shared


def _ground_truth(
    record: dict[str, Any], num_classes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes (G, 4) float64, original-image pixels, and classes (G,) that are trained on."""
    height, width = _size(record)
    annotations = objects_that_count(record)
    corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.from_numpy(np.asarray(corners, dtype=np.float64).reshape(-1, 4))
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    classes = torch.tensor([int(a["category_id"]) for a in annotations], dtype=torch.int64)
    for number in classes.tolist() if num_classes is not None else ():
        if not 0 <= number < num_classes:
            raise UserError(
                f"{_name(record)}: an object of class {number}, but there are {num_classes} "
                "classes: set MODEL.ROI_HEADS.NUM_CLASSES"
            )
    # As in Detectron2's mapper, boxes are clipped, and those without area are not trained on.
    real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[real], classes[real]


def _proposals(record: dict[str, Any]) -> torch.Tensor:
    """Return (N, 4) float64 XYXY, original-image pixels."""
    if "proposal_boxes" not in record:
        raise UserError(
            f"{_name(record)} has no proposals: set MODEL.LOAD_PROPOSALS and "
            "DATASETS.PROPOSAL_FILES_TRAIN"
        )
    mode = record.get("proposal_bbox_mode", BoxMode.XYXY_ABS)
    boxes = np.asarray(record["proposal_boxes"], dtype=np.float64).reshape(-1, 4)
    return torch.from_numpy(BoxMode.convert(boxes, mode, BoxMode.XYXY_ABS))


def _size(record: dict[str, Any]) -> tuple[int, int]:
    if "height" not in record or "width" not in record:
        raise UserError(f"{_name(record)} has no 'height' and 'width' in its data set dict")
    return record["height"], record["width"]


def _network_size(record: dict[str, Any], min_size: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) of the network input that Detectron2's mapper makes of an image."""
    size = _size(record)
    return ResizeShortestEdge.get_output_shape(*size, min_size, max_size) if min_size else size


def _anchors(
    rpn: PaperRPN, image_size: tuple[int, int], feature_sizes: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Return the anchors that are trained on, (I, 4), network-input pixels."""
    features = [torch.empty(1, 0, *size) for size in feature_sizes]
    anchors = Boxes.cat(rpn.anchor_generator(features)).tensor
    return anchors[box_ops.inside_image(anchors, image_size, rpn.anchor_boundary_thresh)]


def _name(record: dict[str, Any]) -> str:
    return f"image {record.get('file_name', record.get('image_id'))}"
