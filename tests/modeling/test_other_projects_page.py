"""Weak supervision, new classes, foreign trainers; docs/other_projects.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_HEADS_REGISTRY,
    StandardROIHeads,
    build_model,
)
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import build_box_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.checkpoint import AtomicCheckpointer, write_caffemodel
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import (
    CaffeROIHeads,
    InclusiveROIPooler,
    PaperRCNN,
    build_pooler,
    fold_target_statistics,
)
from tests.checkpoint import networks
from tests.conftest import make_input

pytestmark = pytest.mark.usefixtures("restore_registries")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other_projects.md"
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]


def batch() -> list[dict[str, Any]]:
    return [make_input(97, 131, BOXES, scale=1.6), make_input(131, 160, BOXES[:1], seed=1)]


# ---- weakly supervised and few-shot -----------------------------------------------------------


class WeakLayers(torch.nn.Module):
    """Two streams, image-level labels; it asks for the proposals, too."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        layers = (torch.nn.Linear(input_shape.channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES),) * 2
        self.classes, self.proposals = layers

    def forward(self, x, proposals):
        sizes = [len(p) for p in proposals]
        pairs = zip(self.classes(x).split(sizes), self.proposals(x).split(sizes), strict=True)
        return [classes.softmax(1) * found.softmax(0) for classes, found in pairs]


class WeakHeads(torch.nn.Module):
    """Not of Detectron2's classes, with an own pooler; they scale features by the logits."""

    @configurable
    def __init__(self, *, in_features, box_pooler, box_head, box_predictor):
        super().__init__()
        self.in_features, self.box_pooler = in_features, box_pooler
        self.box_head, self.box_predictor = box_head, box_predictor

    @classmethod
    def from_config(cls, cfg, input_shape):
        return cls._init_box_head(cfg, input_shape)

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        (name,), size = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        pooled = ShapeSpec(channels=input_shape[name].channels, height=size, width=size)
        kind, head = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, build_box_head(cfg, pooled)
        return {
            "in_features": [name],
            "box_pooler": ROIPooler(size, (1 / input_shape[name].stride,), 0, kind),
            "box_head": head,
            "box_predictor": WeakLayers(cfg, ShapeSpec(channels=head.output_size)),
        }

    def forward(self, images, features, proposals, targets=None):
        maps = [features[name] for name in self.in_features]
        x = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        x = x * torch.cat([p.objectness_logits + 1 for p in proposals]).view(-1, 1, 1, 1)
        scores = self.box_predictor(self.box_head(x), proposals)
        if not self.training:
            return proposals, {}
        wanted = torch.zeros(len(targets), scores[0].shape[1])
        for row, target in zip(wanted, targets, strict=True):
            row[target.gt_classes.unique()] = 1
        found = torch.stack([s.sum(0) for s in scores]).clamp(1e-6, 1 - 1e-6)
        return proposals, {"loss_image": torch.nn.functional.binary_cross_entropy(found, wanted)}


