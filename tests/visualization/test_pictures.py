"""Pictures of generated images: original coordinates, numbers that are the labels'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from frcnn_plugin.data import SHAPE_CLASSES
from frcnn_plugin.data.datasets.coco_files import run_lengths
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRPN
from frcnn_plugin.visualization import Canvas
from frcnn_plugin.visualization.drawings.palette import BLUE, GREY, SKY, VERMILION, YELLOW
from frcnn_plugin.visualization.pictures import Options, Pictures
from tests.small_demo import DEMO, SMALL, random_weights

from .drawings.artists import boxes, heading, legend


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Twelve images of about 100 px; some are empty, some have difficult objects."""
    root = tmp_path_factory.mktemp("data")
    write_synthetic_voc(root / "demo_shapes", 12, 1, seed=5, short_side=(90, 120))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        setup_cfg(DEMO, SMALL)
        yield DatasetCatalog.get("shapes_trainval")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def draw(weights: str) -> Callable[..., list[Canvas]]:
    def call(mode: str, record: dict, *opts: str, trained: bool = False, **options: Any) -> list:
        given = ["MODEL.WEIGHTS", weights] if trained else []
        cfg = setup_cfg(DEMO, [*SMALL, *given, *opts])
        pictures = Pictures(cfg, SHAPE_CLASSES, Options(**options))
        return [canvas for _, canvas in pictures.draw(mode, record)]

    return call


def with_objects(records: list[dict], *, difficult: bool) -> dict:
    wanted = {0, 1} if difficult else {0}
    return next(r for r in records if {obj["difficult"] for obj in r["annotations"]} == wanted)


def split(record: dict) -> tuple[list, list]:
    """Boxes of counted and of difficult objects, in the image's pixels."""
    groups: tuple[list, list] = ([], [])
    for obj in record["annotations"]:
        groups[obj["difficult"]].append(tuple(float(value) for value in obj["bbox"]))
    return groups


def same(found: list, expected: list) -> bool:
    return np.allclose(sorted(found), sorted(expected), atol=0.01) if expected else not found


def test_masks_of_the_data(records: list[dict], draw: Callable) -> None:
    """Polygons and run lengths are painted where they are, beside objects without a mask."""
    record = with_objects(records, difficult=False)
    height, width = record["height"], record["width"]
    first = {**record["annotations"][0], "category_id": 2}
    mask = np.zeros((height, width), bool)
    mask[5:20, 10:30] = True
    polygon = [[40.0, 50.0, 60.0, 50.0, 60.0, 70.0, 40.0, 70.0]]
    mask_of_all = mask.copy()
    mask_of_all[50:70, 40:60] = True
    objects = [
        {**first, "segmentation": run_lengths(mask)},
        {**first, "segmentation": polygon},
        first,
    ]
    plain, painted = (
        draw("data", {**record, "annotations": given})[0].axes[0].images[0].get_array()
        for given in ([first], objects)
    )
    assert plain.shape == painted.shape
    changed = (np.asarray(plain) != np.asarray(painted)).any(axis=2)
    factor = changed.shape[0] / height
    assert changed.sum() == pytest.approx(mask_of_all.sum() * factor**2, rel=0.1)
    rows, columns = np.nonzero(changed)
    assert np.allclose(
        [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1],
        np.array([5, 70, 10, 60]) * factor, atol=factor,
    )  # fmt: skip
    wrong = {**first, "segmentation": run_lengths(mask[:-1])}
    with pytest.raises(UserError, match=r"\.jpg: its masks cannot be drawn"):
        draw("data", {**record, "annotations": [wrong]})


@pytest.mark.parametrize("mode", ["data", "matches", "sampled"])
def test_objects_are_in_image_pixels(records: list[dict], draw: Callable, mode: str) -> None:
    """The network sees the image at about twice its size; that must not show."""
    record = with_objects(records, difficult=True)
    (canvas,) = draw(mode, record)
    counted, difficult = split(record)
    assert same(boxes(canvas.axes[0], YELLOW), counted)
    assert same(boxes(canvas.axes[0], GREY, "--"), difficult)
    assert canvas.axes[0].get_xlim() == (0, record["width"])


