import numpy as np
import pytest

from frcnn_plugin.evaluation.average_precision import (
    average_precision,
    best_overlaps,
    match_detections,
    paired_iou,
    precision_recall,
)


def curve(marks, num_gt):
    """Marks in order of score: t = true positive, f = false positive, d = on a difficult object."""
    true_positive = np.array([mark == "t" for mark in marks], dtype=bool)
    ignored = np.array([mark == "d" for mark in marks], dtype=bool)
    return precision_recall(true_positive, ignored, num_gt)


def both(marks, num_gt):
    recall, precision = curve(marks, num_gt)
    return [average_precision(recall, precision, metric) for metric in ("11point", "area")]


def test_e19_ranked_list():
    # Example E19 (docs/worked_examples.md): TP, FP, TP, TP with 3 gt.
    recall, precision = curve("tftt", 3)
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert precision == pytest.approx([1, 0.5, 2 / 3, 0.75])
    # By hand: precision 1 up to recall 1/3 (t = 0 ... .3), .75 beyond (t = .4 ... 1).
    assert both("tftt", 3) == pytest.approx([(4 * 1 + 7 * 0.75) / 11, (1 + 2 * 0.75) / 3])
    assert both("tftt", 3) == pytest.approx([0.840909, 0.833333], abs=1e-6)


def test_e19d_difficult_counts_neither_way():
    # Example E19d: TP, difficult, FP, TP with 2 gt.
    assert both("tdft", 2) == pytest.approx([0.848485, 0.833333], abs=1e-6)
    # The same without the difficult one.
    assert both("tft", 2) == pytest.approx(both("tdft", 2))


def test_e19e_and_e19b_float_trap():
    # Examples E19e, E19b: recall of exactly 3/10 does not reach numpy's 0.30000000000000004.
    eleven_point, area = both("ttt", 10)
    assert eleven_point == pytest.approx(3 / 11)  # 4/11 without the trap
    assert area == pytest.approx(0.3)
    # Nor do 6/10 and 7/10 reach t[6] and t[7]; 5/10 and 8/10 do reach theirs.
    points = [round(both("t" * n, 10)[0] * 11) for n in (5, 6, 7, 8)]
    assert points == [6, 6, 7, 9]


def test_simple_curves():
    assert both("", 3) == [0.0, 0.0]
    assert both("ff", 3) == [0.0, 0.0]
    assert both("t", 1) == pytest.approx([1.0, 1.0])
    assert both("ft", 1) == pytest.approx([0.5, 0.5])
    # A first detection on a difficult object: precision 0 there, not a division by zero.
    recall, precision = curve("dt", 1)
    assert (recall.tolist(), precision.tolist()) == ([0, 1], [0, 1])


def test_same_as_the_definition_on_random_curves():
    rng = np.random.default_rng(0)
    for _ in range(200):
        marks = rng.choice(list("tffd"), size=rng.integers(1, 30))
        num_gt = int((marks == "t").sum() + rng.integers(1, 4))
        recall, precision = curve(marks, num_gt)
        points = [
            max(precision[recall >= t], default=0.0) for t in np.arange(0.0, 1.1, 0.1)
        ]  # the definition, literally
        assert average_precision(recall, precision, "11point") == pytest.approx(np.mean(points))
        # Area by steps of recall.
        area, last = 0.0, 0.0
        for r in np.unique(recall):
            area, last = area + (r - last) * precision[recall >= r].max(), r
        assert average_precision(recall, precision, "area") == pytest.approx(area)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric must be one of"):
        average_precision(np.zeros(1), np.zeros(1), "2007")  # type: ignore[arg-type]


def test_iou_equals_caffes_plus_one_arithmetic():
    # Inclusive [0,0,9,9] and [5,5,14,14]: 25 / (100 + 100 - 25); continuous: x2, y2 plus 1.
    iou = paired_iou(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 5, 15, 15]]))
    assert iou == pytest.approx([25 / 175])
    assert paired_iou(np.zeros((1, 4)), np.zeros((1, 4))) == [0.0]


def match(det, gt, ignored=None, rule=">=", thresholds=(0.5,), det_images=None, gt_images=None):
    true_positive, on_ignored = match_detections(
        np.array(det, dtype=float).reshape(-1, 4),
        np.array(det_images or [0] * len(det), dtype=np.int64),
        np.array(gt, dtype=float).reshape(-1, 4),
        np.array(gt_images or [0] * len(gt), dtype=np.int64),
        np.array(ignored or [False] * len(gt), dtype=bool),
        np.array(thresholds),
        rule,
    )
    return true_positive.tolist(), on_ignored.tolist()


def test_e19c_threshold_rule():
    # Example E19c: inclusive det [0,0,9,9], gt [0,0,9,4], IoU exactly .5.
    det, gt = [[0, 0, 10, 10]], [[0, 0, 10, 5]]
    assert match(det, gt, rule=">=") == ([[True]], [[False]])  # devkit
    assert match(det, gt, rule=">") == ([[False]], [[False]])  # py-faster-rcnn


def test_second_detection_of_an_object_is_false():
    det, gt = [[0, 0, 10, 9], [0, 0, 10, 10]], [[0, 0, 10, 10]]
    assert match(det, gt)[0] == [[True, False]]


def test_detection_claims_its_best_object_only():
    # Both detections overlap the first object most; the second is not passed on to the other one,
    # which it overlaps by .6 as well: 10x10 against a 10x10 shifted by 2.5 is 7.5/12.5.
    gt = [[0, 0, 10, 10], [2.5, 0, 12.5, 10]]
    assert match([[0, 0, 10, 10], [0.5, 0, 10.5, 10]], gt)[0] == [[True, False]]


def test_difficult_object_takes_part_in_the_argmax():
    gt, det = [[0, 0, 10, 10], [1, 0, 11, 10]], [[0, 0, 10, 10]]
    assert match(det, gt, ignored=[True, False]) == ([[False]], [[True]])
    # Twice on a difficult one: ignored both times.
    assert match(det * 2, gt[:1], ignored=[True]) == ([[False, False]], [[True, True]])


def test_thresholds_are_matched_separately():
    # IoU .6 for the better-scored one, 1 for the other: at .75 only the second can claim.
    det, gt = [[0, 0, 10, 6], [0, 0, 10, 10]], [[0, 0, 10, 10]]
    assert match(det, gt, thresholds=(0.5, 0.75))[0] == [[True, False], [False, True]]


def test_objects_of_other_images_do_not_count():
    box = [0, 0, 10, 10]
    assert match([box, box], [box], det_images=[3, 5], gt_images=[5])[0] == [[False, True]]


def test_nothing_to_match():
    assert match([], [[0, 0, 1, 1]]) == ([[]], [[]])
    assert match([[0, 0, 1, 1]], []) == ([[False]], [[False]])


def test_best_overlaps_against_a_loop():
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 20, (300, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 10, (300, 2))], axis=1).astype(float)
    images = rng.integers(0, 12, 300)
    det, gt, det_images, gt_images = boxes[:200], boxes[200:], images[:200], images[200:]
    best_gt, best_iou = best_overlaps(det, det_images, gt, gt_images)
    for index in range(200):
        mine = np.flatnonzero(gt_images == det_images[index])
        if len(mine) == 0:
            assert best_gt[index] == -1
            continue
        ious = paired_iou(np.repeat(det[index : index + 1], len(mine), axis=0), gt[mine])
        assert best_gt[index] == mine[np.argmax(ious)]  # the first of equals
        assert best_iou[index] == ious.max()
