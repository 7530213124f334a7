"""What a detection was made from, and features of given boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.roi_heads.roi_features import detect_with_features
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.predict.saved_detectors import BOXES, assert_same
from tests.random_detector import squares


def test_features_say_what_a_detection_was_made_from(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    result = predictor(image, features=True)
    assert_same(result, predictor(image))
    number = len(result)
    assert result.fc7.shape == (number, 16) and result.scores_all.shape == (number, 4)
    # Classifying the features again gives the scores, and the detection's score is one of them.
    again = predictor.model.roi_heads.box_predictor.cls_score(result.fc7).softmax(dim=1)
    torch.testing.assert_close(again, result.scores_all, rtol=0, atol=1e-6)
    own = result.scores_all.gather(1, result.pred_classes[:, None]).squeeze(1)
    torch.testing.assert_close(own, result.scores, rtol=0, atol=1e-6)
    # The index is a row of the proposals.
    proposals = predictor.propose([image])[0]
    index = result.proposal_index
    assert index.dtype == torch.int64 and len(set(index.tolist())) > 1
    torch.testing.assert_close(
        result.proposal_boxes.tensor, proposals.proposal_boxes.tensor[index], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(result.objectness, proposals.objectness[index], rtol=0, atol=1e-6)
    assert (proposals.objectness.diff() <= 0).all()
    assert 0 <= proposals.objectness.min() < 0.1 and 0.9 < proposals.objectness.max() <= 1


@pytest.mark.parametrize("pooler", ["ROIPool", "ROIAlignV2"])
@pytest.mark.parametrize("size", [(100, 150), (97, 61), (333, 500)])
def test_own_boxes_have_the_features_of_equal_proposals(
    save_detector: Callable, pooler: str, size: tuple[int, int]
) -> None:
    """1e-4 of the largest feature: boxes travel to original pixels and back."""
    predictor = FasterRCNNPredictor(
        save_detector("MODEL.ROI_BOX_HEAD.POOLER_TYPE", pooler), device="cpu"
    )
    image = squares(*size)
    detected = predictor(image, features=True)
    given = predictor.extract(image, detected.proposal_boxes.tensor)
    tolerance = 1e-4 * float(detected.fc7.max())
    torch.testing.assert_close(given.fc7, detected.fc7, rtol=0, atol=tolerance)
    torch.testing.assert_close(given.scores_all, detected.scores_all, rtol=0, atol=1e-4)
    assert torch.equal(given.proposal_boxes.tensor, detected.proposal_boxes.tensor)


def test_extract_keeps_order_and_number(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    result = predictor.extract(image, BOXES)
    assert result.image_size == (100, 150)
    assert result.proposal_boxes.tensor.tolist() == BOXES
    turned = predictor.extract(image, np.array(BOXES[::-1] * 2))
    expected = result.fc7.flip(0).repeat(2, 1)
    torch.testing.assert_close(turned.fc7, expected, rtol=0, atol=1e-5 * float(expected.max()))
    assert (result.fc7[0] - result.fc7[1]).abs().max() > 1e-3
    torch.testing.assert_close(result.scores_all.sum(dim=1), torch.ones(3))
    empty = predictor.extract(image, [])
    assert empty.fc7.shape == (0, 16) and empty.scores_all.shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([*BOXES, [5, 5, 5, 9]], r"box 3, \[5.0, 5.0, 5.0, 9.0\], has no area: boxes are x1 y1"),
        ([[1, 9, 5, 2]], r"box 0, .* has no area"),
        ([[0, 0, 5, 5], [0, 0, float("nan"), 5]], r"box 1, .* has no area"),
        ([[150, 0, 160, 9]], r"box 0, .* lies outside the image, which is 150 x 100 pixels"),
        ([1, 2, 3, 4], "boxes must be rows of four numbers, x1 y1 x2 y2"),
        ([["a", 2, 3, 4]], "boxes must be rows of four numbers, x1 y1 x2 y2"),
    ],
)
def test_wrong_boxes(predictor: FasterRCNNPredictor, boxes: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.extract(squares(100, 150), boxes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_what_the_cpu_gives(save_detector: Callable) -> None:
    path, image = save_detector(), squares(100, 150)
    cpu = FasterRCNNPredictor(path, device="cpu").extract(image, BOXES)
    cuda = FasterRCNNPredictor(path, device="cuda")
    assert cuda(image, features=True).fc7.device.type == "cpu"
    result = cuda.extract(image, BOXES)
    torch.testing.assert_close(result.fc7, cpu.fc7, rtol=1e-2, atol=1e-2)


def test_autocast_and_compiled_parts(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    full = predictor.extract(image, BOXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = predictor.extract(image, BOXES)
        assert len(predictor(image, features=True)) > 0
    assert half.fc7.dtype == half.scores_all.dtype == torch.float32
    assert not torch.equal(half.fc7, full.fc7)  # bfloat16 has 8 bits
    torch.testing.assert_close(half.fc7, full.fc7, rtol=0, atol=0.05 * float(full.fc7.max()))
    predictor.model.roi_heads.box_head = torch.compile(
        predictor.model.roi_heads.box_head, backend="eager"
    )
    torch.testing.assert_close(predictor.extract(image, BOXES).fc7, full.fc7)


def test_index_counts_proposals_that_are_not_finite(predictor: FasterRCNNPredictor) -> None:
    """Detectron2 drops them and renumbers the rest."""
    heads = predictor.model.roi_heads
    maps = {"conv5": torch.rand(1, 8, 9, 12)}
    proposals = Instances((128, 192), proposal_boxes=Boxes(torch.tensor(BOXES)))
    proposals.objectness_logits = torch.zeros(3)
    decode = heads.box_predictor.predict_boxes

    def first_is_infinite(*args: object) -> list[torch.Tensor]:
        boxes = decode(*args)
        boxes[0][0] = float("inf")
        return boxes

    heads.box_predictor.predict_boxes = first_is_infinite
    with torch.no_grad():
        [result] = detect_with_features(heads, maps, [proposals])
    assert set(result.proposal_index.tolist()) == {1, 2}
    own = result.scores_all.gather(1, result.pred_classes[:, None]).squeeze(1)
    torch.testing.assert_close(own, result.scores)
