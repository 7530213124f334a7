"""Anchors. Literals: examples E1, E3, E3b, E3c (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import CaffeAnchorGenerator
from frcnn_plugin.modeling.box_ops import inside_image

# py-faster-rcnn's inclusive boxes; ours are these with x2, y2 + 1.
REFERENCE = [
    [-84, -40, 99, 55],
    [-176, -88, 191, 103],
    [-360, -184, 375, 199],
    [-56, -56, 71, 71],
    [-120, -120, 135, 135],
    [-248, -248, 263, 263],
    [-36, -80, 51, 95],
    [-80, -168, 95, 183],
    [-168, -344, 183, 359],
]
ONE = torch.tensor([0.0, 0.0, 1.0, 1.0])


def grid(height: int, width: int, stride: int = 16) -> torch.Tensor:
    generator = CaffeAnchorGenerator(
        sizes=[[128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[stride]
    )
    return generator([torch.zeros(1, 1, height, width)])[0].tensor


def test_cell_anchors_e1() -> None:
    assert torch.equal(grid(1, 1) - ONE, torch.tensor(REFERENCE, dtype=torch.float32))


def test_coco_anchors() -> None:
    generator = CaffeAnchorGenerator(
        sizes=[[64, 128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[16]
    )
    assert generator.num_anchors == [12]
    boxes = (generator([torch.zeros(1, 1, 1, 1)])[0].tensor - ONE)[::4]
    assert boxes.tolist() == [[-38, -16, 53, 31], [-24, -24, 39, 39], [-14, -36, 29, 51]]


@pytest.mark.parametrize(
    ("size", "grid_size", "total", "per_anchor"),
    [
        ((600, 1000), (38, 63), 21546, [1632, 1040, 238, 1650, 1034, 186, 1539, 832, 0]),
        ((600, 1000), (39, 64), 22464, [1632, 1040, 238, 1650, 1034, 186, 1539, 832, 0]),  # ZF
        ((600, 800), (38, 50), 17100, [1216, 728, 56, 1260, 748, 108, 1188, 640, 0]),
    ],
)
def test_inside_counts_e3(
    size: tuple[int, int], grid_size: tuple[int, int], total: int, per_anchor: list[int]
) -> None:
    anchors = grid(*grid_size)
    assert len(anchors) == total
    inside = inside_image(anchors, size, border=0)
    assert inside.view(-1, 9).sum(0).tolist() == per_anchor
    assert inside_image(anchors, size, border=-1).all()


def test_rows_of_anchors_e3b_e3c() -> None:
    anchors = grid(38, 63)
    inside = inside_image(anchors, (600, 1000), 0)
    assert (anchors[589] - ONE).tolist() == [-88, -104, 167, 151]  # h 1, w 2, a 4
    assert not inside[589]
    assert int(inside.nonzero()[0]) == 1755
    assert (anchors[1755] - ONE).tolist() == [12, 8, 195, 103]


def test_centre_does_not_depend_on_the_stride() -> None:
    assert torch.equal(grid(1, 1, stride=8), grid(1, 1, stride=16))


def test_by_registry_name_with_detectron2s_defaults(tiny_cfg) -> None:
    cfg = tiny_cfg("MODEL.ANCHOR_GENERATOR.SIZES", [[128, 256, 512]])
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=8, stride=16)])
    assert isinstance(generator, CaffeAnchorGenerator)
    assert torch.equal(generator([torch.zeros(1, 1, 2, 3)])[0].tensor, grid(2, 3))


def test_offset_is_refused(tiny_cfg) -> None:
    cfg = tiny_cfg("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
    with pytest.raises(UserError, match=r"OFFSET is 0.5.*set MODEL.ANCHOR_GENERATOR.OFFSET 0.0"):
        build_anchor_generator(cfg, [ShapeSpec(channels=8, stride=16)])
