"""Features of several scales of an image: which scale a RoI is pooled at, and from which cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from frcnn_plugin.config import get_config_file, plugin_cfg
from frcnn_plugin.config_files import load_config_file
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PyramidPooler, box_features, build_pooler
from tests.conftest import make_input

KEY = "MODEL.PAPER_RCNN.PYRAMID"
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]


def row_cfg() -> Any:
    cfg = plugin_cfg()
    load_config_file(cfg, get_config_file("ablations/zf_dense_windows_pyramid.yaml"))
    return cfg


@pytest.mark.parametrize(
    ("side", "level"),
    [
        ((448, 448), 0),  # 224 x 224 at 0.5
        ((224, 224), 1),
        ((112, 112), 2),
        ((1000, 50), 1),  # the area counts
        # Between 1 and 2 the area is 2 * 224^2 / (1 + 4) = 20070.4; between 0.5 and 1, 80281.6.
        ((141, 142), 2),  # 20022
        ((142, 142), 1),  # 20164
        ((283, 283), 1),  # 80089
        ((284, 283), 0),  # 80372
        ((0, 30), 0),  # equally far from all
    ],
)
def test_scale_of_a_roi(side: tuple[int, int], level: int) -> None:
    box = torch.tensor([[7.0, 9, 7 + side[0], 9 + side[1]]])
    assert PyramidPooler(torch.nn.Identity(), [0.5, 1, 2]).levels(box).tolist() == [level]


def test_scales_of_the_papers_windows() -> None:
    """Of 128 pixels: 65536 at 1200 is nearest to 50176; of 256: 41943 at 480; 512 is too large."""
    factors = row_cfg().MODEL.PAPER_RCNN.PYRAMID
    assert [round(600 * factor) for factor in factors] == [480, 576, 688, 864, 1200]
    windows = torch.tensor([[0.0, 0, side, side] for side in (128, 256, 512)])
    assert PyramidPooler(torch.nn.Identity(), factors).levels(windows).tolist() == [4, 0, 0]


def ramp(height: int, width: int, level: int) -> torch.Tensor:
    """Images whose cells are numbered row by row, in the second from 1000 on."""
    cells = torch.arange(float(height * width)).view(1, 1, height, width) + 10000 * level
    return torch.cat([cells, cells + 1000, cells])


def test_cells_of_a_roi() -> None:
    """The last cell is the maximum. At 0.5, 448 is 224, its inclusive corner 223, cell 14."""
    maps = [ramp(16, 16, 0), ramp(18, 18, 1), ramp(8, 8, 2)]
    boxes = [
        # 16..48 at 2 is 32..96, its inclusive corner 95 is in cell 6.
        Boxes(torch.tensor([[16.0, 16, 48, 48], [0, 0, 448, 448]])),
        # The inclusive corner 255 is in cell 16, 223 in cell 14.
        Boxes(torch.tensor([[32.0, 0, 256, 224], [16, 16, 48, 48]])),
        Boxes(torch.zeros(0, 4)),
    ]
    pooler = PyramidPooler(build_pooler("ROIPool", 1, [1 / 16]), [0.5, 1, 2])
    pooled = pooler(maps, boxes)
    assert pooled.flatten().tolist() == [
        20000 + 6 * 8 + 6,
        14 * 16 + 14,
        10000 + 1000 + 14 * 18 + 16,
        20000 + 1000 + 6 * 8 + 6,
    ]
    assert pooler(maps, boxes[2:] * 3).shape == (0, 1, 1, 1)


@pytest.mark.parametrize("heads", ["CaffeROIHeads", "CaffeCascadeROIHeads"])
@pytest.mark.parametrize("backbone", ["VGG16", "ZF"])
def test_one_scale_is_the_plain_model(
    tiny_cfg: Callable[..., Any], backbone: str, heads: str
) -> None:
    """To the bit, in training and at test."""
    batch = [make_input(97, 131, BOXES), make_input(131, 160, [], seed=1)]
    cascade = heads == "CaffeCascadeROIHeads"
    results = []
    for factors in ([], [1.0]):
        torch.manual_seed(0)
        opts = ("MODEL.BACKBONE.NAME", backbone, "MODEL.ROI_HEADS.NAME", heads)
        agnostic = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", cascade)
        model = build_model(tiny_cfg(*opts, *agnostic, KEY, factors)).train()
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        gradients = [p.grad for p in model.parameters()]
        model.eval()
        with torch.no_grad():
            found = [x["instances"] for x in model(batch)]
        fields = [f for x in found for f in (x.pred_boxes.tensor, x.scores, x.pred_classes)]
        results.append([*losses.values(), *gradients, *fields])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_features_of_odd_sizes(tiny_cfg: Callable[..., Any]) -> None:
    """Half of 97 x 131 is 48 x 66, of 131 x 160 it is 66 x 80; they are padded as a batch is."""
    model = build_model(tiny_cfg(KEY, [0.5, 1.0])).eval()
    batch = [make_input(97, 131, []), make_input(131, 160, [], seed=1)]
    with torch.no_grad():
        images, features = model.features(batch)
        sizes = [(48, 66), (66, 80)]
        halves = [
            F.interpolate(x["image"][None], size, mode="bilinear", align_corners=False)[0]
            for x, size in zip(batch, sizes, strict=True)
        ]
        expected = model.backbone(model.preprocess_image([{"image": x} for x in halves]).tensor)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "conv5": (2, 8, 9, 10),
        "conv5@0.5": (2, 8, 5, 5),
        "conv5@1": (2, 8, 9, 10),
    }
    assert torch.equal(features["conv5@0.5"], expected["conv5"])
    assert features["conv5@1"] is features["conv5"]
    assert list(images.image_sizes) == [(97, 131), (131, 160)]
    model.set_phase("rpn")  # no RoI is pooled
    assert set(model.features(batch)[1]) == {"conv5"}


def test_an_object_twice_as_large_has_the_same_features(tiny_cfg: Callable[..., Any]) -> None:
    """Whole pixels of 2 x 2 are halved to what they were made of."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg(KEY, [1.0, 0.5])).eval()
    small = {"image": make_input(240, 260, [])["image"]}
    large = {"image": small["image"].repeat_interleave(2, 1).repeat_interleave(2, 2)}
    box = torch.tensor([[10.0, 3, 234, 211]])
    with torch.no_grad():
        vectors = [
            box_features(model.roi_heads, model.features([x])[1], [Boxes(box * factor)])
            for x, factor in ((small, 1), (large, 2))
        ]
    assert vectors[0].abs().max() > 0
    torch.testing.assert_close(*vectors)