class CaffePooledWeakHeads(WeakHeads):
    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        parts = super()._init_box_head(cfg, input_shape)
        return {**parts, "box_pooler": InclusiveROIPooler(parts["box_pooler"])}


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("model", ["PaperRCNN", "GeneralizedRCNN"])
def test_weakly_supervised_heads(tiny_cfg, model: str, dilation: int) -> None:
    ROI_HEADS_REGISTRY.register(CaffePooledWeakHeads)
    cfg = tiny_cfg(
        *("MODEL.META_ARCHITECTURE", model, "MODEL.BACKBONE.FREEZE_AT", 5),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
        *("MODEL.ROI_HEADS.NAME", "CaffePooledWeakHeads", "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
        *("MODEL.PAPER_VGG.CONV5_DILATION", dilation, "MODEL.PIXEL_STD", [60.0] * 3),
    )
    torch.manual_seed(0)
    built, x = build_model(cfg).train(), batch()
    for entry in x:
        boxes = Boxes(torch.tensor([*BOXES, [5.0, 30.0, 90.0, 95.0]]))
        fields = {"proposal_boxes": boxes, "objectness_logits": torch.ones(len(boxes))}
        entry["proposals"] = Instances(entry["instances"].image_size, **fields)
    with EventStorage():
        losses = built(x)
    assert set(losses) == {"loss_image"}
    losses["loss_image"].backward()
    assert built.roi_heads.box_head.fc6.weight.grad.any()
    # The pooler is that of our heads.
    stride = 16 // dilation
    ours = build_pooler("ROIPool", 7, (1 / stride,))
    maps, boxes = [torch.rand(1, 8, 9, 11)], [x[0]["instances"].gt_boxes]
    assert torch.equal(built.roi_heads.box_pooler(maps, boxes), ours(maps, boxes))
    # Maps of where the image supports a class: a gradient for pixels, through frozen layers.
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    built.backbone(pixels)["conv5"].sum().backward()
    assert pixels.grad.any()


def test_rows_for_new_classes(tiny_cfg, tmp_path: Path, capsys) -> None:
    """Scripts add them to the layers, and know no statistics: fold first, else it is an error."""
    torch.manual_seed(0)
    base = build_model(tiny_cfg())
    statistics = base.roi_heads.box_predictor.target_statistics

    def add_rows(name: str) -> str:
        content = torch.load(tmp_path / name)
        for layer, per_class in (("cls_score", 1), ("bbox_pred", 4)):
            for kind in ("weight", "bias"):
                key = f"roi_heads.box_predictor.{layer}.{kind}"
                old = content["model"][key][: 3 * per_class]
                rest = old.new_zeros(2 * per_class + (layer == "cls_score"), *old.shape[1:])
                content["model"][key] = torch.cat([old, rest])
        torch.save(content, tmp_path / f"novel_{name}")
        return str(tmp_path / f"novel_{name}")

    novel = build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 5))
    DetectionCheckpointer(base, str(tmp_path)).save("plain")
    AtomicCheckpointer(novel).load(add_rows("plain.pth"))
    statistics.set(torch.full((3, 4), 0.1), torch.full((3, 4), 0.2))
    DetectionCheckpointer(base, str(tmp_path)).save("statistics")
    path = add_rows("statistics.pth")
    with pytest.raises(UserError, match=r"box_predictor of the model cannot use.*--fold"):
        AtomicCheckpointer(novel).load(path)
    assert main(["weights", "convert", path, str(tmp_path / "x.pth"), "--fold"]) != 0
    assert "of 3 classes, but the box layer is of 5: fold them" in capsys.readouterr().err
    paths = [str(tmp_path / name) for name in ("statistics.pth", "folded.pth")]
    assert main(["weights", "convert", *paths, "--fold"]) == 0
    AtomicCheckpointer(novel).load(add_rows("folded.pth"))
    fold_target_statistics(base)
    layers = [m.roi_heads.box_predictor.bbox_pred.weight for m in (novel, base)]
    assert torch.equal(layers[0][:12], layers[1])


