"""What is said about weights that do not fit."""

from __future__ import annotations

import logging

import pytest

from frcnn_plugin.checkpoint.matching import (
    Loaded,
    check_classes,
    check_complete,
    check_layers,
    check_preprocessing,
    check_shapes,
)
from frcnn_plugin.checkpoint.metadata import (
    CAFFE,
    TORCHVISION,
    TORCHVISION_FEATURES,
    Metadata,
    Preprocessing,
)
from frcnn_plugin.errors import UserError

CONVS = ("VGG16", "conv layers", ("backbone.a", "backbone.b"), "Do this.")
PREDICTOR = "roi_heads.box_predictor"
RPN_HEAD = "proposal_generator.rpn_head"


def loaded(missing=(), wrong=None, keys=("x", "y", "z", "u", "v")) -> Loaded:
    wrong = wrong or {}
    return Loaded("f.pth", keys, [*missing, *wrong], wrong)


@pytest.mark.parametrize(
    ("missing", "wrong", "message"),
    [
        (
            [f"backbone.{layer}.{kind}" for layer in "ab" for kind in ("weight", "bias")],
            {},
            r"VGG16: 0 of 2 conv layers found in f\.pth; its first keys: x, y, z, u \.\.\.\. Do",
        ),
        (["backbone.b.bias"], {}, "VGG16: 1 of 2 conv layers"),
        (
            [],
            {"backbone.a.weight": ((64, 3, 3, 3), (4, 3, 3, 3))},
            r"backbone\.a\.weight is 64x3x3x3 there and 4x3x3x3 here",
        ),
    ],
)
def test_required_layers(missing: list, wrong: dict, message: str) -> None:
    check_layers(loaded([f"{RPN_HEAD}.rpn_conv.weight"]), *CONVS)  # which is not required
    with pytest.raises(UserError, match=message):
        check_layers(loaded(missing, wrong), *CONVS)


def test_other_numbers_of_classes_and_anchors_start_at_random() -> None:
    wrong = {
        f"{PREDICTOR}.cls_score.weight": ((21, 4096), (4, 4096)),
        f"{PREDICTOR}.bbox_pred.bias": ((80,), (12,)),
        f"{RPN_HEAD}.rpn_cls_score.weight": ((18, 512, 1, 1), (24, 512, 1, 1)),
    }
    classes, anchors = check_shapes(loaded(wrong=wrong))
    assert classes == (
        "f.pth is for another number of classes; these start at random: "
        f"{PREDICTOR}.cls_score.weight (21x4096 in the file, 4x4096 here), "
        f"{PREDICTOR}.bbox_pred.bias (80 in the file, 12 here)"
    )
    assert "another number of anchors" in anchors
    assert f"{RPN_HEAD}.rpn_cls_score.weight (18x512x1x1 in the file" in anchors


def test_any_other_shape_stops() -> None:
    wrong = {"roi_heads.box_head.fc6.weight": ((4096, 25088), (4096, 18432))}
    with pytest.raises(UserError, match=r"fc6\.weight is 4096x25088 in f\.pth and 4096x18432"):
        check_shapes(loaded(wrong=wrong))
    assert check_shapes(loaded(wrong=wrong), ["roi_heads.box_head"]) == []
    with pytest.raises(UserError):  # names of parts are whole
        check_shapes(loaded(wrong=wrong), ["roi_heads.box"])


def test_evaluation_needs_everything() -> None:
    check_complete(loaded())
    with pytest.raises(
        UserError, match=r"cannot be evaluated: it lacks 1 weights, such as a\.weight"
    ):
        check_complete(loaded(["a.weight"]))
    wrong = {f"{PREDICTOR}.cls_score.weight": ((21, 6), (4, 6))}
    with pytest.raises(UserError, match=r"cls_score\.weight is 21x6 in f\.pth and 4x6 .* classes"):
        check_complete(loaded(wrong=wrong))
    with pytest.raises(UserError):
        check_complete(loaded(["roi_heads.a"]).without("proposal_generator"))
    check_complete(loaded(["roi_heads.a"], {"roi_heads.b": ((1,), (2,))}).without("roi_heads"))


def test_preprocessing_that_fits() -> None:
    check_preprocessing("f", None, CAFFE)
    check_preprocessing("f", Metadata("imagenet"), CAFFE)
    check_preprocessing("f", Metadata("imagenet", CAFFE), CAFFE)


def test_torchvision_weights_with_a_caffe_config() -> None:
    with pytest.raises(UserError) as e:
        check_preprocessing("vgg16.pth", Metadata("imagenet", TORCHVISION), CAFFE)
    message = str(e.value)
    assert "INPUT.FORMAT is BGR, the weights expect RGB" in message
    assert (
        'Type INPUT.FORMAT RGB MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" '
        'MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"'
    ) in message


def test_both_means_of_caffes_vgg16_pass_for_imagenet_weights_only() -> None:
    """103.939, 116.779, 123.68 (its authors) and 102.9801, ... (py-faster-rcnn)."""
    authors = Preprocessing("BGR", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
    check_preprocessing("f", Metadata("imagenet", CAFFE), authors)
    with pytest.raises(UserError, match=r"PIXEL_MEAN is \[103\.939"):
        check_preprocessing("f", Metadata("detector", CAFFE), authors)


def test_mean_in_the_order_of_the_other_format() -> None:
    """The mistake of point 35 of docs/faithfulness.md."""
    reversed_mean = Preprocessing("BGR", CAFFE.mean[::-1], CAFFE.std)
    with pytest.raises(UserError, match="PIXEL_MEAN is"):
        check_preprocessing("f", Metadata("imagenet", CAFFE), reversed_mean)


def test_features_only_file_is_caffes_in_rgb() -> None:
    """(0.48235, 0.45882, 0.40784) x 255, std 1."""
    assert TORCHVISION_FEATURES.format == "RGB"
    assert TORCHVISION_FEATURES.mean == pytest.approx((123.0, 117.0, 104.0), abs=0.01)
    assert TORCHVISION_FEATURES.std == (1.0, 1.0, 1.0)


def test_classes(caplog: pytest.LogCaptureFixture) -> None:
    metadata = Metadata("detector", classes=("cat", "dog"))
    with caplog.at_level(logging.WARNING):
        for classes in (None, ("cat", "dog"), ("a", "b", "c")):
            check_classes("f.pth", metadata, classes, evaluating=True)
        check_classes("f.pth", None, ("a", "b"), evaluating=True)
    assert not caplog.records
    check_classes("f.pth", metadata, ("cat", "wolf"), evaluating=True)
    assert "f.pth was trained on other classes: class 1 is 'dog' there" in caplog.text
    with pytest.raises(UserError, match=r"in another order \(class 0 is 'cat' there and 'dog'"):
        check_classes("f.pth", metadata, ("dog", "cat"), evaluating=True)
    check_classes("f.pth", metadata, ("dog", "cat"), evaluating=False)  # it will be trained
