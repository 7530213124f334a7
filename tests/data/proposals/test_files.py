"""The file format: written whole, read without running anything."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from frcnn_plugin.data.proposals.files import load_proposals
from frcnn_plugin.errors import UserError

from .made_proposals import BOXES, IDS, LOGITS, dicts, save


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


def test_file_is_plain(tmp_path):
    """Detectron2's keys; python and numpy types only."""
    path = save(tmp_path / "p.pkl", ids=[np.str_("000005"), 7, "000009"])
    stored = pickle.loads(path.read_bytes())
    assert list(stored) == ["ids", "boxes", "objectness_logits", "bbox_mode"]
    assert [type(i) for i in stored["ids"]] == [str] * 3
    assert stored["ids"][1] == "7"
    assert type(stored["bbox_mode"]) is int and BoxMode(stored["bbox_mode"]) == BoxMode.XYXY_ABS


def test_the_host_reads_it_and_keeps_the_order_of_negative_ranks(tmp_path):
    boxes = [[i, 0, i + 10, 10] for i in range(300)]
    path = save(tmp_path / "p.pkl", ["a"], [boxes], [-np.arange(300)])
    (record,) = load_proposals_into_dataset(dicts(["a"]), str(path))
    assert record["proposal_boxes"].tolist() == boxes
    assert record["proposal_objectness_logits"][:3].tolist() == [0, -1, -2]
    assert record["proposal_bbox_mode"] == BoxMode.XYXY_ABS


def test_the_host_reads_images_without_proposals(tmp_path):
    records = load_proposals_into_dataset(dicts(), str(save(tmp_path / "p.pkl")))
    assert [len(r["proposal_boxes"]) for r in records] == [2, 0, 1]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "p.pkl")
    before = path.read_bytes()

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write proposal file .*p\.pkl: .*No space left"):
        save(path, ["a"], [[[0, 0, 1, 1]]], [[0]])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.pkl"]


def test_arguments_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\) and logits of shape \(1,\)"):
        save(tmp_path / "p.pkl", ["a"], [BOXES[0]], [[1.0]])
    with pytest.raises(ValueError, match="2 ids but 3 boxes"):
        save(tmp_path / "p.pkl", IDS[:2])
    assert not (tmp_path / "p.pkl").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_foreign_files(tmp_path, protocol):
    """Of any protocol, with numpy ids, the enumeration itself, and Detectron's names."""
    ids = [np.str_("000005"), np.int64(7), "000009"]
    made = content(bbox_mode=BoxMode.XYXY_ABS)
    made = {
        "indexes": ids,
        "scores": made["objectness_logits"],
        "boxes": [b.astype(np.float64) for b in made["boxes"]],
        "bbox_mode": made["bbox_mode"],
    }
    loaded = load_proposals(write(tmp_path / "p.pkl", made, protocol))
    assert loaded.ids == ["000005", "7", "000009"]
    assert [b.tolist() for b in loaded.boxes] == BOXES
    assert loaded.logits[0].tolist() == LOGITS[0]


@pytest.mark.parametrize("series", [b"numpy.core.", b"numpy._core."])
def test_both_numpy_series(tmp_path, series):
    stored = pickle.dumps(content(), protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in stored
    path = tmp_path / "p.pkl"
    path.write_bytes(stored.replace(b"numpy.core.", series))
    assert [b.tolist() for b in load_proposals(path).boxes] == BOXES


def test_width_and_height_become_corners(tmp_path):
    path = write(tmp_path / "p.pkl", content(bbox_mode=int(BoxMode.XYWH_ABS)))
    assert load_proposals(path).boxes[0].tolist() == [[0, 0, 500, 375], [10.5, 20, 40.5, 60]]


def test_missing_file(tmp_path):
    with pytest.raises(UserError) as caught:
        load_proposals(tmp_path / "p.pkl")
    assert str(caught.value) == (
        f"there is no proposal file {tmp_path}/p.pkl; make one with `frcnn proposals dump` or "
        f"`frcnn proposals convert`"
    )


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_truncated_file(tmp_path, keep):
    path = save(tmp_path / "p.pkl")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"p\.pkl is damaged, or no proposal file \(.+\); make one"):
        load_proposals(path)


class Calls:
    """Pickled as a call, which an unguarded reader makes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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
@pytest.mark.parametrize("where", ["alone", "nested", "in an array", "as a state"])
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, name, where):
    monkeypatch.chdir(tmp_path)
    evil = WAYS_TO_RUN_CODE[name]
    path = tmp_path / "p.pkl"
    if isinstance(evil, bytes):
        path.write_bytes(evil)
    elif where == "alone":
        write(path, evil)
    elif where == "nested":
        write(path, content(ids=[{"a": (IDS, [evil])}]))
    elif where == "in an array":
        write(path, content(boxes=np.array([evil], dtype=object)))
    else:
        write(path, content(boxes=Calls(np.ndarray, (evil,))))
    with pytest.raises(UserError, match=rf"p\.pkl is damaged.*it contains {name}.*; make one with"):
        load_proposals(path)
    assert os.listdir(tmp_path) == ["p.pkl"]


@pytest.mark.parametrize("call", [Calls(np.ndarray, (1 << 40,)), Calls(bytes, 1 << 40)])
def test_no_memory_beyond_the_size_of_the_file(tmp_path, call):
    """What is allowed by name may ask for memory by its arguments."""
    path = tmp_path / "p.pkl"
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
        ([1, 2], "holds a list, no proposals"),
        ({"model": {}}, r"it has no ids, boxes, objectness_logits \(but model\)"),
        (content(boxes=[]), "inconsistent: 3 ids, 0 arrays of boxes and 3 of logits"),
        (content(bbox_mode=int(BoxMode.XYXY_REL)), "boxes are in mode XYXY_REL; XYXY_ABS is"),
        (content(bbox_mode=77), "no proposal file: 77 is not a valid BoxMode"),
        (content(ids=None), "no proposal file: object of type 'NoneType' has no len"),
        (
            content(objectness_logits=[np.zeros(2), np.zeros(0), np.zeros(3)]),
            r"image 000009: boxes of shape \(1, 4\) and logits of shape \(3,\)",
        ),
        (content(boxes=["a", "b", "c"]), "image 000005: could not convert string to float"),
    ],
)
def test_files_that_hold_something_else(tmp_path, stored, message):
    with pytest.raises(UserError, match=f"p.pkl.*{message}.*; make one with"):
        load_proposals(write(tmp_path / "p.pkl", stored))
