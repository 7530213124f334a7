import sys
import zipfile

import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset

from frcnn_plugin import plain_pickle
from frcnn_plugin.data.proposals.converters import convert_npz, convert_selective_search_mat
from frcnn_plugin.data.proposals.files import load_proposals
from frcnn_plugin.errors import UserError
from tests.damage import check_reader

DICTS = [
    {"image_id": "000005", "width": 500, "height": 375},
    {"image_id": "000007", "width": 500, "height": 375},
]
# Rows y1, x1, y2, x2, 1-based and inclusive.
FIRST = [
    [1, 1, 375, 500],  # the whole image
    [11, 21, 60, 50],  # x 20..49, y 10..59 counted from 0
    [11, 21, 60, 50],  # again: dropped
    [11, 21, 60, 22],  # x2 - x1 = 1: dropped
    [11, 21, 60, 23],  # x2 - x1 = 2: kept
    [11, 21, 13, 50],  # y2 - y1 = 2: dropped
    [11, 21, 14, 50],  # y2 - y1 = 3: kept
]
FIRST_BOXES = [[0, 0, 500, 375], [20, 10, 50, 60], [20, 10, 23, 60], [20, 10, 50, 14]]
SECOND = [[1, 1, 100, 200]]


def cells(*values):
    array = np.empty((1, len(values)), dtype=object)
    for index, value in enumerate(values):
        array[0, index] = value
    return array


def save_mat(path, images=("000005", "000007"), boxes=None, without=()):
    savemat = pytest.importorskip("scipy.io").savemat
    boxes = boxes or [np.array(FIRST, dtype=np.uint16), np.array(SECOND, dtype=np.uint16)]
    variables = {"boxes": cells(*boxes), "images": cells(*images).T}
    savemat(path, {key: value for key, value in variables.items() if key not in without})
    return path


def test_selective_search(tmp_path):
    made = convert_selective_search_mat(save_mat(tmp_path / "a.mat"), DICTS, tmp_path / "a.pkl")
    loaded = load_proposals(tmp_path / "a.pkl")
    assert loaded.ids == made.ids == ["000005", "000007"]
    assert loaded.boxes[0].tolist() == made.boxes[0].tolist() == FIRST_BOXES
    assert loaded.boxes[1].tolist() == [[0, 0, 200, 100]]
    assert loaded.logits[0].tolist() == [0, -1, -2, -3]
    first, _ = load_proposals_into_dataset([dict(d) for d in DICTS], str(tmp_path / "a.pkl"))
    assert first["proposal_boxes"].tolist() == FIRST_BOXES


def test_selective_search_takes_what_belongs_to_the_data_set(tmp_path):
    mat = save_mat(tmp_path / "a.mat", ("000007", "000005"))
    made = convert_selective_search_mat(mat, DICTS[1:], tmp_path / "a.pkl", "voc07_val")
    assert made.ids == ["000007"]
    assert made.boxes[0].tolist() == FIRST_BOXES


def test_selective_search_without_names(tmp_path, caplog):
    mat = save_mat(tmp_path / "a.mat", without=["images"])
    made = convert_selective_search_mat(mat, DICTS, tmp_path / "a.pkl")
    assert made.boxes[1].tolist() == [[0, 0, 200, 100]]
    assert "does not name its images: taken in the data set's order" in caplog.text
    with pytest.raises(UserError, match="boxes of 2 images, but 1 images in voc07_val"):
        convert_selective_search_mat(mat, DICTS[:1], tmp_path / "b.pkl", "voc07_val")


@pytest.fixture
def mat_error(tmp_path):
    """Convert a made file and returns the message."""

    def convert(*args, **kwargs):
        mat = save_mat(tmp_path / "a.mat", *args, **kwargs)
        with pytest.raises(UserError) as caught:
            convert_selective_search_mat(mat, DICTS, tmp_path / "out.pkl", "voc07_trainval")
        assert not (tmp_path / "out.pkl").exists()
        return str(caught.value)

    return convert


def test_mat_errors(mat_error):
    assert (
        "has no entry for image 000005 of voc07_trainval (it covers 2 images, 1 of them of this "
        "data set)" in mat_error(("000001", "000007"))
    )
    assert "no variable 'boxes' (but images)" in mat_error(without=["boxes"])


def test_mat_errors_of_shape(mat_error):
    swapped = [np.array([[1, 1, 500, 375]]), np.array(SECOND)]
    assert "image 000005 of voc07_trainval: box 0 [0.0, 0.0, 375.0, 500.0] lies 125.0 px" in (
        mat_error(boxes=swapped)
    )
    five = [np.array([[1, 1, 9, 9, 1]]), np.array(SECOND)]
    assert "an array of shape (1, 5); it must be (N, 4)" in mat_error(boxes=five)
    assert "boxes of 1 images, but 2 images named" in mat_error(boxes=[np.array(SECOND)])


def test_mat_file_itself(tmp_path):
    pytest.importorskip("scipy.io")
    out = tmp_path / "out.pkl"
    with pytest.raises(UserError, match=r"there is no file .*a\.mat"):
        convert_selective_search_mat(tmp_path / "a.mat", DICTS, out)
    (tmp_path / "a.mat").write_bytes(b"not a mat file, surely" * 20)
    with pytest.raises(UserError, match=r"a\.mat is damaged, or not a MATLAB file"):
        convert_selective_search_mat(tmp_path / "a.mat", DICTS, out)
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(text + b"\x89HDF\r\n\x1a\n" + bytes(400))
    with pytest.raises(UserError, match=r"7\.3 format; save it again in MATLAB with"):
        convert_selective_search_mat(tmp_path / "a.mat", DICTS, out)
    whole = save_mat(tmp_path / "b.mat").read_bytes()
    (tmp_path / "b.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.mat is damaged, or not a MATLAB file"):
        convert_selective_search_mat(tmp_path / "b.mat", DICTS, out)