def test_matches_counts_are_the_labels(records: list[dict], draw: Callable) -> None:
    record = with_objects(records, difficult=False)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        stock = PaperRPN.label_anchors
        patch.setattr(PaperRPN, "label_anchors", lambda *x: seen.append(stock(*x)) or seen[-1])
        (canvas,) = draw("matches", record)
    ((labels, _),) = seen
    positive, negative, ignored = (int((labels == value).sum()) for value in (1, 0, -1))
    assert f"{positive} positive, {negative} negative, {ignored} ignored" in heading(canvas)
    drawn = len(boxes(canvas.axes[0], BLUE)) + len(boxes(canvas.axes[0], SKY))
    assert drawn == min(positive, 60) and positive > 0
    assert sum(int(t.rpartition("(")[2][:-1]) for t in legend(canvas)[:5]) == len(labels)
    assert "rows ratios 0.5, 1, 2; columns sizes 64, 96, 160" in heading(canvas)


def test_sampled_counts(records: list[dict], draw: Callable) -> None:
    record = with_objects(records, difficult=False)
    (alone,) = draw("sampled", record)
    assert len(alone.axes) == 1 and "RoIs of the head need proposals" in heading(alone)
    (canvas,) = draw("sampled", record, trained=True)
    rpn, head = canvas.axes
    for axes, total in ((rpn, 256), (head, 128)):
        positive, negative = len(boxes(axes, BLUE)), len(boxes(axes, VERMILION))
        words = ("positive", "negative") if axes is rpn else ("foreground", "background")
        summary = f"{positive + negative} = {positive} {words[0]} + {negative} {words[1]}"
        assert summary in heading(canvas) and 0 < positive + negative <= total
    counted, _ = split(record)
    # The objects themselves are RoIs: one or another is among the foreground, in image pixels.
    foreground = np.array(boxes(head, BLUE))
    assert any(np.allclose(box, one, atol=0.01) for box in foreground for one in counted)
    assert "foreground RoIs: " in heading(canvas)


def test_sampled_with_weights_that_training_starts_from(
    records: list[dict], draw: Callable, weights: str, tmp_path: Path
) -> None:
    """A backbone alone, as the ImageNet files: no RPN to propose with, and no mistake."""
    state = torch.load(weights, weights_only=True)["model"]
    backbone = {k: v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "imagenet.pth")
    record = with_objects(records, difficult=False)
    (canvas,) = draw("sampled", record, "MODEL.WEIGHTS", str(tmp_path / "imagenet.pth"))
    assert len(canvas.axes) == 1 and "a trained RPN: imagenet.pth has no RPN" in heading(canvas)


def test_an_rpn_alone_detects_nothing(records: list[dict], draw: Callable) -> None:
    """Its file may lack the heads: what they find at random would be drawn."""
    with pytest.raises(UserError, match=r"MODEL.PAPER_RCNN.PHASE is rpn: draw --mode proposals"):
        draw("detections", records[0], "MODEL.PAPER_RCNN.PHASE", "rpn", trained=True)


def test_empty_image(records: list[dict], draw: Callable) -> None:
    record = {**records[0], "annotations": []}
    (data,) = draw("data", record)
    assert "0 objects" in heading(data)
    for mode in ("matches", "sampled"):
        (canvas,) = draw(mode, record, trained=True)
        assert " 0 positive" in heading(canvas)
    assert "0 foreground + " in heading(canvas)
    assert draw("roi-cells", record) == []
    (canvas,) = draw("proposals", record, trained=True)
    assert "not defined, there is no object that counts" in heading(canvas)
    (canvas,) = draw("detections", record, trained=True, score=1.0)
    assert "0 right, 0 wrong, 0 missed" in heading(canvas)


def test_anchors_of_a_cell(records: list[dict], draw: Callable) -> None:
    """Cell (0, 0): centre 8, 8 in network pixels; the smallest square anchor is 64 px there."""
    record = records[0]
    (canvas,) = draw("anchors", record, cell=(0, 0))
    assert "cell at row 0, column 0" in heading(canvas) and "0 of 9 inside" in heading(canvas)
    assert f"times the image's {record['width']} x {record['height']}" in heading(canvas)
    scale = 224 / min(record["width"], record["height"])
    found = boxes(canvas.axes[0], dash="--")
    square = np.array([8 - 32, 8 - 32, 8 + 32, 8 + 32]) / scale
    assert any(np.allclose(box, square, atol=0.5) for box in found) and len(found) == 9
    (middle,) = draw("anchors", record)
    assert len(boxes(middle.axes[0], dash="-")) > 2  # the image, the cell, anchors inside


def test_proposals(records: list[dict], draw: Callable) -> None:
    record = with_objects(records, difficult=False)
    (canvas,) = draw("proposals", record, trained=True, topk=7)
    assert "the best 7 of " in heading(canvas)
    assert "recall of the best 7: " in heading(canvas) and "at IoU .5" in heading(canvas)
    total = len(split(record)[0])
    assert len(boxes(canvas.axes[0])) == 7 + total
    reach = np.array(boxes(canvas.axes[0])).max(axis=0)
    assert reach[2] <= record["width"] + 1e-3 and reach[3] <= record["height"] + 1e-3


