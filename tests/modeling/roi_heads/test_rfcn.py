"""R-FCN's heads: maps, votes, losses, statistics, and a model of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import ps_roi_align

from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import (
    RFCNHeads,
    box_features,
    build_ps_pooler,
    fold_target_statistics,
)
from tests.conftest import make_input
from tests.four_step.four_step_runs import make_trainer
from tests.modeling.parts import K, random_statistics

SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}
RFCN = [
    *("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    *("MODEL.RFCN.CONV_DIM", 16),
    *("MODEL.RFCN.GROUP_SIZE", 3),
]


@pytest.fixture
def make_heads(tiny_cfg) -> Any:
    def build(*opts: Any) -> RFCNHeads:
        torch.manual_seed(0)
        heads = build_roi_heads(tiny_cfg(*RFCN, *opts), SHAPE)
        assert isinstance(heads, RFCNHeads)
        return heads

    return build


def proposals(*counts: int, size: tuple[int, int] = (100, 160)) -> list[Instances]:
    """Random proposals, continuous, within images of one size."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for n in counts:
        corners = torch.rand(n, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([size[1], size[0]])).flatten(1)
        boxes[:, 2:] += 1
        result.append(Instances(size, proposal_boxes=Boxes(boxes).clone()))
        result[-1].proposal_boxes.clip(size)
    return result


def features(images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"conv5": torch.randn(images, 8, 7, 10, generator=torch.Generator().manual_seed(seed))}


def test_layers_and_their_first_weights(tiny_cfg) -> None:
    cfg = tiny_cfg(*RFCN, "MODEL.RFCN.CONV_DIM", 1024, "MODEL.RFCN.GROUP_SIZE", 7)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    shape = {"conv5": ShapeSpec(channels=512, stride=16)}
    heads = build_roi_heads(cfg, shape)
    layers = {
        "box_head.conv_new": (1024, 512, 1, 1),
        "box_predictor.cls_score": (1029, 1024, 1, 1),  # 49 * 21
        "box_predictor.bbox_pred": (196, 1024, 1, 1),  # 49 * 4
    }
    weights = {n: p for n, p in heads.named_parameters() if n.endswith("weight")}
    assert {n.removesuffix(".weight"): tuple(p.shape) for n, p in weights.items()} == layers
    for weight in weights.values():
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(p.abs().max() == 0 for n, p in heads.named_parameters() if n.endswith("bias"))
    # As stage 4 of four-step training may do; conv_new, fc6 and fc7 go on.
    before = {n: p.clone() for n, p in weights.items()}
    heads.box_predictor.reset_parameters(torch.Generator().manual_seed(5))
    changed = {n for n, p in heads.named_parameters() if n in before and not p.equal(before[n])}
    assert changed == {"box_predictor.cls_score.weight", "box_predictor.bbox_pred.weight"}
    assert weights["box_predictor.bbox_pred.weight"].std().item() == pytest.approx(0.01, rel=0.02)


