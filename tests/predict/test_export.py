"""Exported detectors, beside the detectors that they were made of."""

from __future__ import annotations

import json
import re
import runpy
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.image_size import resize_scale
from frcnn_plugin.modeling.proposal_generator import hyper_rpn
from frcnn_plugin.modeling.roi_heads import fast_rcnn
from frcnn_plugin.predict import FasterRCNNPredictor, export
from tests.random_detector import random_detector, squares
from tests.small_demo import SMALL

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "export_example.py"
OPTS = [
    *SMALL,
    # So the example of a trace has fewer anchors than these images, and more than the small ones.
    *("INPUT.MIN_SIZE_TEST", "240", "INPUT.MAX_SIZE_TEST", "360"),
    *("MODEL.RPN.MIN_SIZE_IMAGE", "8.0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"),
]
# What depends on the original size, or once was frozen by the example image.
ORIGINAL = (
    "demo/vgg16_shapes_joint.yaml TEST.KEEP_TIES True MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE True "
    "MODEL.ROI_BOX_HEAD.DECODE_GROWTH 1.0 MODEL.RPN.DECODE_GROWTH 1.0 TEST.DETECTIONS_PER_IMAGE 40"
)
CORNERS = (
    "demo/vgg16_shapes_joint.yaml INPUT.BOX_SCALING corners MODEL.ROI_HEADS.INTEGER_ROIS True "
    "MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE False MODEL.ROI_BOX_HEAD.DECODE_GROWTH 1.0"
)
FAMILY = {
    "original": ORIGINAL,
    "corners": CORNERS,
    "no_scale": "demo/vgg16_shapes_joint.yaml MODEL.META_ARCHITECTURE GeneralizedRCNN",
    "dilated": "demo/vgg16_shapes_dilated.yaml",
    "fpn": "demo/vgg16_shapes_fpn.yaml",
    "cascade": "demo/vgg16_shapes_cascade.yaml",
    "mask": "demo/vgg16_shapes_mask.yaml",
    "hypernet": "demo/vgg16_shapes_hypernet.yaml",
    "rfcn": "demo/vgg16_shapes_rfcn.yaml",
    "precise": "demo/vgg16_shapes_nonapproximate.yaml",
    "align": "demo/vgg16_shapes_nonapproximate.yaml MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignGrad "
    "MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING 2",
}
# What tracing freezes, it freezes in both formats.
CASES = [("original", "torchscript"), ("fpn", "torchscript"), *((name, "onnx") for name in FAMILY)]
every_format = pytest.mark.parametrize("form", ["torchscript", "onnx"])


@pytest.fixture(autouse=True)
def skip_onnx(request: pytest.FixtureRequest) -> None:
    """Skip what needs the packages of the extra "export", if they are not there."""
    params = getattr(request.node, "callspec", None)
    if "onnx" in request.node.name or (params and "onnx" in params.params.values()):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


def detector(name: str) -> Any:
    """What `export` reads of a predictor."""
    file, *more = FAMILY[name].split()
    cfg = setup_cfg(get_config_file(file), [*OPTS, *more])
    return SimpleNamespace(cfg=cfg, model=random_detector(cfg), class_names=("a", "b", "c"))


@lru_cache
def exported(name: str, form: str) -> bytes:
    predictor = detector(name)
    return export.export(predictor.cfg, predictor.model, form)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_family(name: str, form: str) -> None:
    """Two sizes and scales; few proposals; none, as no box is 8 pixels of a 6 x 8 original."""
    predictor = detector(name)
    export.check_exports(predictor.cfg, form)
    lines = list(export.compare(predictor, exported(name, form), form))
    counts = [int(re.findall(r": (\d+) detections", line)[0]) for line in lines]
    assert counts[0] > 1 and counts[1] > 1 and counts[0] != counts[2]
    assert (counts[3] == 0) == (name != "no_scale")
    if form == "torchscript":
        gaps = [float(gap) for line in lines for gap in re.findall(r"by ([\d.e-]+)", line)]
        assert max(gaps) < 2e-4


def test_images_have_many_few_and_no_proposals() -> None:
    """Those that `compare` generates, as the detector sees them."""
    predictor = detector("original")
    counts = []
    model, entries = predictor.model, []
    predictor.model = lambda batch: entries.append(batch) or model(batch)
    list(export.compare(predictor, exported("original", "torchscript"), "torchscript"))
    with torch.no_grad():
        for batch in entries:
            counts.append(len(model.propose(*model.features(batch))[0]))
    assert min(counts[:2]) > 80 > 40 > counts[2] > 0 == counts[3], counts
    sizes = {tuple(batch[0]["image"].shape[1:]) for batch in entries}
    assert len(sizes) == 3 and {side % 2 for size in sizes for side in size} == {0, 1}


