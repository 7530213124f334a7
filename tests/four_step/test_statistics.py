"""Statistics of the head's box targets; several processes. Check E5 (docs/checks.md)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.structures import BoxMode
from detectron2.utils import comm

from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.statistics import broadcast_statistics, head_target_statistics
from frcnn_plugin.modeling import CaffeBox2BoxTransform
from frcnn_plugin.process import launch
from tests.four_step.statistics_records import close, record

RAW = CaffeBox2BoxTransform()


# ---- head ---------------------------------------------------------------------------------------

# E5: the deltas from the proposal to the object are (.2, .45, .182322, .405465); IoU .37.
E5_PROPOSAL, E5_OBJECT = [0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 13.0, 17.0]


def test_known_deltas() -> None:
    """Class 0: the object (0) and the proposal (E5). Deviation of {0, d} is d / 2.

    Class 1: only its own box. Far proposals do not count.
    """
    data = [
        record([(E5_OBJECT, 0)], [E5_PROPOSAL, [100.0, 50.0, 150.0, 90.0]]),
        record([([50.0, 50.0, 90.0, 90.0], 1)], [[0.0, 0.0, 20.0, 20.0]]),
    ]
    mean, std, count = head_target_statistics(data, 2, RAW, mirror=False, fg_iou=0.3)
    half = [0.1, 0.225, 0.091161, 0.202733]
    assert count.tolist() == [2, 1]
    assert close(mean, [half, [0] * 4]) and close(std, [half, [1] * 4])
    assert mean.dtype == std.dtype == torch.float32

    mean, std, count = head_target_statistics(data, 2, RAW, fg_iou=0.3)
    assert count.tolist() == [4, 2]
    # dx is 0, d, 0, -d: its deviation is d / sqrt(2).
    assert close(mean[0], [0, *half[1:]])
    assert close(std[0], [0.2 / math.sqrt(2), *half[1:]])


def test_units_are_those_of_the_transform() -> None:
    data = [record([(E5_OBJECT, 0)], [E5_PROPOSAL])]
    weighted = CaffeBox2BoxTransform((10, 10, 5, 5))
    mean, std, _ = head_target_statistics(data, 1, weighted, mirror=False, fg_iou=0.3)
    assert close(mean, [[1.0, 2.25, 0.455804, 1.013663]])
    assert close(std, [[1.0, 2.25, 0.455804, 1.013663]])


def test_foreground_is_at_least_half() -> None:
    """IoU exactly .5 counts, a little less does not."""
    box = [0.0, 0.0, 40.0, 40.0]
    at, below = [0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 40.0, 19.9]
    _, _, count = head_target_statistics([record([(box, 0)], [at, below])], 1, RAW, mirror=False)
    assert count.tolist() == [2]


def test_a_proposal_counts_for_the_object_it_overlaps_most() -> None:
    """One proposal over two objects, closer to the second: IoU .8 and .9."""
    data = [record([([0, 0, 80.0, 100.0], 0), ([0, 0, 90.0, 100.0], 1)], [[0, 0, 100.0, 100.0]])]
    mean, _, count = head_target_statistics(data, 2, RAW, mirror=False)
    assert count.tolist() == [1, 2]
    assert close(mean[1], [-0.05 / 2, 0, math.log(0.9) / 2, 0])


def test_crowds_and_boxes_without_area_do_not_count() -> None:
    data = [record([(E5_OBJECT, 0), (E5_OBJECT, 0), ([5.0, 5.0, 5.0, 9.0], 0)], [E5_PROPOSAL])]
    data[0]["annotations"][0]["iscrowd"] = 1
    _, _, count = head_target_statistics(data, 1, RAW, mirror=False, fg_iou=0.3)
    assert count.tolist() == [2]


def test_other_box_modes() -> None:
    xyxy = record([(E5_OBJECT, 0)], [E5_PROPOSAL])
    xywh = record([([1.0, 2.0, 12.0, 15.0], 0)], [[0.0, 0.0, 10.0, 10.0]])
    xywh["annotations"][0]["bbox_mode"] = BoxMode.XYWH_ABS
    xywh["proposal_bbox_mode"] = BoxMode.XYWH_ABS
    a, b = (head_target_statistics([x], 1, RAW, fg_iou=0.3) for x in (xyxy, xywh))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_class_agnostic() -> None:
    data = [record([(E5_OBJECT, 0), ([50.0, 50.0, 90.0, 90.0], 1)], [E5_PROPOSAL])]
    mean, std, count = head_target_statistics(
        data, 2, RAW, mirror=False, fg_iou=0.3, class_agnostic=True
    )
    assert mean.shape == std.shape == (1, 4) and count.tolist() == [3]
    assert close(mean, [[0.2 / 3, 0.45 / 3, 0.182322 / 3, 0.405465 / 3]])


def test_classes_without_targets(caplog: pytest.LogCaptureFixture) -> None:
    data = [record([(E5_OBJECT, 0), ([50.0, 50.0, 90.0, 90.0], 2)], [E5_PROPOSAL])]
    mean, std, _ = head_target_statistics(
        data, 3, RAW, fg_iou=0.3, class_names=["cat", "dog", "cow"]
    )
    assert mean[1:].abs().sum() == 0 and (std[1:] == 1).all()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("using 1: dog (0), cow (2)")


def test_images_without_objects_or_proposals() -> None:
    data = [record([], [E5_PROPOSAL]), record([(E5_OBJECT, 0)], []), record([], [])]
    _, _, count = head_target_statistics(data, 1, RAW, mirror=False)
    assert count.tolist() == [1]


def test_proposals_were_not_loaded() -> None:
    with pytest.raises(UserError, match=r"image a.jpg has no proposals"):
        head_target_statistics([record([(E5_OBJECT, 0)])], 1, RAW)


def test_class_out_of_range() -> None:
    with pytest.raises(UserError, match="object of class 5, but there are 3 classes"):
        head_target_statistics([record([(E5_OBJECT, 5)], [])], 3, RAW)


# ---- several processes --------------------------------------------------------------------------


def broadcast(folder: Path) -> None:
    """Each process would draw other numbers; only those of the main process may come out."""
    torch.manual_seed(comm.get_rank())
    mean, std = broadcast_statistics(lambda: (torch.rand(20, 4), torch.rand(20, 4)))

    def fail() -> None:
        raise UserError("no such thing")

    try:
        broadcast_statistics(fail)
        failure = ""
    except (UserError, RuntimeError) as e:
        failure = f"{type(e).__name__}: {e}"
    torch.save((mean, std, failure), folder / f"{comm.get_rank()}.pth")


def test_two_processes_get_the_same(tmp_path: Path) -> None:
    launch(broadcast, 2, args=(tmp_path,))
    (mean0, std0, failure0), (mean1, std1, failure1) = (
        torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)
    )
    torch.manual_seed(0)
    assert torch.equal(mean0, torch.rand(20, 4)) and torch.equal(mean0, mean1)
    assert torch.equal(std0, std1)
    assert failure0 == "UserError: no such thing"
    assert failure1.startswith("RuntimeError: the main process could not") and "such" in failure1


def test_one_process() -> None:
    assert broadcast_statistics(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        broadcast_statistics(lambda: 1 // 0)
