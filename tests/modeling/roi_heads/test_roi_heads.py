"""RoI pooling, sampling, losses. Literals: checks E10b, E10c, E11d, E15*, E25 (docs/checks.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.modeling import CaffeROIHeads, FC6FC7Head, InclusiveROIPooler, UnscaledDropout
from tests.conftest import make_instances

SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


def pool(features: torch.Tensor, inclusive: list[float], output: int) -> torch.Tensor:
    """Pool one RoI given as the inclusive corners of docs/checks.md."""
    host = ROIPooler(output_size=output, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIPool")
    box = Boxes(torch.tensor([inclusive], dtype=torch.float32) + torch.tensor([0.0, 0, 1, 1]))
    return InclusiveROIPooler(host)([features], [box])[0, 0]


def ramp(height: int, width: int) -> torch.Tensor:
    values = torch.arange(float(height * width)).view(1, 1, height, width)
    return values.requires_grad_()


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([0, 0, 47, 47], [[7, 9], [19, 21]]),
        ([8, 8, 40, 40], [[14, 15], [20, 21]]),
        ([0, 0, 56, 24], [[8, 10], [14, 16]]),
        ([32, 32, 10, 10], [[14, 14], [14, 14]]),  # inverted: one cell
        ([200, 200, 300, 300], [[0, 0], [0, 0]]),  # outside
    ],
)
def test_max_pool_e15b(roi: list[float], expected: list[list[float]]) -> None:
    assert pool(ramp(6, 6), roi, 2).tolist() == expected


def test_gradient_goes_to_the_maxima_e15b() -> None:
    features = ramp(6, 6)
    pool(features, [0, 0, 47, 47], 2).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().nonzero().flatten().tolist() == [7, 9, 19, 21]


@pytest.mark.parametrize(
    ("x", "cell"), [(7, 0), (8, 1), (23, 1), (24, 2), (39, 2), (40, 3), (56, 4), (72, 5)]
)
def test_corners_round_half_away_from_zero_e15(x: int, cell: int) -> None:
    """A one-cell RoI shows which cell its corner rounds to."""
    assert pool(ramp(1, 8), [x, 0, x, 0], 1).item() == cell


def test_winner_of_several_bins_collects_e15g() -> None:
    features = torch.zeros(1, 1, 3, 3)
    features[0, 0, 1, 1] = 5
    features.requires_grad_()
    pooled = pool(features, [0, 0, 32, 32], 2)
    assert (pooled == 5).all()
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 1, 1] == 4


def test_first_cell_wins_ties_e15h() -> None:
    features = torch.ones(1, 1, 6, 6, requires_grad=True)
    pool(features, [0, 0, 47, 47], 2).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().nonzero().flatten().tolist() == [0, 2, 12, 14]


@pytest.mark.parametrize(
    ("cells", "bins"),
    [
        (5, [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]),
        (3, [(0, 1), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 3)]),
    ],
)
def test_overlapping_bins_e15c(cells: int, bins: list[tuple[int, int]]) -> None:
    """On a rising ramp the maximum of a bin is its last column."""
    top_row = pool(ramp(1, cells), [0, 0, 16 * cells - 16, 0], 7)[0]
    assert top_row.tolist() == [end - 1 for _, end in bins]


def test_roi_of_the_whole_image_e15i() -> None:
    pooled = pool(ramp(38, 50), [0, 0, 799, 599], 7)
    assert pooled[0].tolist() == [257, 264, 271, 279, 286, 293, 299]


def test_continuous_corners_would_differ_e15f() -> None:
    host = ROIPooler(output_size=2, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIPool")
    box = [Boxes(torch.tensor([[0.0, 0.0, 56.0, 56.0]]))]
    assert host([ramp(6, 6)], box)[0, 0].tolist() == [[14, 16], [26, 28]]
    assert pool(ramp(6, 6), [0, 0, 55, 55], 2).tolist() == [[7, 9], [19, 21]]


def test_pooling_runs_in_float32_whatever_comes() -> None:
    """256 + 1 is not a bfloat16 number, so this also shows where values are rounded."""
    features = torch.full((1, 1, 4, 4), 256.0, dtype=torch.bfloat16)
    pooled = pool(features, [0, 0, 63, 63], 2)
    assert pooled.dtype == torch.bfloat16
    assert (pooled == 256).all()


def test_pooling_no_boxes() -> None:
    host = ROIPooler(output_size=7, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIPool")
    pooled = InclusiveROIPooler(host)([torch.rand(1, 8, 4, 4)], [Boxes(torch.zeros(0, 4))])
    assert pooled.shape == (0, 8, 7, 7)


# ---- fc6, fc7, dropout --------------------------------------------------------------------


def test_dropout_scaling_e25() -> None:
    torch.manual_seed(0)
    x = torch.full((1000,), 3.0)
    scaled, unscaled = torch.nn.Dropout(0.5), UnscaledDropout(0.5)
    assert set(scaled.train()(x).tolist()) == {0.0, 6.0}
    assert set(scaled.eval()(x).tolist()) == {3.0}
    assert set(unscaled.train()(x).tolist()) == {0.0, 3.0}
    assert set(unscaled.eval()(x).tolist()) == {1.5}


def test_fc6_takes_channels_first() -> None:
    """One weight at channel 1, row 0, column 2 of a (2, 3, 4) input is column 12 + 2 of fc6."""
    head = FC6FC7Head(ShapeSpec(channels=2, height=3, width=4), fc_dim=5, dropout=0.0)
    x = torch.zeros(1, 2, 3, 4)
    x[0, 1, 0, 2] = 1.0
    assert torch.equal(head.fc6(x.flatten(1))[0], head.fc6.weight[:, 14] + head.fc6.bias)
    assert head(x).shape == (1, 5) and head.output_shape.channels == 5


def test_fc_head_without_rois() -> None:
    head = FC6FC7Head(ShapeSpec(channels=2, height=7, width=7), fc_dim=5)
    assert head(torch.zeros(0, 2, 7, 7)).shape == (0, 5)


def test_dropout_follows_the_config(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN", False), SHAPE)
    assert isinstance(heads.box_head.drop6, UnscaledDropout)
    assert isinstance(build_roi_heads(tiny_cfg(), SHAPE).box_head.drop7, torch.nn.Dropout)


# ---- sampling -----------------------------------------------------------------------------

AVAILABLE = [(10, 500), (100, 500), (0, 500), (40, 5)]


@pytest.mark.parametrize(
    ("batch", "sampled"),
    [
        (64, [(10, 54), (16, 48), (0, 64), (16, 5)]),  # E10b
        (128, [(10, 118), (32, 96), (0, 128), (32, 5)]),  # E10c
    ],
)
def test_sampling_e10b_e10c(tiny_cfg, batch: int, sampled: list[tuple[int, int]]) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", batch), SHAPE)
    for (fg, bg), expected in zip(AVAILABLE, sampled, strict=True):
        matched_labels = torch.tensor([1] * fg + [0] * bg)
        _, classes = heads._sample_proposals(
            torch.zeros(fg + bg, dtype=torch.int64), matched_labels, torch.tensor([1])
        )
        assert ((classes == 1).sum(), (classes == 3).sum()) == expected


def proposals_with_iou(ious: list[float]) -> Instances:
    """Proposals of the given IoU with the ground truth (0, 0, 100, 100): its left part."""
    proposals = Instances((100, 100))
    boxes = [[0.0, 0.0, 100.0 * iou, 100.0] for iou in ious]
    proposals.proposal_boxes = Boxes(torch.tensor(boxes))
    proposals.objectness_logits = torch.zeros(len(ious))
    return proposals


@pytest.mark.parametrize(
    ("thresholds", "labels", "expected"),
    [
        ([0.5], [0, 1], {0.05: 3, 0.2: 3, 0.5: 1, 0.9: 1}),  # py-faster-rcnn: [0, .5)
        ([0.1, 0.5], [-1, 0, 1], {0.2: 3, 0.5: 1, 0.9: 1}),  # paper, MATLAB: [.1, .5)
    ],
)
def test_background_window(
    tiny_cfg, thresholds: list[float], labels: list[int], expected: dict[float, int]
) -> None:
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.IOU_THRESHOLDS", thresholds),
        *("MODEL.ROI_HEADS.IOU_LABELS", labels),
        *("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
        *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    )
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [1])
    with EventStorage():
        (sampled,) = build_roi_heads(cfg, SHAPE).label_and_sample_proposals(
            [proposals_with_iou([0.05, 0.2, 0.5, 0.9])], [gt]
        )
    ious = [round(w, 2) for w in (sampled.proposal_boxes.tensor[:, 2] / 100).tolist()]
    classes = dict(zip(ious, sampled.gt_classes.tolist(), strict=True))
    assert classes == expected


def test_ground_truth_is_appended(tiny_cfg) -> None:
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [2])
    with EventStorage():
        (sampled,) = build_roi_heads(tiny_cfg(), SHAPE).label_and_sample_proposals(
            [proposals_with_iou([0.2])], [gt]
        )
    assert [0, 0, 100, 100] in sampled.proposal_boxes.tensor.tolist()
    assert sorted(sampled.gt_classes.tolist()) == [2, 3]


# ---- losses and inference -----------------------------------------------------------------


def sampled_rois(num: int) -> Instances:
    """One foreground RoI of class 1, equal to its ground truth, and background."""
    rois = Instances((100, 100))
    rois.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * num))
    rois.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * num))
    rois.gt_classes = torch.tensor([1] + [3] * (num - 1))
    return rois


def test_box_loss_is_divided_by_all_rois_e11d(tiny_cfg) -> None:
    predictor = build_roi_heads(tiny_cfg(), SHAPE).box_predictor
    deltas = torch.zeros(128, 3, 4)
    deltas[0, 1] = torch.tensor([0.05, -0.2, 0.0, 0.5])
    deltas.requires_grad_()
    scores = torch.zeros(128, 4, requires_grad=True)
    with EventStorage():
        losses = predictor.losses((scores, deltas.view(128, 12)), [sampled_rois(128)])
    assert losses["loss_box_reg"].item() == pytest.approx(0.00114258, abs=1e-7)
    sum(losses.values()).backward()
    # By hand, sigma 1: d / 128 on the ground-truth class of the foreground RoI, nothing elsewhere.
    assert deltas.grad is not None and scores.grad is not None
    expected = torch.zeros(128, 3, 4)
    expected[0, 1] = torch.tensor([0.05, -0.2, 0.0, 0.5]) / 128
    assert torch.allclose(deltas.grad, expected, atol=1e-8)
    # By hand: (softmax - onehot) / 128; four equal logits have softmax 1/4.
    onehot = torch.zeros(128, 4)
    onehot[0, 1] = onehot[1:, 3] = 1.0
    assert torch.allclose(scores.grad, (0.25 - onehot) / 128, atol=1e-8)


def test_new_layers_are_initialised_as_the_originals(tiny_cfg) -> None:
    predictor = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.FC_DIM", 2048), SHAPE).box_predictor
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("train", [True, False])
def test_no_proposals(tiny_cfg, train: bool) -> None:
    heads = build_roi_heads(tiny_cfg(), SHAPE).train(train)
    empty = Instances((64, 64))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    empty.objectness_logits = torch.zeros(0)
    features = {"conv5": torch.rand(1, 8, 4, 4, requires_grad=True)}
    gt = [make_instances((64, 64), [])] if train else None
    with EventStorage():
        instances, losses = heads(None, features, [empty], gt)
    if train:
        total = sum(losses.values())
        assert total.item() == 0
        total.backward()  # the graph is there, or several processes would wait for ever
        assert heads.box_predictor.cls_score.weight.grad is not None
    else:
        assert len(instances[0]) == 0


def test_other_poolers_stay_the_hosts(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"), SHAPE)
    assert isinstance(heads, CaffeROIHeads) and isinstance(heads.box_pooler, ROIPooler)
    assert isinstance(build_roi_heads(tiny_cfg(), SHAPE).box_pooler, InclusiveROIPooler)


# ---- what is computed differently from the host, with the same result ----------------------


def test_fc_in_parts_is_the_same() -> None:
    torch.manual_seed(0)
    head = FC6FC7Head(ShapeSpec(channels=4, height=7, width=7), fc_dim=1500).eval()
    x = torch.rand(6, 4, 7, 7)
    with torch.no_grad():
        parts = head(x)
    assert torch.allclose(parts, head(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("foreground", [0, 5])
def test_losses_and_statistics_are_the_hosts(tiny_cfg, foreground: int) -> None:
    predictor = build_roi_heads(tiny_cfg(), SHAPE).box_predictor
    torch.manual_seed(0)
    rois = sampled_rois(20)
    rois.gt_classes = torch.tensor([i % 3 for i in range(foreground)] + [3] * (20 - foreground))
    rois.proposal_boxes.tensor[:, 2] += torch.arange(20.0)
    if not foreground:
        rois.remove("gt_boxes")
    predictions = torch.randn(20, 4), torch.randn(20, 12)
    with EventStorage() as expected_storage:
        expected = FastRCNNOutputLayers.losses(predictor, predictions, [rois])
    with EventStorage() as storage:
        actual = predictor.losses(predictions, [rois])
    assert {k: v.item() for k, v in actual.items()} == {k: v.item() for k, v in expected.items()}
    assert storage.latest() == expected_storage.latest() and len(storage.latest()) >= 1


def test_pooling_of_two_images_as_the_hosts_pooler() -> None:
    host = ROIPooler(output_size=7, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIPool")
    features = torch.rand(2, 8, 9, 12, requires_grad=True)
    boxes = [torch.tensor([[0.0, 0, 100, 90]]), torch.tensor([[16.0, 8, 80, 80], [0, 0, 9, 9]])]
    one = torch.tensor([0.0, 0.0, 1.0, 1.0])
    expected = host([features], [Boxes(b - one) for b in boxes])
    pooler = InclusiveROIPooler(host)
    training = pooler([features], [Boxes(b) for b in boxes])
    assert torch.equal(training, expected) and training.requires_grad
    with torch.no_grad():
        assert torch.equal(pooler([features], [Boxes(b) for b in boxes]), expected)
