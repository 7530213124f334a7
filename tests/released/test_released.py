"""The released configs against a transcription of py-faster-rcnn, layer by layer, test phase.

The transcription (the caffe_*.py files beside this one) shares no code with the plugin and
Detectron2. The released files themselves are not needed: weights are random, with the structure of
the released ones, and the narrow networks differ from these in the widths of layers alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from frcnn_plugin.data.datasets.voc import VOC_CLASSES

from .caffe_net import VGG16_ALT_OPT, VGG16_COCO, ZF_ALT_OPT, Net
from .harness import load_config
from .runs import Case, Theirs, largest_difference, match, plugin, transcription
from .weights import FULL, NARROW

PIXELS, SCORE = 0.01, 1e-4  # what "equal detections" means
CASES = [
    Case(VGG16_ALT_OPT, (375, 500), seed=1),  # 600x800, scale 1.6
    Case(VGG16_ALT_OPT, (500, 333), seed=2, background=9.0),  # 901x600, scale not 901 / 500
    Case(VGG16_ALT_OPT, (301, 505), seed=2),  # 596x1000: the longer side is limited
    Case(VGG16_ALT_OPT, (1200, 900)),  # made smaller
    Case(ZF_ALT_OPT, (375, 500)),
    Case(ZF_ALT_OPT, (500, 333)),
    Case(ZF_ALT_OPT, (400, 503), seed=1, background=9.0),  # 754.5 rounds to 754
    Case(VGG16_COCO, (480, 640)),
    Case(VGG16_COCO, (640, 427), seed=1, background=12.0),
]
SMALL = Case(VGG16_ALT_OPT, (333, 500), seed=1, background=9.0)


@cache
def theirs(case: Case) -> Theirs:
    return transcription(case)


@cache
def ours(case: Case):
    return plugin(case)


def check_margins(case: Case) -> None:
    """Float rounding must not decide, or the test would be a matter of luck: take another seed."""
    margins = theirs(case).margins
    assert margins.iou > 2e-6, f"an IoU is {margins.iou:.1g} from an NMS threshold"
    assert margins.cell > 5e-4, f"a RoI corner is {margins.cell:.1g} px from a cell border"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_comparison_means_something(case: Case) -> None:
    check_margins(case)
    run = theirs(case)
    score = run.blobs["rpn_cls_prob_reshape"]
    objects = score[0, score.shape[1] // 2 :]
    assert objects.min() < 0.05 and objects.max() > 0.99
    rois = run.blobs["rois"]
    heights = rois[:, 4] - rois[:, 2]
    assert len(rois) == 300 and heights.min() < 100 and heights.max() > 300
    counts = [len(dets) for dets in run.detections]
    assert 20 <= sum(counts) <= 100 and sum(n > 0 for n in counts) >= 10
    # Both with and without the limit of 100.
    assert (sum(counts) == 100) == (case.background < 9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blobs(case: Case) -> None:
    blobs, _ = ours(case)
    order = match(blobs["rois"].numpy(), theirs(case).blobs["rois"].numpy())
    assert order is not None, "other RoIs"
    compared = 0
    for name, expected in theirs(case).blobs.items():
        if name == "rpn_cls_score_reshape":  # rpn_cls_score in another shape
            continue
        blob = blobs[name]
        if name in ("rois", "pool5", "fc6", "fc7", "cls_score", "bbox_pred", "cls_prob"):
            blob = blob[order]
        if name == "bbox_pred":  # no boxes for background
            expected = expected[:, 4:]
        assert blob.shape == expected.shape, name
        assert (blob - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        compared += 1
    assert compared == (28 if case.net.backbone == "VGG16" else 20)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detections(case: Case) -> None:
    pixels, score = largest_difference(ours(case)[1], theirs(case).detections)
    assert pixels <= PIXELS and score <= SCORE


def test_usual_memory_layout() -> None:
    """Channels last, as the configs have it, convolves in another order: rounding differs."""
    check_margins(SMALL)
    _, detections = plugin(SMALL, "MODEL.PAPER_RCNN.CHANNELS_LAST", True)
    pixels, score = largest_difference(detections, theirs(SMALL).detections)
    assert pixels <= PIXELS and score <= SCORE


def test_boxes_outside_the_image() -> None:
    """Clipped as in py-faster-rcnn they stay, one pixel wide, and take part in NMS."""
    case = Case(VGG16_ALT_OPT, (333, 500), background=5.0)
    weights = dict(case.weights())
    weights["bbox_pred"] = [8 * tensor for tensor in weights["bbox_pred"]]
    run = transcription(case, weights)
    boxes = np.concatenate(run.detections)[:, :4]
    assert ((boxes[:, 2:] - boxes[:, :2]) == 0).any()
    _, detections = plugin(case, weights=weights)
    pixels, score = largest_difference(detections, run.detections)
    assert pixels <= PIXELS and score <= SCORE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RPN.DECODE_GROWTH", 0.0),
        ("MODEL.ROI_BOX_HEAD.DECODE_GROWTH", 0.0),
        ("MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE", False),
        ("MODEL.RPN.MIN_SIZE_IMAGE", 32.0),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", 300),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 200),
        ("MODEL.RPN.NMS_THRESH", 0.6),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1),
        ("TEST.DETECTIONS_PER_IMAGE", 10),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        ("MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN", False),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
    ],
)
def test_every_setting_matters(key: str, value: object) -> None:
    """The negative control: with one of the configs' values changed, detections are others."""
    _, detections = plugin(SMALL, key, value)
    pixels, _ = largest_difference(detections, theirs(SMALL).detections)
    assert pixels > PIXELS


