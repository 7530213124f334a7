"""Cascade R-CNN's heads. Examples C1 to C3 (docs/worked_examples.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from frcnn_plugin.checkpoint import convert_to_caffe, write_caffemodel
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.checkpoint.conversion import BOX_HEAD, PREDICTOR, pruned
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.stages import STAGES
from frcnn_plugin.four_step.statistics import set_target_statistics
from frcnn_plugin.four_step.weights import begin_stage
from frcnn_plugin.modeling import CaffeCascadeROIHeads, InclusiveROIPooler
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.checkpoint import networks
from tests.conftest import make_input, make_instances
from tests.random_detector import squares

CASCADE = [
    *("MODEL.ROI_HEADS.NAME", "CaffeCascadeROIHeads"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
]
NODE = "MODEL.ROI_BOX_CASCADE_HEAD"
SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}
K = 3


class FixedPredictor(nn.Module):
    """Moves every box by the same offset, and has the loss of a unit gradient."""

    def __init__(self, offset: tuple[float, float, float, float] = (0, 0, 0, 0)) -> None:
        super().__init__()
        self.offset = torch.tensor(offset)
        self.seen: list[list[Instances]] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x

    def predict_boxes(self, predictions: Any, rois: list[Instances]) -> list[torch.Tensor]:
        return [r.proposal_boxes.tensor + self.offset for r in rois]

    def losses(self, predictions: Any, rois: list[Instances]) -> dict[str, torch.Tensor]:
        self.seen.append(rois)
        return {"loss_cls": predictions[0].sum()}


class Times(nn.Module):
    """A box head of one weight, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Pooled(nn.Module):
    """A pooler that hands out given features."""

    def __init__(self, maps: list[torch.Tensor]) -> None:
        super().__init__()
        self.maps = iter(maps)

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        return next(self.maps, torch.zeros(1))


def with_predictors(
    cfg: CfgNode, *predictors: FixedPredictor, pooled: list[torch.Tensor] | None = None
) -> CaffeCascadeROIHeads:
    heads = build_roi_heads(cfg, SHAPE).train()
    heads.box_head = nn.ModuleList(Times() for _ in predictors)
    heads.box_predictor = nn.ModuleList(predictors)
    heads.box_pooler = Pooled(pooled or [])
    return heads


def train(heads: CaffeCascadeROIHeads, boxes: list[list[float]], gt: Instances) -> dict[str, Any]:
    proposals = Instances(gt.image_size, proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    proposals.objectness_logits = torch.zeros(len(boxes))
    with EventStorage():
        _, losses = heads(None, {"conv5": torch.zeros(1, 8, 7, 7)}, [proposals], [gt])
    return losses


ORIGINAL = [(10, 10, 5, 5), (20, 20, 10, 10), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067)]
DETECTRON2 = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
FIRST, SECOND = (2, 4.5, 0.9116, 2.0273), (4, 9, 1.8232, 4.0547)


@pytest.mark.parametrize(
    ("weights", "third"),
    [(DETECTRON2, (6, 13.5, 2.7348, 6.082)), (ORIGINAL, (6.0606, 13.6364, 2.7212, 6.0517))],
)
def test_targets_c1(tiny_cfg, weights: list[Any], third: tuple[float, ...]) -> None:
    heads = build_roi_heads(tiny_cfg(*CASCADE, f"{NODE}.BBOX_REG_WEIGHTS", weights), SHAPE)
    box, gt = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 2, 13, 17]])  # E5
    for predictor, expected in zip(heads.box_predictor, (FIRST, SECOND, third), strict=True):
        targets = predictor.box2box_transform.get_deltas(box, gt)
        torch.testing.assert_close(targets, torch.tensor([expected]), rtol=0, atol=1e-4)


