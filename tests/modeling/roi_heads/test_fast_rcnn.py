"""Decoding of detections. Literals derived by hand, or checks E5b, E18 (docs/checks.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from frcnn_plugin.modeling import CaffeBox2BoxTransform, PaperFastRCNNOutputLayers, ScaledImageSize


def make_predictor(**kwargs: object) -> PaperFastRCNNOutputLayers:
    options = {
        "box2box_transform": CaffeBox2BoxTransform((10, 10, 5, 5)),
        "num_classes": 2,
        "test_nms_thresh": 0.3,
        "test_score_thresh": 0.05,
    }
    return PaperFastRCNNOutputLayers(ShapeSpec(channels=4), **{**options, **kwargs})


def proposals(boxes: list[list[float]], scale: float) -> list[Instances]:
    result = Instances(ScaledImageSize((600, 800), scale))
    result.proposal_boxes = Boxes(torch.tensor(boxes))
    return [result]


def decode(predictor: PaperFastRCNNOutputLayers, box: list[float], scale: float) -> list[float]:
    predictions = (torch.zeros(1, 3), torch.zeros(1, 8))
    (boxes,) = predictor.predict_boxes(predictions, proposals([box], scale))
    assert boxes.shape == (1, 8)
    assert boxes[0, :4].tolist() == boxes[0, 4:].tolist()
    return boxes[0, :4].tolist()


def test_zero_deltas_return_the_proposal_e5b() -> None:
    assert decode(make_predictor(), [16, 16, 32, 48], 1.6) == [16, 16, 32, 48]


def test_growth_is_one_original_pixel() -> None:
    grown = decode(make_predictor(decode_growth=1.0), [16, 16, 32, 48], 1.6)
    assert grown == pytest.approx([16, 16, 33.6, 49.6])


def test_decode_in_image_divides_inclusive_corners() -> None:
    """By hand, scale 2, no growth: inclusive (16, 16, 31, 47) / 2 = (8, 8, 15.5, 23.5), plus the
    one pixel of the continuous form, times 2: (16, 16, 33, 49)."""
    boxes = decode(make_predictor(decode_in_image=True), [16, 16, 32, 48], 2.0)
    assert boxes == pytest.approx([16, 16, 33, 49])


def test_py_faster_rcnn_decodes_two_original_pixels_off_at_scale_2() -> None:
    """Zero deltas: py gives inclusive (8, 8, 16.5, 24.5) in the image, so (.., 17.5, 25.5) * 2."""
    predictor = make_predictor(decode_in_image=True, decode_growth=1.0)
    assert decode(predictor, [16, 16, 32, 48], 2.0) == pytest.approx([16, 16, 35, 51])


def test_fixed_deviations_e18() -> None:
    """Weight .5, bias .3 with deviation .2 mean a delta of .1 x + .06 (mean 0): here w = .5 x."""
    predictor = make_predictor(box2box_transform=CaffeBox2BoxTransform((5, 5, 5, 5)))
    deltas = torch.zeros(1, 8)
    deltas[0, 0] = 0.5 * 1.0 + 0.3
    (boxes,) = predictor.predict_boxes(
        (torch.zeros(1, 3), deltas), proposals([[0.0, 0.0, 100.0, 100.0]], 1.0)
    )
    assert boxes[0, 0].item() == pytest.approx(100 * 0.16, abs=1e-4)


def test_inference_uses_strict_float32_nms_e14b() -> None:
    """Two boxes of IoU exactly .3 both stay; a score of exactly .05 does not."""
    predictor = make_predictor()
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0], [50.0, 50.0, 60.0, 60.0]]
    logits = torch.tensor([[0.9, 0, 0.1], [0.8, 0, 0.2], [0.05, 0, 0.95]]).log()
    (result,), _ = predictor.inference((logits, torch.zeros(3, 8)), proposals(boxes, 1.0))
    assert result.scores.tolist() == pytest.approx([0.9, 0.8])


def test_boxes_outside_the_image_stay_one_pixel_wide() -> None:
    """Image 60x80, scale 10: proposals around x 795..799, one pixel right of it and far left."""
    predictor = make_predictor(decode_in_image=True, box2box_transform=CaffeBox2BoxTransform())
    deltas = torch.tensor([[9.0, 0, 0, 0] * 2, [-99.0, 0, 0, 0] * 2])
    (given,) = proposals([[700.0, 100.0, 800.0, 200.0]] * 2, 10.0)
    (boxes,) = predictor.predict_boxes((torch.zeros(2, 3), deltas), [given])
    # By hand: y from (100, 199) / 10 = 10, 19.9, one pixel more: 20.9, times 10.
    assert boxes[0, :4].tolist() == pytest.approx([790, 100, 800, 209])
    assert boxes[1, :4].tolist() == pytest.approx([0, 100, 10, 209])


def test_boxes_come_back_by_the_ratios_of_the_sides() -> None:
    """py's scale of 333x500 is 600 / 333; the host divides x by 901 / 500."""
    given = Instances(ScaledImageSize((600, 901), 600 / 333, (333, 500)))
    given.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 901.0, 600.0]]))
    predictor = make_predictor(decode_in_image=True)
    (boxes,) = predictor.predict_boxes((torch.zeros(1, 3), torch.zeros(1, 8)), [given])
    image = boxes[0, :4] / torch.tensor([901 / 500, 600 / 333] * 2)
    # By hand: inclusive (0, 0, 900, 599) / 1.8018 = (.., 499.5, 332.445), one more, clipped to 500.
    assert image.tolist() == pytest.approx([0, 0, 500, 333])
    given.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 801.0, 501.0]]))
    (boxes,) = predictor.predict_boxes((torch.zeros(1, 3), torch.zeros(1, 8)), [given])
    image = boxes[0, :4] / torch.tensor([901 / 500, 600 / 333] * 2)
    assert image.tolist() == pytest.approx([0, 0, 445, 278.5], abs=1e-4)


def test_no_proposals() -> None:
    empty = Instances(ScaledImageSize((600, 800), 1.6))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    predictor = make_predictor(decode_in_image=True, decode_growth=1.0)
    (boxes,) = predictor.predict_boxes((torch.zeros(0, 3), torch.zeros(0, 8)), [empty])
    assert boxes.shape == (0, 8)
