"""Proposal files: written whole, read without running anything, checked against their data set."""

import logging
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from frcnn_plugin.data.proposals.files import (
    Proposals,
    check_proposals,
    load_proposals,
    save_proposals,
    validate_proposals,
)
from frcnn_plugin.errors import UserError
from tests.damage import Calls, check_reader

IDS = ["000005", "000007", "000009"]
BOXES = [[[0, 0, 500, 375], [10.5, 20, 30, 40]], [], [[1, 2, 3, 4]]]
LOGITS = [[1.5, -2], [], [0]]


def dicts(ids=IDS, width=500, height=375):
    return [{"image_id": i, "width": width, "height": height, "file_name": i} for i in ids]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "p.pkl"


def save(path, ids=IDS, boxes=BOXES, logits=LOGITS):
    save_proposals(path, ids, boxes, logits)
    return path


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def content(**changes):
    arrays = [np.array(b, dtype=np.float32).reshape(-1, 4) for b in BOXES]
    logits = [np.array(x, dtype=np.float32) for x in LOGITS]
    return {"ids": IDS, "boxes": arrays, "objectness_logits": logits, "bbox_mode": 0, **changes}


def test_round_trip(tmp_path):
    loaded = load_proposals(save(tmp_path / "new" / "p.pkl"))
    assert loaded.ids == IDS
    assert [b.tolist() for b in loaded.boxes] == BOXES
    assert [x.tolist() for x in loaded.logits] == LOGITS
    assert {a.dtype for a in loaded.boxes + loaded.logits} == {np.dtype("float32")}
    assert loaded.boxes[1].shape == (0, 4)
    assert os.listdir(tmp_path / "new") == ["p.pkl"]


def test_file_is_plain(path):
    """Detectron2's keys; python and numpy types only."""
    save(path, ids=[np.str_("000005"), 7, "000009"])
    stored = pickle.loads(path.read_bytes())
    assert list(stored) == ["ids", "boxes", "objectness_logits", "bbox_mode"]
    assert [type(i) for i in stored["ids"]] == [str] * 3
    assert stored["ids"][1] == "7"
    assert type(stored["bbox_mode"]) is int and BoxMode(stored["bbox_mode"]) == BoxMode.XYXY_ABS


def test_detectron2_keeps_the_order_of_negative_ranks(path):
    boxes = [[i, 0, i + 10, 10] for i in range(300)]
    save(path, ["a"], [boxes], [-np.arange(300)])
    (record,) = load_proposals_into_dataset(dicts(["a"]), str(path))
    assert record["proposal_boxes"].tolist() == boxes
    assert record["proposal_objectness_logits"][:3].tolist() == [0, -1, -2]
    assert record["proposal_bbox_mode"] == BoxMode.XYXY_ABS


def test_detectron2_reads_images_without_proposals(path):
    records = load_proposals_into_dataset(dicts(), str(save(path)))
    assert [len(r["proposal_boxes"]) for r in records] == [2, 0, 1]


def test_failed_write_leaves_the_old_file(path, tmp_path, monkeypatch):
    save(path)
    before = path.read_bytes()

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write proposal file .*p\.pkl: .*No space left"):
        save(path, ["a"], [[[0, 0, 1, 1]]], [[0]])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.pkl"]


def test_arguments_that_do_not_fit(path, tmp_path):
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\) and logits of shape \(1,\)"):
        save(path, ["a"], [BOXES[0]], [[1.0]])
    with pytest.raises(ValueError, match="2 ids but 3 boxes"):
        save(path, IDS[:2])
    assert not (tmp_path / "p.pkl").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_foreign_files(path, protocol):
    """Of any protocol, with numpy ids, the enumeration itself, and Detectron's names."""
    ids = [np.str_("000005"), np.int64(7), "000009"]
    made = content(bbox_mode=BoxMode.XYXY_ABS)
    made = {
        "indexes": ids,
        "scores": made["objectness_logits"],
        "boxes": [b.astype(np.float64) for b in made["boxes"]],
        "bbox_mode": made["bbox_mode"],
    }
    loaded = load_proposals(write(path, made, protocol))
    assert loaded.ids == ["000005", "7", "000009"]
    assert [b.tolist() for b in loaded.boxes] == BOXES
    assert loaded.logits[0].tolist() == LOGITS[0]