def test_iou_of_the_heads_c2(tiny_cfg) -> None:
    predictors = [FixedPredictor() for _ in range(3)]
    heads = with_predictors(tiny_cfg(*CASCADE, f"{NODE}.APPEND_GT", False), *predictors)
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [2])
    heads.proposal_append_gt = False
    losses = train(heads, [[0, 0, 55, 100]], gt)
    assert set(losses) == {"loss_cls_head1", "loss_cls_head2", "loss_cls_head3"}
    assert [p.seen[0][0].gt_classes.tolist() for p in predictors] == [[2], [K], [K]]
    assert predictors[1].seen[0][0].gt_boxes.tensor.tolist() == [[0, 0, 100, 100]]


@pytest.mark.parametrize(
    ("opts", "expected"),
    [([], [1, 0.5, 0.25]), ([f"{NODE}.LOSS_WEIGHTS", [1 / 3] * 3], [1 / 3] * 3)],
)
def test_gradient_of_the_features_c3(tiny_cfg, opts: list[Any], expected: list[float]) -> None:
    leaves = [torch.ones(1, requires_grad=True) for _ in range(3)]
    heads = with_predictors(
        tiny_cfg(*CASCADE, *opts),
        *(FixedPredictor() for _ in range(3)),
        pooled=[leaf * 1 for leaf in leaves],
    )
    sum(train(heads, [[0, 0, 50, 50]], make_instances((99, 99), [])).values()).backward()
    assert [leaf.grad.item() for leaf in leaves] == pytest.approx(expected)
    assert [head.weight.grad.item() for head in heads.box_head] == [1, 1, 1]


@pytest.mark.parametrize(
    ("opts", "second"),
    [
        # Of the proposals, the second has IoU .96 with the object, so what became of it is dropped,
        # like what became of the object itself among the RoIs of head 1; the third became empty.
        ([], [[20, 0, 70, 100], [0, 0, 100, 100]]),
        ([f"{NODE}.APPEND_GT", False], [[20, 0, 70, 100]]),
        (
            [f"{NODE}.DROP_IOU", 1.0],
            [[20, 0, 70, 100], [20, 0, 100, 100], [20, 0, 100, 100], [0, 0, 100, 100]],
        ),
    ],
)
def test_rois_of_the_next_head(tiny_cfg, opts: list[Any], second: list[list[float]]) -> None:
    predictors = [FixedPredictor((20, 0, 20, 0)), FixedPredictor(), FixedPredictor()]
    heads = with_predictors(tiny_cfg(*CASCADE, *opts), *predictors)
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [1])
    train(heads, [[0, 0, 50, 100], [0, 0, 96, 100], [80, 0, 95, 30]], gt)
    assert len(predictors[0].seen[0][0]) == 4  # with the object
    (rois,) = predictors[1].seen[0]
    assert sorted(rois.proposal_boxes.tensor.tolist()) == sorted(map(list, second))
    assert rois.image_size == (100, 100)


def batch(*objects: int) -> list[dict[str, Any]]:
    boxes = [[10.0, 12, 60, 70], [30, 40, 120, 90]]
    sizes = [(97, 131), (131, 160)]
    return [
        make_input(*size, boxes[:n], seed=i)
        for i, (size, n) in enumerate(zip(sizes, objects, strict=False))
    ]