def test_votes_are_means_of_the_bins_of_their_own_maps(make_heads) -> None:
    """With maps that are constants, a vote is the mean of k * k neighbouring constants."""
    heads = make_heads()
    predictor, nine = heads.box_predictor, torch.arange(9.0)
    for layer, start in ((predictor.cls_score, 100), (predictor.bbox_pred, 1000)):
        layer.weight.data.zero_()
        layer.bias.data.copy_(
            (start * torch.arange(len(layer.bias) // 9)[:, None] + nine).flatten()
        )
    with torch.no_grad():
        scores, deltas = heads.predict(features(1), [proposals(5)[0].proposal_boxes])
    assert scores.tolist() == [[4.0, 104.0, 204.0, 304.0]] * 5  # background last
    assert deltas.tolist() == [[4.0, 1004.0, 2004.0, 3004.0]] * 5


def test_boxes_are_pooled_by_inclusive_corners() -> None:
    ramp = torch.arange(36.0).view(1, 1, 6, 6).repeat(1, 4, 1, 1)
    boxes = [Boxes(torch.tensor([[8.0, 8.0, 41.0, 41.0]]))]  # inclusive: 8, 8, 40, 40
    pooled = build_ps_pooler("caffe", 2, 1 / 16)([ramp], boxes)
    assert pooled.tolist() == [[[[3.5, 4.5], [9.5, 10.5]]]]  # example P2
    assert pooled.mean() == 7.0
    aligned = build_ps_pooler("align", 2, 1 / 16, 2)([ramp], boxes)
    assert aligned.equal(
        ps_roi_align(ramp, torch.tensor([[0, 8.0, 8.0, 41.0, 41.0]]), 2, 1 / 16, 2)
    )
    assert not aligned.equal(pooled)


@pytest.mark.parametrize("opts", [[], ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False]])
def test_statistics_fold_into_the_maps(make_heads, opts: list[Any]) -> None:
    """The same votes, in Detectron2's units, whose channels are not 4a + j."""
    heads = make_heads(*opts)
    predictor = heads.box_predictor
    rows = predictor.target_statistics.num_classes
    assert rows == (K if opts else 1)
    predictor.target_statistics.set(*random_statistics(rows))

    def stock() -> torch.Tensor:
        with torch.no_grad():
            _, deltas = heads.predict(features(2), [p.proposal_boxes for p in proposals(6, 7)])
        return predictor.target_statistics.denormalise(deltas)

    before = stock()
    fold_target_statistics(heads)
    assert not predictor.target_statistics.active
    torch.testing.assert_close(stock(), before, rtol=0, atol=1e-6)
    predictor.target_statistics.unfold(predictor.bbox_pred, *random_statistics(rows, seed=1))
    torch.testing.assert_close(stock(), before, rtol=0, atol=1e-6)


def training_step(heads: RFCNHeads, counts: tuple[int, ...], gt: bool = True) -> dict[str, Any]:
    inputs = [
        make_input(100, 160, [[10.0, 12.0, 90.0, 70.0]] if gt else [], seed=i)
        for i in range(len(counts))
    ]
    targets = [x["instances"] for x in inputs]
    given = proposals(*counts)
    for p in given:
        p.objectness_logits = torch.zeros(len(p))
    with EventStorage():
        _, losses = heads.train()(None, features(len(counts)), given, targets)
    return losses


@pytest.mark.parametrize(
    ("counts", "gt"), [((30, 20), True), ((30,), False), ((0,), False), ((0, 4), True)]
)
@pytest.mark.parametrize("fc", ["none", "reduced"])
def test_every_layer_learns(make_heads, counts: tuple[int, ...], gt: bool, fc: str) -> None:
    heads = make_heads("MODEL.RFCN.BACKBONE_FC", fc)
    losses = training_step(heads, counts, gt)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    gradients = {n: p.grad for n, p in heads.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    if gt:
        assert all(g.abs().max() > 0 for n, g in gradients.items() if n.endswith("weight"))


def test_no_proposals_and_autocast(make_heads) -> None:
    heads = make_heads().eval()
    with torch.no_grad():
        (result,), _ = heads(None, features(1), proposals(0))
        assert len(result) == 0
        with torch.autocast("cpu", torch.bfloat16):
            scores, deltas = heads.predict(features(1), [proposals(3)[0].proposal_boxes])
        exact, _ = heads.predict(features(1), [proposals(3)[0].proposal_boxes])
    assert scores.dtype == deltas.dtype == torch.float32
    assert (scores - exact).abs().max() < 0.02 * exact.abs().max()


def test_two_images_do_not_see_each_other(make_heads) -> None:
    heads, both = make_heads(), proposals(4, 5)
    boxes = [p.proposal_boxes for p in both]
    with torch.no_grad():
        together, _ = heads.predict(features(2), boxes)
        second, _ = heads.predict({"conv5": features(2)["conv5"][1:]}, boxes[1:])
    torch.testing.assert_close(together[4:], second)


@pytest.mark.parametrize("opts", [[], ["MODEL.RFCN.POOLER", "align"]])
def test_whole_model_is_saved_and_loaded(tiny_cfg, tmp_path, opts: list[Any]) -> None:
    cfg = tiny_cfg(*RFCN, *opts, "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = [
        make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]]),
        make_input(131, 160, [], seed=1),
    ]
    with EventStorage():
        sum(model(batch).values()).backward()
    AtomicCheckpointer(model, str(tmp_path), cfg=cfg).save("saved")
    torch.manual_seed(1)
    other = build_model(cfg)
    AtomicCheckpointer(other, cfg=cfg, evaluating=True).load(str(tmp_path / "saved.pth"))
    with torch.no_grad():
        results = [m.eval()(batch)[0]["instances"] for m in (model, other)]
    assert len(results[0]) > 0
    assert results[0].pred_boxes.tensor.equal(results[1].pred_boxes.tensor)
    assert results[0].scores.equal(results[1].scores)


