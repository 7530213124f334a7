"""What the tests of the predictor share; its fixtures are in conftest.py."""

from __future__ import annotations

import torch
from detectron2.structures import Instances

CLASSES = ("cat", "dog", "bird")
BOXES = [[10.0, 20.0, 90.5, 70.0], [0.0, 0.0, 150.0, 100.0], [40.0, 30.0, 41.0, 33.5]]
SMALL = ("INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 192, "MODEL.RPN.MIN_SIZE_IMAGE", 4.0)


def assert_same(a: Instances, b: Instances, tolerance: float = 1e-5) -> None:
    assert a.image_size == b.image_size
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
    assert torch.equal(a.pred_classes, b.pred_classes)