def test_no_proposals(records: list[dict], draw: Callable) -> None:
    """None is large enough."""
    opts = ("MODEL.RPN.MIN_SIZE_IMAGE", "1e6")
    (canvas,) = draw("proposals", with_objects(records, difficult=False), *opts, trained=True)
    assert "the best 0 of 0" in heading(canvas) and "0 at .7" in heading(canvas)
    (canvas,) = draw("detections", records[0], *opts, trained=True, score=0.0)
    assert "0 right, 0 wrong" in heading(canvas)


def test_detections(records: list[dict], draw: Callable) -> None:
    record = with_objects(records, difficult=True)
    (canvas,) = draw("detections", record, trained=True, score=0.0, topk=5)
    title, axes = heading(canvas), canvas.axes[0]
    right, wrong = len(boxes(axes, BLUE)), len(boxes(axes, VERMILION))
    missed = len(boxes(axes, YELLOW, ":"))
    assert f"{right} right, {wrong} wrong, {missed} missed" in title
    assert right + wrong + len(boxes(axes, GREY, "-")) == 5 and "IoU > 0.5, same class" in title
    assert all(box[2] <= record["width"] and box[3] <= record["height"] for box in boxes(axes))


def test_roi_cells(records: list[dict], draw: Callable) -> None:
    record = with_objects(records, difficult=False)
    objects, _ = split(record)
    drawn = draw("roi-cells", record)
    assert len(drawn) == min(len(objects), 3)
    assert same(boxes(drawn[0].axes[0], YELLOW), objects[:1])
    (canvas,) = draw("roi-cells", record, box=[10, 20, 60, 70.5], topk=1)
    assert same(boxes(canvas.axes[1], YELLOW), [(10, 20, 60, 70.5)])
    # A cell is 16 network pixels.
    side = 16 * min(record["width"], record["height"]) / 224
    (rounded,) = boxes(canvas.axes[1], VERMILION, "--")
    assert np.allclose(np.array(rounded) / side, np.round(np.array(rounded) / side), atol=0.02)


@pytest.mark.parametrize(
    "mode, options, message",
    [
        ("proposals", {}, r"no weights given\. Add MODEL\.WEIGHTS"),
        ("detections", {}, r"no weights given\. Add MODEL\.WEIGHTS"),
        ("anchors", {"cell": (99, 0)}, r"--cell 99 0: the feature map of \d+ has rows 0 to"),
        ("roi-cells", {"box": [900, 0, 950, 10]}, r"--box 900 0 950 10: no part of it lies in"),
        ("roi-cells", {"box": [50, 50, 10, 10]}, r"--box 50 50 10 10: .* give x1 y1 x2 y2"),
    ],
)
def test_mistakes(records, draw, mode: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(mode, records[0], **options)


def test_records_that_lack_something(records: list[dict], draw: Callable, tmp_path: Path) -> None:
    bare = {key: records[0][key] for key in ("file_name", "image_id")}
    with pytest.raises(UserError, match="has no annotations, which mode matches draws"):
        draw("matches", bare)
    with pytest.raises(UserError, match=r"which RoI\? Add --box"):
        draw("roi-cells", bare)
    with pytest.raises(UserError, match=r"its annotation says .* correct the annotation"):
        draw("data", {**records[0], "width": 7})
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        draw("anchors", {"file_name": str(tmp_path / "text.jpg"), "image_id": 1})


def test_class_names_may_be_unknown(records: list[dict], weights: str) -> None:
    pictures = Pictures(setup_cfg(DEMO, [*SMALL, "MODEL.WEIGHTS", weights]), [], Options(score=0.0))
    ((_, canvas),) = pictures.draw("detections", records[0])
    assert any(text.get_text().startswith("class ") for text in canvas.axes[0].texts)


@pytest.mark.parametrize("mode", ["sampled", "proposals", "detections"])
def test_given_proposals_are_not_taken_for_the_rpn_s(records, draw, mode: str) -> None:
    """The RPN of such a checkpoint was never trained."""
    opts = ("MODEL.LOAD_PROPOSALS", "True", "MODEL.PAPER_RCNN.PHASE", "fast_rcnn")
    with pytest.raises(UserError, match=rf"mode {mode} draws what the RPN proposes, but .* files"):
        draw(mode, records[0], *opts, trained=True)
    assert draw("anchors", records[0], *opts, trained=True)
