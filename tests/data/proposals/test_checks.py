"""Whether proposals fit their data set."""

import logging

import numpy as np
import pytest

from frcnn_plugin.data.proposals.checks import check_proposals, validate_proposals
from frcnn_plugin.data.proposals.files import Proposals
from frcnn_plugin.errors import UserError

from .made_proposals import BOXES, IDS, dicts, save


def test_check_gives_the_order_of_the_data_set(tmp_path, caplog):
    path = save(tmp_path / "p.pkl")
    with caplog.at_level(logging.INFO):
        checked = check_proposals(path, dicts(IDS[::-1]), "my_set")
    assert checked.ids == IDS[::-1]
    assert checked.boxes[2].tolist() == BOXES[0]
    assert "p.pkl: 3 images of my_set, 1.0 proposals per image (0 to 2)" in caplog.text


def test_number_ids_and_sizes_may_be_absent(tmp_path):
    path = save(tmp_path / "p.pkl", [17], [[[0, 0, 9999, 9]]], [[0]])
    assert check_proposals(path, [{"image_id": 17}], "coco").ids == ["17"]


def test_file_of_another_data_set(tmp_path):
    """The message that a user with swapped files sees."""
    ids = [f"{i:06d}" for i in range(1, 4953)]
    path = save(tmp_path / "X.pkl", ids, [np.zeros((0, 4))] * 4952, [[]] * 4952)
    with pytest.raises(UserError) as caught:
        check_proposals(path, dicts(["5", "7"]), "voc07_trainval")
    assert str(caught.value) == (
        f"proposal file {path} has no entry for image 5 of voc07_trainval (it covers 4952 images, "
        f"0 of them of this data set; was it made for voc07_test?)"
    )


def test_missing_image(tmp_path):
    path = save(tmp_path / "p.pkl")
    with pytest.raises(UserError) as caught:
        check_proposals(path, dicts([*IDS, "000032"]), "my_set")
    assert "no entry for image 000032 of my_set (it covers 3 images, 3 of them" in str(caught.value)
    assert "was it made for" not in str(caught.value)


def test_extra_image(tmp_path):
    path = save(tmp_path / "p.pkl")
    with pytest.raises(UserError, match=r"for 2 images that are not in my_set \(first: 000007"):
        check_proposals(path, dicts(IDS[:1]), "my_set")


def test_repeated_image(tmp_path):
    path = save(tmp_path / "p.pkl", ["a", "b", "b"])
    with pytest.raises(UserError, match="more than one entry for image b"):
        check_proposals(path, dicts(["a", "b"]), "my_set")


def check_one(box, logit=0.0):
    made = Proposals(
        ["a"],
        [np.array([[0, 0, 10, 10], box], dtype=np.float32)],
        [np.array([1, logit], dtype=np.float32)],
    )
    validate_proposals(made, dicts(["a"]), "my_set", "proposal file X")


@pytest.mark.parametrize("box", [[0, 0, 500, 375], [-1, -1, 501, 376], [0, 0, 0.5, 0.5]])
def test_boxes_up_to_a_pixel_outside_are_fine(box):
    check_one(box)


@pytest.mark.parametrize(
    ("box", "logit", "message"),
    [
        ([0, 0, np.nan, 10], 0, "box 1 is not finite"),
        ([0, 0, np.inf, 10], 0, "box 1 is not finite"),
        ([0, 0, 10, 10], np.nan, "logit 1 is not finite; the weights diverged"),
        ([0, 5, 10, 5], 0, r"box 1 \[0.0, 5.0, 10.0, 5.0\] has no area"),
        ([20, 0, 10, 10], 0, "box 1 .* has no area; boxes are x1, y1, x2, y2"),
        # 600 / 375 = 1.6 times too large: network pixels
        ([0, 0, 800, 600], 0, "lies 300.0 px outside the image of 500 x 375; boxes must be in pix"),
        ([0, 0, 375, 500], 0, "lies 125.0 px outside"),
        ([-1.5, 0, 5, 5], 0, "lies 1.5 px outside"),
    ],
)
def test_impossible_boxes(box, logit, message):
    with pytest.raises(UserError, match=f"^proposal file X, image a of my_set: .*{message}"):
        check_one(box, logit)


def test_no_box_at_all(tmp_path):
    path = save(tmp_path / "p.pkl", ["a"], [[]], [[]])
    with pytest.raises(UserError, match="has no box in any of its 1 images"):
        check_proposals(path, dicts(["a"]), "my_set")