@pytest.mark.parametrize("generator", ["PaperRPN", "DenseWindows"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_training_and_test(tiny_cfg: Callable[..., Any], generator: str, one_by_one: bool) -> None:
    """Two sizes, one image without objects; the backbone learns from all scales."""
    torch.manual_seed(0)
    opts = ("MODEL.PROPOSAL_GENERATOR.NAME", generator, KEY, [0.5, 1.0, 3.0])
    model = build_model(tiny_cfg(*opts, "MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one)).train()
    batch = [make_input(97, 131, BOXES), make_input(131, 160, [], seed=1)]
    with EventStorage():
        losses = model(batch)
    (losses["loss_cls"] + losses["loss_box_reg"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    model.eval()
    with torch.no_grad():
        assert [x["instances"].image_size for x in model(batch)] == [(97, 131), (131, 160)]
        images, features = model.features(batch)
        none = Instances((1, 1), proposal_boxes=Boxes(torch.zeros(0, 4)))
        none.objectness_logits = torch.zeros(0)
        assert [len(x) for x in model.detect(images, features, [none, none])] == [0, 0]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
    ],
)
def test_parts_that_do_not_know_it(tiny_cfg: Callable[..., Any], key: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"PYRAMID is \[0.5\], which {key} {name} does not know"):
        build_model(tiny_cfg(key, name, KEY, [0.5]))


def test_tracing(tiny_cfg: Callable[..., Any]) -> None:
    model = build_model(tiny_cfg(KEY, [0.5])).eval()
    item = [{"image": make_input(97, 131, [])["image"]}]
    adapter = TracingAdapter(model, item, lambda model, x: model.inference(x, do_postprocess=False))
    with pytest.raises(UserError, match="PYRAMID cannot be traced"):
        torch.jit.trace(adapter.eval(), adapter.flattened_inputs, check_trace=False)