def test_detectron2s_cascade_is_a_case_of_ours(tiny_cfg) -> None:
    """With its rules and poolers: losses, all gradients, detections."""
    opts = [
        *CASCADE,
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        *("MODEL.ROI_BOX_HEAD.DECODE_GROWTH", 0.0),
        *("MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE", False),
        *("MODEL.ROI_BOX_HEAD.SCALE_CLAMP", 4.135166556742356),
        *("MODEL.ROI_BOX_HEAD.DROPOUT", 0.0),
        *("MODEL.PAPER_RCNN.ONE_BY_ONE", False),
        *("TEST.KEEP_TIES", False),
        *(f"{NODE}.LOSS_WEIGHTS", [1 / 3] * 3),
        *(f"{NODE}.SCORES_FROM", "own"),
        *(f"{NODE}.APPEND_GT", False),
        *(f"{NODE}.DROP_IOU", 1.0),
    ]
    torch.manual_seed(0)
    ours = build_model(tiny_cfg(*opts))
    theirs = build_model(tiny_cfg(*opts, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"))
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    results: list[tuple[Any, ...]] = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        with EventStorage():
            losses = model.train()(batch(2, 1))
        sum(losses.values()).backward()
        with torch.no_grad():
            found = [x["instances"] for x in model.eval()(batch(2, 1))]
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        results.append(([*losses.values()], gradients, found))
    (losses, gradients, found), (their_losses, their_gradients, their_found) = results
    torch.testing.assert_close(losses, their_losses)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-6)
    for mine, other in zip(found, their_found, strict=True):
        assert len(mine) == len(other) > 0
        torch.testing.assert_close(mine.scores, other.scores)
        torch.testing.assert_close(mine.pred_boxes.tensor, other.pred_boxes.tensor)


@pytest.mark.parametrize("scores_from", ["last", "own"])
def test_scores_are_the_mean_of_all_classifiers(tiny_cfg, scores_from: str) -> None:
    torch.manual_seed(0)
    cfg = tiny_cfg(*CASCADE, f"{NODE}.SCORES_FROM", scores_from)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    heads = build_roi_heads(cfg, SHAPE).eval()
    for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
        nn.init.normal_(head.fc6.weight, std=0.1)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
        nn.init.normal_(predictor.cls_score.weight)
    assert isinstance(heads.box_pooler, InclusiveROIPooler)
    maps = {"conv5": torch.randn(1, 8, 7, 9)}
    rois = Instances((112, 144), proposal_boxes=Boxes(torch.tensor([[8.0, 8, 90, 100]])))
    scores, used = [], []
    with torch.no_grad():
        for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
            used.append(rois)
            vector = head(heads.box_pooler([maps["conv5"]], [rois.proposal_boxes]))
            decoded = Boxes(predictor.predict_boxes(predictor(vector), [rois])[0])
            decoded.clip((112, 144))
            rois = Instances((112, 144), proposal_boxes=decoded)
        for i, (head, predictor) in enumerate(
            zip(heads.box_head, heads.box_predictor, strict=True)
        ):
            of = used[-1 if scores_from == "last" else i]
            vector = head(heads.box_pooler([maps["conv5"]], [of.proposal_boxes]))
            scores.append(predictor.cls_score(vector).softmax(dim=1))
        (found,), _ = heads(None, maps, [used[0]], None)
    expected = sum(scores)[0, :-1] / 3
    torch.testing.assert_close(found.scores, expected.sort(descending=True).values)
    for box in found.pred_boxes.tensor:
        torch.testing.assert_close(box, rois.proposal_boxes.tensor[0])
    assert not torch.allclose(used[0].proposal_boxes.tensor, used[2].proposal_boxes.tensor)


@pytest.mark.parametrize("objects", [(2, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.parametrize("amp", [True, False])
def test_degenerate_inputs(
    tiny_cfg, objects: tuple[int, int], one_by_one: bool, classes: int, amp: bool
) -> None:
    torch.manual_seed(0)
    model = build_model(
        tiny_cfg(
            *CASCADE,
            *("MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one),
            *("MODEL.ROI_HEADS.NUM_CLASSES", classes),
            *("SOLVER.AMP.ENABLED", amp),
            *("MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bfloat16" if amp else "float32"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        )
    )
    with EventStorage():
        losses = model.train()(batch(*objects))
    total = sum(losses.values())
    assert len(losses) == 8 and torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in model.roi_heads.parameters())
    with torch.no_grad():
        found = [x["instances"] for x in model.eval()(batch(*objects))]
    assert [f.image_size for f in found] == [(97, 131), (131, 160)]
    assert all(f.pred_boxes.tensor.dtype == torch.float32 and len(f) for f in found)


def test_no_proposals(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg(*CASCADE), SHAPE)
    empty = Instances((99, 99), proposal_boxes=Boxes(torch.zeros(0, 4)))
    empty.objectness_logits = torch.zeros(0)
    maps = {"conv5": torch.randn(1, 8, 7, 7, requires_grad=True)}
    with EventStorage():
        _, losses = heads.train()(None, maps, [empty], [make_instances((99, 99), [])])
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    (found,), _ = heads.eval()(None, maps, [empty], None)
    assert len(found) == 0


def test_masks(tiny_cfg) -> None:
    model = build_model(
        tiny_cfg(
            *CASCADE,
            *("MODEL.MASK_ON", True),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIPool"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        )
    )
    assert isinstance(model.roi_heads.mask_pooler, InclusiveROIPooler)
    inputs = batch(2, 1)
    for x in inputs:
        height, width = x["instances"].image_size
        x["instances"].gt_masks = BitMasks(torch.ones(len(x["instances"]), height, width))
    with EventStorage():
        losses = model.train()(inputs)
    assert {"loss_mask", "loss_cls_head1", "loss_box_reg_head3"} <= set(losses)
    sum(losses.values()).backward()
    with torch.no_grad():
        found = model.eval()(inputs)[0]["instances"]
    assert found.pred_masks.shape[1:] == (97, 131)


MISTAKES = [
    ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG True"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.4], r"Type MODEL.ROI_HEADS.IOU_THRESHOLDS \"\[0\.5\]"),
    (f"{NODE}.IOUS", [0.6, 0.6, 0.7], r"disagree .* Type MODEL.ROI_HEADS.IOU_THRESHOLDS"),
    (f"{NODE}.IOUS", [0.5, 0.6], "BBOX_REG_WEIGHTS has 3 entries, but .*IOUS 2"),
    (f"{NODE}.LOSS_WEIGHTS", [1.0], "LOSS_WEIGHTS has 1 entries"),
    (f"{NODE}.SCORES_FROM", "first", "SCORES_FROM is 'first': use one of last, own"),
    ("MODEL.ROI_HEADS.SAMPLING", "hard", "type MODEL.ROI_HEADS.SAMPLING random"),
]


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_mistakes(tiny_cfg, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_roi_heads(tiny_cfg(*CASCADE, key, value), SHAPE)


def test_background_window_of_the_paper(tiny_cfg) -> None:
    """Base-Paper.yaml's [0.1, 0.5) holds for head 1."""
    window = [
        *("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.1, 0.5]),
        *("MODEL.ROI_HEADS.IOU_LABELS", [-1, 0, 1]),
    ]
    predictors = [FixedPredictor() for _ in range(3)]
    heads = with_predictors(tiny_cfg(*CASCADE, *window), *predictors)
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [1])
    train(heads, [[0, 0, 5, 100], [0, 0, 20, 100]], gt)
    assert sorted(predictors[0].seen[0][0].gt_classes.tolist()) == [1, K]


# ---- weights ----

NARROW = [*("MODEL.PAPER_VGG.CHANNELS", [4] * 5), *("MODEL.ROI_BOX_HEAD.FC_DIM", 6)]


def loaded(cfg: CfgNode, path: Path, **kwargs: Any) -> nn.Module:
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, **kwargs).load(str(path))
    return model


def test_imagenet_weights_go_into_all_heads(tiny_cfg, tmp_path: Path) -> None:
    path = tmp_path / "vgg16.caffemodel"
    layers = networks.vgg16()
    write_caffemodel(path, layers)
    model = loaded(tiny_cfg(*CASCADE, *NARROW), path)
    for head in model.roi_heads.box_head:
        assert head.fc6.weight.tolist() == layers["fc6"][0].tolist()
        assert head.fc7.bias.tolist() == layers["fc7"][1].tolist()
    first, second, _ = model.roi_heads.box_head
    assert first.fc6.weight.data_ptr() != second.fc6.weight.data_ptr()
    with pytest.raises(UserError, match="cannot be evaluated: it lacks 18 weights"):
        loaded(tiny_cfg(*CASCADE, *NARROW), path, evaluating=True)


def test_from_a_detector_with_one_head_and_back(tiny_cfg, tmp_path: Path, caplog) -> None:
    cfg = tiny_cfg(*NARROW)
    single = build_model(cfg)
    AtomicCheckpointer(single, str(tmp_path), cfg=cfg).save("single")
    cfg = tiny_cfg(*CASCADE, *NARROW, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    model = loaded(cfg, tmp_path / "single.pth")
    for head in model.roi_heads.box_head:
        assert torch.equal(head.fc7.weight, single.roi_heads.box_head.fc7.weight)
    # Its own checkpoint, with other numbers of classes as well.
    AtomicCheckpointer(model, str(tmp_path), cfg=cfg).save("cascade")
    again = loaded(cfg, tmp_path / "cascade.pth", evaluating=True).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    loaded(tiny_cfg(*CASCADE, *NARROW), tmp_path / "cascade.pth")
    assert "another number of classes" in caplog.text and f"{PREDICTOR}.2.cls_score" in caplog.text
    with pytest.raises(UserError, match=rf"no place for .* such as {BOX_HEAD}\.0"):
        convert_to_caffe(model.state_dict())


def test_pruning() -> None:
    """The rows of fc6 have norms 3, 1, 5; of fc7 over columns 0 and 2: 2, 4, 7."""
    state = {
        f"{BOX_HEAD}.fc6.weight": torch.tensor([[-3.0, 0], [0.5, 0.5], [1, -4]]),
        f"{BOX_HEAD}.fc6.bias": torch.tensor([1.0, 2, 3]),
        f"{BOX_HEAD}.fc7.weight": torch.tensor([[1.0, 99, 1], [0, 0, -4], [7, 0, 0]]),
        f"{BOX_HEAD}.fc7.bias": torch.tensor([4.0, 5, 6]),
        "backbone.x": torch.zeros(5),
    }
    result = {name: tensor.tolist() for name, tensor in pruned(state, 2).items()}
    assert result == {
        f"{BOX_HEAD}.fc6.weight": [[-3, 0], [1, -4]],
        f"{BOX_HEAD}.fc6.bias": [1, 3],
        f"{BOX_HEAD}.fc7.weight": [[0, -4], [7, 0]],
        f"{BOX_HEAD}.fc7.bias": [5, 6],
        "backbone.x": [0] * 5,
    }
    assert pruned(state, 3) is state


def test_pruned_weights_go_into_all_heads(tiny_cfg, tmp_path: Path) -> None:
    path = tmp_path / "vgg16.caffemodel"
    write_caffemodel(path, networks.vgg16())
    opts = [*CASCADE, *NARROW, "MODEL.ROI_BOX_HEAD.FC_DIM", 4]
    with pytest.raises(UserError, match="PRUNE_WEIGHTS True cuts wider ones down"):
        loaded(tiny_cfg(*opts), path)
    model = loaded(tiny_cfg(*opts, "MODEL.ROI_BOX_HEAD.PRUNE_WEIGHTS", True), path)
    assert all(h.fc6.weight.shape == (4, 196) for h in model.roi_heads.box_head)


# ---- four steps, predict ----


def test_four_steps(tiny_cfg) -> None:
    cfg = tiny_cfg(*CASCADE, "FOUR_STEP.TARGET_STATISTICS", "per_class")
    model = build_model(cfg)
    before = [p.cls_score.weight.clone() for p in model.roi_heads.box_predictor]
    begin_stage(model, STAGES[3], "", seed=1)
    after = [p.cls_score.weight for p in model.roi_heads.box_predictor]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(after[0], after[1])
    with pytest.raises(UserError, match=r"CaffeCascadeROIHeads .*TARGET_STATISTICS fixed"):
        set_target_statistics(cfg, STAGES[3], model, object())  # type: ignore[arg-type]


def test_predict(save_detector: Callable, tmp_path: Path, capsys) -> None:
    weights = save_detector(*CASCADE)
    predictor = FasterRCNNPredictor(weights, device="cpu")
    image = squares(100, 150)
    assert len(predictor(image)) > 0
    message = "CaffeCascadeROIHeads has not one feature vector per box"
    with pytest.raises(UserError, match=message):
        predictor(image, features=True)
    Image.fromarray(image).save(tmp_path / "image.png")
    npz = tmp_path / "found.npz"
    words = ["predict", "--weights", weights, str(tmp_path / "image.png"), "--features", str(npz)]
    assert main(words) == 1
    assert message in capsys.readouterr().err and not npz.exists()