def test_there_is_no_feature_vector_per_box(make_heads) -> None:
    with pytest.raises(UserError, match="RFCNHeads has not one feature vector per box"):
        box_features(make_heads(), features(1), [proposals(2)[0].proposal_boxes])


@pytest.mark.usefixtures("with_data")
def test_four_stages(four_step_root: Path) -> None:
    """Convolutions of the backbone stay shared, those of the heads train; statistics are folded."""
    folder = four_step_root / "rfcn"
    opts = [
        *map(str, RFCN),
        "MODEL.RFCN.BACKBONE_FC",
        "reduced",
        "MODEL.ROI_HEADS.SAMPLING",
        "hard",
    ]
    trainer = make_trainer(folder, [*opts, "FOUR_STEP.PREDICTOR_START", "continue"])
    trainer.train()
    stage3, stage4 = (
        torch.load(folder / f"stage{i}_final.pth", weights_only=True)["model"] for i in (3, 4)
    )
    changed = {name.split(".")[0] for name in stage4 if not stage4[name].equal(stage3[name])}
    assert changed == {"roi_heads"}
    assert not any("statistics" in name for name in stage4)
    new = [n for n in stage4 if n.startswith("roi_heads") and not stage4[n].equal(stage3[n])]
    assert len(new) == 10  # weights and biases of fc6, fc7, conv_new, cls_score, bbox_pred


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.RFCN.POOLER", "max"], "MODEL.RFCN.POOLER is 'max'"),
        (["MODEL.RFCN.BACKBONE_FC", "all"], "MODEL.RFCN.BACKBONE_FC is 'all'"),
        (["MODEL.MASK_ON", True], "MODEL.MASK_ON is True"),
        (["MODEL.ROI_HEADS.IN_FEATURES", ["conv4", "conv5"]], "MODEL.ROI_HEADS.IN_FEATURES is"),
    ],
)
def test_wrong_combinations(make_heads, opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_heads(*opts)


def test_hard_examples(make_heads) -> None:
    """Of each image the highest losses: class loss by their mean, box loss by the number wanted."""
    hard = ["MODEL.ROI_HEADS.SAMPLING", "hard", "MODEL.ROI_HEADS.HARD_NMS_THRESH", 1.0]
    every = make_heads("MODEL.ROI_HEADS.SAMPLING", "all")
    every.box_predictor.cls_score.bias.data.normal_()
    every.box_predictor.bbox_pred.bias.data.normal_()
    inputs = [make_input(100, 160, [[10.0, 12.0, 90.0, 70.0]], seed=i) for i in range(2)]
    targets, given = [x["instances"] for x in inputs], proposals(30, 7)
    for p in given:
        p.objectness_logits = torch.zeros(len(p))
    maps = features(2)
    with EventStorage():
        rois, _ = every.train()(None, maps, given, targets)
        assert [len(r) for r in rois] == [31, 8]  # all, and the objects
        predictions = every.predict(maps, [r.proposal_boxes for r in rois])
        per_roi = every.box_predictor.losses_per_roi(predictions, rois)
    per_image = [x.split([31, 8]) for x in (per_roi["loss_cls"], per_roi["loss_box_reg"])]
    kept = [(a + b).topk(min(10, len(a))).indices for a, b in zip(*per_image, strict=True)]
    wanted = [torch.cat([x[k] for x, k in zip(xs, kept, strict=True)]) for xs in per_image]
    expected = {"loss_cls": wanted[0].mean(), "loss_box_reg": wanted[1].sum() / 20}
    assert len(wanted[0]) == 18

    heads = make_heads(*hard, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10)
    heads.load_state_dict(every.state_dict())
    with EventStorage() as storage:
        chosen, losses = heads.train()(None, maps, given, targets)
        shown = heads.training_rois(maps, given, targets)  # what a picture of samples draws
    assert [len(r) for r in chosen] == [10, 8]
    for drawn, trained in zip(shown, chosen, strict=True):
        assert torch.equal(drawn.proposal_boxes.tensor, trained.proposal_boxes.tensor)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    assert storage.latest()["roi_head/num_bg_samples"][0] < 10
    assert losses["loss_box_reg"] > 0
    gradients = [
        torch.autograd.grad(sum(x.values()), list(h.parameters()))
        for x, h in ((losses, heads), (expected, every))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unknown_sampling(make_heads) -> None:
    with pytest.raises(UserError, match=r"MODEL.ROI_HEADS.SAMPLING is 'most'"):
        make_heads("MODEL.ROI_HEADS.SAMPLING", "most")
