"""Mask R-CNN's head beside our parts: Detectron2's head, our pooling, post-processing, features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.modeling import InclusiveROIPooler, PaperRCNN

SIZES = ((96, 160), (112, 90))  # height, width


@pytest.fixture
def model(tiny_cfg: Any) -> PaperRCNN:
    torch.manual_seed(0)
    return build_model(
        tiny_cfg(
            *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 4),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIPool", "MODEL.DEVICE", "cpu"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        )
    )


def item(size: tuple[int, int], count: int) -> dict[str, Any]:
    height, width = size
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 16.0, 72.0, 80.0]] * count).reshape(-1, 4))
    truth.gt_classes = torch.zeros(count, dtype=torch.int64)
    if count:  # Detectron2's mapper gives images without objects no masks either
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        masks[:, 16:80, 8:40] = True
        truth.gt_masks = BitMasks(masks)
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(count)) * 255
    return {"image": image, "instances": truth, "height": 2 * height, "width": 2 * width}


def test_the_mask_head_pools_on_caffes_cells(model: PaperRCNN) -> None:
    assert isinstance(model.roi_heads.mask_pooler, InclusiveROIPooler)


@pytest.mark.parametrize("counts", [(1, 2), (1, 0), (0, 0)])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_losses(model: PaperRCNN, counts: tuple[int, int], one_by_one: bool) -> None:
    """Two sizes in a batch; an image without objects; none at all."""
    model.one_by_one = one_by_one
    with EventStorage():
        losses = model([item(s, n) for s, n in zip(SIZES, counts, strict=True)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    weight = model.roi_heads.mask_head.predictor.weight
    assert bool(weight.grad.any()) is any(counts)  # the mask's loss trains it


def test_masks_are_pasted_into_the_original_image(model: PaperRCNN) -> None:
    model.eval()
    with torch.no_grad():
        for output, (height, width) in zip(model([item(s, 1) for s in SIZES]), SIZES, strict=True):
            found = output["instances"]
            assert len(found) > 0
            assert found.pred_masks.shape == (len(found), 2 * height, 2 * width)
            x1, y1, x2, y2 = found.pred_boxes.tensor.round().long().unbind(1)
            for i in range(len(found)):
                outside = found.pred_masks[i].clone()
                outside[max(y1[i] - 1, 0) : y2[i] + 1, max(x1[i] - 1, 0) : x2[i] + 1] = False
                assert not outside.any()


def test_features_and_no_proposals(model: PaperRCNN) -> None:
    model.eval()
    with torch.no_grad():
        images, features = model.features([item(SIZES[0], 1)])
        proposals = model.propose(images, features)
        with_features = model.detect(images, features, proposals, with_features=True)[0]
        assert torch.equal(
            with_features.pred_masks, model.detect(images, features, proposals)[0].pred_masks
        )
        assert len(with_features.fc7) == len(with_features.pred_masks) > 0
        none = model.detect(images, features, [p[:0] for p in proposals])[0]
        assert len(none) == 0 and none.pred_masks.shape[0] == 0