@pytest.mark.parametrize("series", [b"numpy.core.", b"numpy._core."])
def test_both_numpy_series(path, series):
    stored = pickle.dumps(content(), protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in stored
    path.write_bytes(stored.replace(b"numpy.core.", series))
    assert [b.tolist() for b in load_proposals(path).boxes] == BOXES


def test_width_and_height_become_corners(path):
    write(path, content(bbox_mode=int(BoxMode.XYWH_ABS)))
    assert load_proposals(path).boxes[0].tolist() == [[0, 0, 500, 375], [10.5, 20, 40.5, 60]]


def test_missing_file(path, tmp_path):
    with pytest.raises(UserError) as caught:
        load_proposals(path)
    assert str(caught.value) == (
        f"there is no proposal file {tmp_path}/p.pkl; make one with `frcnn proposals dump` or "
        f"`frcnn proposals convert`"
    )


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_truncated_file(path, keep):
    save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"p\.pkl is damaged, or not a proposal file \(.+\); make one"
    ):
        load_proposals(path)


def test_flipped_bytes_are_never_a_traceback(path):
    """Nor the end of the process, which numpy's own reading of its types can be."""
    whole = save(path).read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_proposals(path)
        except UserError as error:
            assert "p.pkl" in str(error)


WAYS_TO_RUN_CODE = {
    "posix.system": Calls(os.system, "touch was_run"),
    "builtins.eval": Calls(eval, "open('was_run', 'w')"),
    "builtins.getattr": Calls(getattr, str, "format"),
    "pathlib": Calls(Path.touch, Path("was_run")),
    "builtins.bytearray": Calls(bytearray, 1 << 62),  # only asks for memory
    "numpy.core.multiarray.scalar.__class__": b"\x80\x04\x8c\x15numpy.core.multiarray"
    b"\x8c\x10scalar.__class__\x93.",
}


@pytest.mark.parametrize("name", WAYS_TO_RUN_CODE)
@pytest.mark.parametrize("where", ["alone", "nested"])
def test_code_in_a_file_is_not_run(path, tmp_path, monkeypatch, name, where):
    monkeypatch.chdir(tmp_path)
    evil = WAYS_TO_RUN_CODE[name]
    if isinstance(evil, bytes):
        path.write_bytes(evil)
    elif where == "alone":
        write(path, evil)
    else:
        write(path, content(boxes=[{"a": np.array([evil], dtype=object)}]))
    with pytest.raises(UserError, match=rf"p\.pkl is damaged.*it contains {name}.*; make one with"):
        load_proposals(path)
    assert os.listdir(tmp_path) == ["p.pkl"]


@pytest.mark.parametrize("call", [Calls(np.ndarray, (1 << 40,)), Calls(bytes, 1 << 40)])
def test_no_memory_beyond_the_size_of_the_file(path, call):
    """What is allowed by name may ask for memory by its arguments."""
    # Python 2's name of bytes is the one that is allowed.
    path.write_bytes(pickle.dumps(content(boxes=call), 2, fix_imports=True))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"p\.pkl .*; make one with"):
        load_proposals(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1, 2], "it holds a list"),
        ({"model": {}}, r"it has no ids, boxes, objectness_logits \(but model\)"),
        (content(boxes=[]), "3 ids, 0 arrays of boxes, 3 of logits"),
        (content(bbox_mode=int(BoxMode.XYXY_REL)), "boxes are in mode XYXY_REL; XYXY_ABS is"),
        (content(bbox_mode=77), "77 is not a valid BoxMode"),
        (content(ids=None), "object of type 'NoneType' has no len"),
        (
            content(objectness_logits=[np.zeros(2), np.zeros(0), np.zeros(3)]),
            r"image 000009: boxes of shape \(1, 4\) and logits of shape \(3,\)",
        ),
        (content(boxes=["a", "b", "c"]), "image 000005: could not convert string to float"),
    ],
)
def test_files_that_hold_something_else(path, stored, message):
    with pytest.raises(UserError, match=f"p.pkl.*{message}.*; make one with"):
        load_proposals(write(path, stored))