@pytest.mark.slow
@pytest.mark.parametrize("net", [VGG16_ALT_OPT, ZF_ALT_OPT], ids=lambda net: net.name)
def test_full_size(net: Net) -> None:
    """The true widths of all layers, on a small image, computed plainly and as the configs do."""
    case = Case(net, (141, 189), widths=FULL[net.backbone], fc=4096, sides=(224, 380))
    check_margins(case)
    run = theirs(case)
    assert sum(map(len, run.detections)) >= 20
    for usual in (False, True):
        keys = ("MODEL.PAPER_RCNN.CHANNELS_LAST", usual, "MODEL.PAPER_RCNN.WINOGRAD", usual)
        blobs, detections = plugin(case, *keys)
        order = match(blobs["rois"].numpy(), run.blobs["rois"].numpy())
        assert order is not None, "other RoIs"
        for name in (net.last, "rpn_cls_score", "rpn_bbox_pred", "fc6", "fc7", "cls_score"):
            blob = blobs[name][order] if name[0] != "r" and name != net.last else blobs[name]
            expected = run.blobs[name]
            # As usual, sums are taken in another order.
            error = (blob - expected).abs().max() / expected.abs().max()
            assert error <= (5e-5 if usual else 1e-5), name
        pixels, score = largest_difference(detections, run.detections)
        assert pixels <= PIXELS and score <= SCORE


# config.py, TEST; the prototxts; test.py.
PY_TEST = {
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "VGG16",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[128, 256, 512]],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.RPN.MIN_SIZE_IMAGE": 16.0,
    "MODEL.RPN.DECODE_GROWTH": 1.0,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 4096,
    "MODEL.ROI_BOX_HEAD.DROPOUT": 0.5,
    "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN": True,
    "MODEL.ROI_BOX_HEAD.DECODE_GROWTH": 1.0,
    "MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE": True,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.KEEP_TIES": True,
}
CHANGES = {
    "VGG16 alt_opt": {"MODEL.WEIGHTS": "frcnn://vgg16_py_faster_rcnn_voc07"},
    "ZF alt_opt": {
        "MODEL.WEIGHTS": "frcnn://zf_py_faster_rcnn_voc07",
        "MODEL.BACKBONE.NAME": "ZF",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 6,
        "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN": False,
    },
    "VGG16 COCO": {
        "MODEL.WEIGHTS": "frcnn://vgg16_py_faster_rcnn_coco",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "MODEL.ROI_BOX_HEAD.DROPOUT": 0.0,
    },
}


@pytest.mark.parametrize("net", [VGG16_ALT_OPT, ZF_ALT_OPT, VGG16_COCO], ids=lambda net: net.name)
def test_configs_are_py_faster_rcnns(net: Net) -> None:
    cfg = load_config(net, FULL[net.backbone], 4096)
    for key, expected in {**PY_TEST, **CHANGES[net.name]}.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        assert value == expected, key


def test_classes_are_in_the_released_order() -> None:
    """pascal_voc.py; coco.py takes the order of the annotation file, which is that of the ids."""
    released = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse"
    released += " motorbike person pottedplant sheep sofa train tvmonitor"
    assert list(VOC_CLASSES) == released.split()
    coco = _get_builtin_metadata("coco")
    ids = coco["thing_dataset_id_to_contiguous_id"]
    assert list(ids) == sorted(ids) and list(ids.values()) == list(range(80))
    names = coco["thing_classes"]
    assert names[:3] == ["person", "bicycle", "car"] and names[-1] == "toothbrush"


def test_an_image_without_detections() -> None:
    case = Case(ZF_ALT_OPT, (375, 500))
    weights = dict(case.weights())
    weight, bias = weights["cls_score"]
    weights["cls_score"] = [weight, bias + torch.eye(21)[0] * 50]
    _, detections = plugin(case, weights=weights)
    assert [len(d) for d in detections] == [len(d) for d in transcription(case, weights).detections]
    assert sum(map(len, detections)) == 0


def test_narrow_networks_are_narrow_only() -> None:
    assert {k: len(v) for k, v in NARROW.items()} == {k: len(v) for k, v in FULL.items()}