# ---- weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["caffemodel", "torchvision"])
def test_weights_in_another_trainer(
    page: dict[str, Any], tiny_cfg, tmp_path: Path, caplog, kind: str
) -> None:
    """What the page says of Detectron2's checkpointer, and both ways out."""
    cfg = tiny_cfg("MODEL.PAPER_VGG.CHANNELS", [4] * 5, "MODEL.ROI_BOX_HEAD.FC_DIM", 6)
    student, teacher, theirs = (build_model(cfg) for _ in range(3))
    cfg.MODEL.WEIGHTS = str(tmp_path / f"vgg16.{kind}")
    if kind == "caffemodel":
        write_caffemodel(cfg.MODEL.WEIGHTS, networks.vgg16())
        with pytest.raises(Exception, match=r"(?i)pickle|invalid load key"):
            DetectionCheckpointer(theirs).load(cfg.MODEL.WEIGHTS)
        page["start"](student, teacher, cfg)
    else:
        cfg.MODEL.WEIGHTS += ".pth"
        torch.save(networks.torchvision_vgg16(), cfg.MODEL.WEIGHTS)
        with caplog.at_level("INFO"):  # fvcore before May 2021 does not call it a warning
            DetectionCheckpointer(theirs).load(cfg.MODEL.WEIGHTS)
        assert "backbone.conv1.conv1_1" in caplog.text
        with pytest.raises(UserError, match="--layout"):
            page["start"](student, teacher, cfg)
    converted, layout = str(tmp_path / "vgg16.pth"), ["--layout", "torchvision"]
    options = layout if kind == "torchvision" else []
    assert main(["weights", "convert", cfg.MODEL.WEIGHTS, converted, *options]) == 0
    DetectionCheckpointer(theirs).load(converted)
    wanted = torch.from_numpy(networks.vgg16()["conv5_3"][0])
    loaded = [theirs] if kind == "torchvision" else [theirs, student, teacher]
    assert all(torch.equal(m.backbone.conv5.conv5_3.weight, wanted) for m in loaded)


# ---- the page -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page defines, its blocks run from top to bottom, with a narrower fc6."""
    text = PAGE.read_text().replace("FC_DIM = 1024", "FC_DIM = 64")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_page(page: dict[str, Any]) -> None:
    model, vgg, pair = page["model"], page["vgg"], page["pair"]
    assert type(model) is PaperRCNN and model.roi_heads.num_classes == 8
    assert type(vgg.roi_heads) is StandardROIHeads and vgg.roi_heads.box_head.output_size == 64
    assert set(page["student"]["model"]) == set(model.state_dict())
    assert len(pair["model"]) == 2 * len(model.state_dict())
    assert page["strides"] == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert type(page["from_lazy"].roi_heads) is CaffeROIHeads
    assert "modelTeacher.backbone.conv1.conv1_1.weight" in pair["model"]

    both = page["both"].roi_heads
    assert type(both.box_predictor) is page["FocalOutputLayers"]
    assert both.box_predictor.decode_in_image and not both.box_predictor.target_statistics.active
    assert isinstance(both.box_pooler, InclusiveROIPooler)
    pooled = page["pooled"].roi_heads
    assert not isinstance(pooled, CaffeROIHeads) and isinstance(both.box_pooler, InclusiveROIPooler)
    assert type(page["cosine"].box_predictor) is page["CosineOutputLayers"]
    scores, _ = page["cosine"].box_predictor(torch.randn(3, 64))
    assert scores.shape == (3, 9) and scores.abs().max() <= 20
    # DistributedDataParallel stops at a weight without a gradient.
    sum(x.sum() for x in page["cosine"].box_predictor(torch.randn(3, 64))).backward()
    assert all(p.grad is not None for p in page["cosine"].box_predictor.parameters())


@pytest.mark.parametrize("part", ["RPN", "ROI_HEADS"])
def test_keys_that_the_page_says_are_needed(page: dict[str, Any], part: str) -> None:
    cfg = page["stock"].clone()
    cfg.MODEL[part].IN_FEATURES = ["res4"]  # Detectron2's default
    with pytest.raises(KeyError, match="res4"):
        build_model(cfg)


def test_the_page_teaches(page: dict[str, Any]) -> None:
    teacher = page["teacher"].train()
    with EventStorage(), torch.no_grad():
        assert set(teacher(batch())) == LOSSES
        detections = teacher(batch(), branch="weak")
        assert len(detections) == 2 and detections[0].has("pred_boxes")
        both, weighted = page["both"].train(), page["weighted"].train()
        assert both(batch())["loss_cls"] > 0
        x = batch()[:1]
        for scores, is_zero in (([0.0, 0.0], True), ([0.5, 1.0], False)):
            x[0]["instances"].gt_scores = torch.tensor(scores)
            assert (weighted(x)["loss_box_reg"].item() == 0) == is_zero
        assert weighted(batch()[:1])["loss_box_reg"].item() > 0  # without scores