# ---- Whether they fit their data set ------------------------------------------------------------


def problem(path, ids, name="my_set"):
    with pytest.raises(UserError) as caught:
        check_proposals(path, dicts(ids), name)
    return str(caught.value)


def test_check_gives_the_order_of_the_data_set(path, caplog):
    with caplog.at_level(logging.INFO):
        checked = check_proposals(save(path), dicts(IDS[::-1]), "my_set")
    assert checked.ids == IDS[::-1]
    assert checked.boxes[2].tolist() == BOXES[0]
    assert "p.pkl: 3 images of my_set, 1.0 proposals per image (0 to 2)" in caplog.text


def test_number_ids_and_sizes_may_be_absent(path):
    save(path, [17], [[[0, 0, 9999, 9]]], [[0]])
    assert check_proposals(path, [{"image_id": 17}], "coco").ids == ["17"]


def test_file_of_another_data_set(path):
    """The message that a user with swapped files sees."""
    ids = [f"{i:06d}" for i in range(1, 4953)]
    save(path, ids, [np.zeros((0, 4))] * 4952, [[]] * 4952)
    assert problem(path, ["5", "7"], "voc07_trainval") == (
        f"proposal file {path} has no entry for image 5 of voc07_trainval (it covers 4952 images, "
        f"0 of them of this data set; was it made for voc07_test?)"
    )


def test_missing_extra_and_repeated_images(path):
    message = problem(save(path), [*IDS, "000032"])
    assert "no entry for image 000032 of my_set (it covers 3 images, 3 of them" in message
    assert "was it made for" not in message
    assert "for 2 images that are not in my_set (first: 000007" in problem(path, IDS[:1])
    save(path, ["a", "b", "b"])
    assert "more than one entry for image b" in problem(path, ["a", "b"])
    save(path, ["a"], [[]], [[]])
    assert "has no box in any of its 1 images" in problem(path, ["a"])


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


def test_damaged_files(path):
    """A UserError or proposals that fit, and little memory, whatever the bytes."""
    contents = [pickle.dumps(content(), protocol) for protocol in range(5)]
    check_reader(lambda: check_proposals(path, dicts(), "my_set"), path, contents)


@pytest.mark.parametrize(
    "stored",
    [
        b"\x80\x02Nr\xff\xff\xff\x3f.",  # 8 GiB for the entries before it
        b"\x80\x02Np1073741823\n.",
        b"\x80\x02Np00000000000000000000000001073741823\n.",
        b"\x80\x02(]X\x01\x00\x00\x00ar\xff\xff\xff\x3fe.",
    ],
)
def test_number_of_a_memo_entry_asks_for_memory(path, stored):
    path.write_bytes(stored)
    tracemalloc.start()
    with pytest.raises(UserError, match="it refers to more entries than it has"):
        load_proposals(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("what", ["lists", "arrays"])
def test_what_is_in_a_file_once_counts_each_time(path, what):
    """A few bytes nest a list in lists, or name an array, as often as they like."""
    nested = [1.0] * 10
    for _ in range(12):
        nested = [nested] * 10
    array = np.zeros((10_000, 4), "f4")
    boxes = [nested] * 3 if what == "lists" else [array] * 3
    logits = [array[:, 0]] * 3
    write(path, content(ids=IDS * 9, boxes=boxes * 9, objectness_logits=logits * 9))
    with pytest.raises(UserError, match=r"rows of rows|again and again"):
        load_proposals(path)