def test_mat_file_that_ends_scipy(tmp_path, monkeypatch):
    """Flipped bits can make scipy read beyond its memory: the process ends, but not ours."""
    monkeypatch.setattr(plain_pickle, "_LOADMAT", "import os; os.abort()")
    with pytest.raises(UserError, match=r"a\.mat is damaged, or not a MATLAB file: scipy fails"):
        convert_selective_search_mat(save_mat(tmp_path / "a.mat"), DICTS, tmp_path / "out.pkl")


def test_npz_that_would_fill_the_memory(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **{"000005": np.zeros((500_000, 4)), "000007": []})
    with pytest.raises(UserError, match=r"a\.npz is damaged.*it would unpack to 16\d+ bytes"):
        convert_npz(tmp_path / "a.npz", DICTS, tmp_path / "out.pkl")


def test_without_scipy(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"needs scipy: pip install 'frcnn-plugin\[proposals\]'"):
        convert_selective_search_mat(tmp_path / "a.mat", DICTS, tmp_path / "out.pkl")


def test_npz(tmp_path):
    with_scores = [[0, 0, 10.5, 10, 0.2], [5, 5, 20, 30, 0.9], [1, 1, 9, 9, 0.2]]
    np.savez(
        tmp_path / "a.npz", **{"000005": np.array(with_scores), "000007": np.zeros(0), "1": [1]}
    )
    convert_npz(tmp_path / "a.npz", DICTS, tmp_path / "a.pkl")
    loaded = load_proposals(tmp_path / "a.pkl")
    assert loaded.ids == ["000005", "000007"]
    # Equal scores keep their order.
    assert loaded.boxes[0].tolist() == [[5, 5, 20, 30], [0, 0, 10.5, 10], [1, 1, 9, 9]]
    assert loaded.logits[0].tolist() == [0, -1, -2]
    assert loaded.boxes[1].shape == (0, 4)


def test_npz_without_scores_is_best_first_and_loses_nothing(tmp_path):
    boxes = [[7, 7, 8, 8], [7, 7, 8, 8], [0, 0, 500, 375]]
    np.savez_compressed(tmp_path / "a.npz", **{"000007": np.array(boxes, dtype=np.float32)})
    made = convert_npz(tmp_path / "a.npz", DICTS[1:], tmp_path / "a.pkl")
    assert made.boxes[0].tolist() == boxes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"000005": [[0, 0, 5, 5]]}, r"a\.npz has no entry for image 000007 of voc07_val \(it cov"),
        ({"arr_0": [[0, 0, 5, 5]]}, r"no entry for image 000005 .*it covers 1 images, 0 of them"),
        ({"000005": [[0, 0, 5]], "000007": []}, r"image 000005: an array of shape \(1, 3\); it mu"),
        ({"000005": ["a"], "000007": []}, "image 000005: not an array of numbers"),
        ({"000005": [[0, 0, 5, 5, np.nan]], "000007": []}, "image 000005: a score, the fifth col"),
        ({"000005": [[0, 0, 800, 600]], "000007": []}, "lies 300.0 px outside the image"),
        ({"000005": [], "000007": []}, "has no box in any of its 2 images"),
        (
            {"000005": np.array([None])},
            "damaged, or not an .npz file: Object arrays cannot be loaded",
        ),
    ],
)
def test_npz_contents(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        convert_npz(tmp_path / "a.npz", DICTS, tmp_path / "out.pkl", "voc07_val")
    assert not (tmp_path / "out.pkl").exists()


def test_npz_file_itself(tmp_path):
    path, out = tmp_path / "a.npz", tmp_path / "out.pkl"
    with pytest.raises(UserError, match=r"there is no file .*a\.npz"):
        convert_npz(path, DICTS, out)
    np.save(tmp_path / "one.npy", np.zeros((3, 4)))
    one_array = (tmp_path / "one.npy").read_bytes()
    for damaged in (b"", b"nonsense", b"PK\x03\x04 a zip that ends here", one_array):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.npz is damaged, or not an \.npz file"):
            convert_npz(path, DICTS, out)


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    contents = []
    for write in (np.savez, np.savez_compressed):
        write(path, **{"000005": np.array([[1, 2, 3, 4, 0.5]]), "000007": np.array([[1, 2, 3, 4]])})
        contents.append(path.read_bytes())
    check_reader(lambda: convert_npz(path, DICTS, tmp_path / "out.pkl"), path, contents)


@pytest.mark.parametrize("header", ["{'descr': '<f8', (", "{'descr': '<f8'", "1 +", "\x00"])
def test_npz_with_a_header_that_is_no_python(tmp_path, header):
    """numpy passes on what Python's parser says: TokenError, SyntaxError."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        text = header.ljust(117).encode() + b"\n"
        archive.writestr(
            "000005.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        )
    with pytest.raises(UserError, match=r"a\.npz is damaged, or not an \.npz file"):
        convert_npz(tmp_path / "a.npz", DICTS, tmp_path / "out.pkl")