def test_pieces_of_anchors_are_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyper_rpn, "_MOST_ANCHORS", 100)
    predictor = detector("hypernet")
    content = export.export(predictor.cfg, predictor.model, "torchscript")
    assert len(list(export.compare(predictor, content, "torchscript"))) == 4


@every_format
def test_masks(form: str) -> None:
    predictor = detector("mask")
    run = export.load(exported("mask", form), form)
    for scale in (1.0, 8.0):
        entry = export.generated(predictor.cfg, 90, 60, scale)
        with torch.no_grad():
            [ours] = predictor.model.inference([entry], do_postprocess=False)
        boxes, _, _, masks = run(*export.inputs_of(entry))
        assert masks.shape == (len(ours), *ours.pred_masks.shape[2:]) and len(boxes) == len(ours)
        np.testing.assert_allclose(masks, ours.pred_masks[:, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize("opset", [export.OPSETS[0], export.OPSETS[-1]])
def test_opsets_of_onnx(opset: int) -> None:
    import onnx

    predictor = detector("fpn")
    content = export.export(predictor.cfg, predictor.model, "onnx", opset)
    assert onnx.load_model_from_string(content).opset_import[0].version == opset
    assert len(list(export.compare(predictor, content, "onnx"))) == 4


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        ("MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bfloat16", "torchscript"),
        ("MODEL.PAPER_RCNN.PYRAMID", "[0.5, 1.0]", "onnx"),
        ("MODEL.ROI_HEADS.NMS_METHOD_TEST", "linear", "onnx"),
        ("MODEL.ROI_HEADS.TOPK_PER_CLASS_TEST", "5", "torchscript"),
        ("MODEL.RPN.SCORES", "random", "onnx"),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "4", "onnx"),
        ("MODEL.KEYPOINT_ON", "True", "torchscript"),
        ("MODEL.RFCN.POOLER", "align", "onnx"),
    ],
)
def test_what_would_differ_is_refused(key: str, value: str, form: str) -> None:
    cfg = setup_cfg(get_config_file("demo/vgg16_shapes_rfcn.yaml"), [*OPTS, key, value])
    with pytest.raises(UserError, match=f"^{key} is .*: type {key} '") as error:
        export.check_exports(cfg, form)
    usable = str(error.value).rpartition(f"{key} ")[2].strip("'")
    cfg = setup_cfg(get_config_file("demo/vgg16_shapes_rfcn.yaml"), [*OPTS, key, usable])
    export.check_exports(cfg, form)


def test_parts_that_cannot_be_traced_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = detector("original")

    def unusable(images: torch.Tensor) -> None:
        raise RuntimeError("no operator for this\nfrom a long way down")

    monkeypatch.setattr(predictor.model.backbone, "forward", unusable)
    with pytest.raises(UserError, match=r"exported to torchscript: no operator for this$"):
        export.export(predictor.cfg, predictor.model, "torchscript")


def test_scale_is_that_of_the_detector() -> None:
    scales = set()
    for original in [(333, 500), (500, 333), (375, 500), (100, 400), (96, 144), (1, 1), (60, 200)]:
        for size in [(96, 144), (144, 96), (600, 901), (36, 144), (43, 144), (96, 128)]:
            expected = resize_scale(size, original, (96, 600))
            tensors = [torch.tensor(x, dtype=torch.float32) for x in (size, original)]
            assert float(export.traced_scale(*tensors, (96, 600))) == pytest.approx(expected, 1e-7)
            scales.add(expected)
    assert len(scales) > 15


def test_differences_are_found() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20], [5, 5, 20, 20.0]])
    ours = [boxes, np.array([0.9, 0.8, 0.3]), np.array([0, 1, 0])]
    empty = [x[:0] for x in ours]
    moved = [boxes + np.eye(3, 4) / 2, ours[1] - [0, 0.1, 0], ours[2]]
    swapped = [x[[1, 0, 2]] for x in ours]
    assert export._largest(ours, swapped, 0.05, 100) == [0, 0]
    assert export._largest(ours, moved, 0.05, 100) == pytest.approx([0.5, 0.1])
    assert export._largest(empty, empty, 0.05, 100) == [0, 0]
    other_class = [*ours[:2], np.array([0, 2, 0])]
    less = [x[:2] for x in ours]
    for one, other in ((ours, empty), (empty, ours), (ours, other_class)):
        assert export._largest(one, other, 0.05, 100) == [np.inf, np.inf]
    assert export._largest(ours, less, 0.05, 100) == pytest.approx([10, 0.6])
    # The third is at the threshold, or the last of a full list.
    assert export._largest(ours, less, 0.2995, 100) == [0, 0]
    assert export._largest(ours, less, 0.05, 3) == [0, 0]


def test_a_choice_by_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another project's part may make it: here the number of boxes becomes a constant."""
    monkeypatch.setattr(fast_rcnn, "within_limit", lambda scores, *_: torch.arange(len(scores)))
    predictor = detector("original")
    content = export.export(predictor.cfg, predictor.model, "torchscript")
    with pytest.raises(
        UserError, match=r"^not written: generated, .*: the file does not run: "
    ) as e:
        list(export.compare(predictor, content, "torchscript"))
    assert "\n" not in str(e.value)


@every_format
def test_another_detector_is_noticed(form: str) -> None:
    predictor = detector("original")
    content = exported("original", form)
    predictor.model.roi_heads.box_predictor.bbox_pred.bias.data += 0.05
    with pytest.raises(UserError, match=r"not written: generated, upright: \d+ detections; boxes"):
        list(export.compare(predictor, content, form))


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_an_image_where_rounding_decides_is_not_the_last_word(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two RoIs of the same cells have scores that are equal but for rounding."""
    right, calls = export._largest, iter([True] * wrong + [False] * 12)
    monkeypatch.setattr(export, "_largest", lambda *a: [9.0, 0.0] if next(calls) else right(*a))
    content = exported("original", "torchscript")
    lines = export.compare(detector("original"), content, "torchscript")
    if wrong < 3:
        assert len(list(lines)) == 4
    else:
        with pytest.raises(UserError, match=r"^not written: generated, upright: .* by 9 px at"):
            list(lines)


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and model.onnx, of a detector with scores above 0.5."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("sure")
    predictor = detector("original")
    predictor.model.roi_heads.box_predictor.cls_score.weight.data *= 10
    AtomicCheckpointer(predictor.model, str(folder), cfg=predictor.cfg).save("model_final")
    (folder / "model.onnx").write_bytes(export.export(predictor.cfg, predictor.model, "onnx"))
    return folder


@pytest.mark.parametrize(
    ("opts", "size"),
    [
        ([], (250, 181)),
        ([], (90, 400)),  # the longer side is limited
        (["INPUT.RESIZE", "opencv"], (121, 250)),
        (["INPUT.RESIZE", "opencv"], (90, 401)),
    ],
)
def test_example_in_onnx(
    opts: list[str],
    size: tuple[int, int],
    sure: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The example of docs/ detects alike, without this package, Detectron2 and torch."""
    predictor = FasterRCNNPredictor(sure / "model_final.pth", opts=opts)
    about = json.dumps(export.description(predictor, "onnx"))
    (sure / "model.onnx.json").write_text(about)
    photo = sure / "photo.png"
    Image.fromarray(squares(*size)).save(photo)
    with monkeypatch.context() as patch:
        for module in ("torch", "detectron2", "frcnn_plugin"):
            patch.setitem(sys.modules, module, None)
        patch.setattr(sys, "argv", [EXAMPLE.name, str(sure / "model.onnx"), str(photo)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = predictor(photo)
    found = found[found.scores >= 0.5]
    lines = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in lines] == [predictor.class_names[i] for i in found.pred_classes]
    numbers = [[float(word) for word in words] for _, *words in lines]
    expected = np.column_stack([found.scores, found.pred_boxes.tensor])
    np.testing.assert_allclose(numbers, expected, atol=0.006)
    assert lines


def test_description_names_what_an_onnx_file_has() -> None:
    import onnxruntime

    predictor = detector("mask")
    about = json.loads(json.dumps(export.description(predictor, "onnx", 18)))
    session = onnxruntime.InferenceSession(exported("mask", "onnx"))
    assert [x.name for x in session.get_inputs()] == list(about["inputs"])
    assert [x.name for x in session.get_outputs()] == list(about["outputs"])
    assert about["opset"] == 18 and about["classes"] == ["a", "b", "c"]
    how = about["preprocessing"]
    assert (how["short_side"], how["longest_side"], how["resize"]) == (240, 360, "pillow")
    assert about["thresholds"]["score"] == 0.05 and about["versions"]["torch"]
    assert export.description(predictor, "torchscript")["opset"] is None
