"""From Caffe and torchvision to this plugin's names, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torchvision.models import vgg16 as torchvision_model
from torchvision.models import vgg16_bn

from frcnn_plugin.checkpoint import convert_caffe, convert_to_caffe, convert_torchvision
from frcnn_plugin.checkpoint.metadata import CAFFE, TORCHVISION, Metadata
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.config_files import load_config_file
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.backbone.vgg import VGG16
from frcnn_plugin.modeling.roi_heads.box_head import FC6FC7Head

from . import networks

PREDICTOR = "roi_heads.box_predictor"


def equal(tensor: torch.Tensor, array: np.ndarray) -> bool:
    return tuple(tensor.shape) == array.shape and tensor.numpy().tobytes() == array.tobytes()


def test_vgg16_of_imagenet() -> None:
    layers = networks.vgg16()
    result = convert_caffe(layers)
    assert result.network == "VGG16, ImageNet"
    assert result.unused == ["fc8"]
    assert result.metadata == Metadata("imagenet", CAFFE)
    names = [f"backbone.{name[:5]}.{name}" for name in networks.VGG16]
    names += ["roi_heads.box_head.fc6", "roi_heads.box_head.fc7"]
    assert list(result.state_dict) == [f"{n}.{k}" for n in names for k in ("weight", "bias")]
    for name, layer in zip(names, [*networks.VGG16, "fc6", "fc7"], strict=True):
        assert equal(result.state_dict[f"{name}.weight"], layers[layer][0])
        assert equal(result.state_dict[f"{name}.bias"], layers[layer][1])
    assert result.rows[0] == ("conv1_1[0]", "backbone.conv1.conv1_1.weight", "4 x 3 x 3 x 3")


def test_zf_of_imagenet() -> None:
    layers = networks.zf()
    result = convert_caffe(layers)
    assert result.network == "ZF, ImageNet"
    assert equal(result.state_dict["backbone.conv1.conv1.weight"], layers["conv1"][0])
    assert equal(result.state_dict["backbone.conv5.conv5.bias"], layers["conv5"][1])


def test_old_files_have_four_dimensions() -> None:
    layers = networks.vgg16()
    layers["fc6"] = [layers["fc6"][0][None, None], layers["fc6"][1][None, None, None]]
    state = convert_caffe(layers).state_dict
    assert state["roi_heads.box_head.fc6.weight"].shape == (6, 196)
    assert state["roi_heads.box_head.fc6.bias"].shape == (6,)


@pytest.mark.parametrize("rpn_conv", ["rpn_conv/3x3", "rpn_conv1"])
def test_detector(rpn_conv: str) -> None:
    """Both names of the RPN convolution (point 41 of docs/faithfulness.md); background moves."""
    layers = networks.detector(networks.vgg16(), classes=3, rpn_conv=rpn_conv)
    result = convert_caffe(layers)
    state = result.state_dict
    assert result.network == "VGG16, detector of 3 classes"
    assert result.unused == []
    head = "proposal_generator.rpn_head"
    assert equal(state[f"{head}.rpn_conv.weight"], layers[rpn_conv][0])
    # 9 background then 9 object channels, as in Caffe
    assert equal(state[f"{head}.rpn_cls_score.weight"], layers["rpn_cls_score"][0])
    assert equal(state[f"{head}.rpn_bbox_pred.bias"], layers["rpn_bbox_pred"][1])
    weight, bias = layers["cls_score"]
    assert equal(state[f"{PREDICTOR}.cls_score.weight"], weight[[1, 2, 3, 0]])
    assert equal(state[f"{PREDICTOR}.cls_score.bias"], bias[[1, 2, 3, 0]])
    assert equal(state[f"{PREDICTOR}.bbox_pred.weight"], layers["bbox_pred"][0][4:])
    assert equal(state[f"{PREDICTOR}.bbox_pred.bias"], layers["bbox_pred"][1][4:])
    # Caffe's deltas are raw, Detectron2's ten and five times as large.
    assert state[f"{PREDICTOR}.target_statistics.mean"].tolist() == [[0.0] * 4] * 3
    assert state[f"{PREDICTOR}.target_statistics.std"].tolist() == [[10.0, 10.0, 5.0, 5.0]] * 3
    assert equal(result.metadata.background["weight"], layers["bbox_pred"][0][:4])
    assert result.metadata.kind == "detector"
    assert result.metadata.classes is None


@pytest.mark.parametrize(
    ("classes", "some"),
    [
        (20, {0: "aeroplane", 19: "tvmonitor"}),
        # By category id: "stop sign" is number 12 of 80, but has id 13.
        (80, {0: "person", 11: "stop sign", 79: "toothbrush"}),
    ],
)
def test_class_names(classes: int, some: dict[int, str]) -> None:
    layers = networks.detector(networks.vgg16(), classes=classes, rpn_conv="rpn_conv/3x3")
    names = convert_caffe(layers).metadata.classes
    assert names is not None and len(names) == classes
    assert {number: names[number] for number in some} == some
    if classes == 80:
        ids = {c["name"]: c["id"] for c in COCO_CATEGORIES}
        assert [ids[n] for n in names] == sorted(ids[n] for n in names)


def test_rpn_alone() -> None:
    layers = networks.detector(networks.zf(), classes=2, rpn_conv="rpn_conv1")
    del layers["cls_score"], layers["bbox_pred"]
    result = convert_caffe(layers)
    assert result.network == "ZF, RPN"
    assert "roi_heads.box_predictor.cls_score.weight" not in result.state_dict


@pytest.mark.parametrize(
    "layers",
    [
        networks.vgg16(fc8=False),
        networks.zf(),
        networks.detector(networks.vgg16(), classes=3, rpn_conv="rpn_conv/3x3"),
        networks.detector(networks.zf(), classes=20, anchors=12, rpn_conv="rpn_conv/3x3"),
    ],
    ids=["vgg16", "zf", "vgg16-detector", "zf-detector"],
)
def test_there_and_back_to_the_bit(layers: networks.Layers) -> None:
    result = convert_caffe(layers)
    back, _ = convert_to_caffe(result.state_dict, result.metadata)
    assert set(back) == set(layers)
    for name, blobs in layers.items():
        for ours, theirs in zip(back[name], blobs, strict=True):
            assert ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()


def test_back_folds_statistics() -> None:
    """Example E18: weight .5, bias .3, std .2, mean .01 give .1 and .07."""
    state = convert_caffe(
        networks.detector(networks.zf(), classes=1, rpn_conv="rpn_conv1")
    ).state_dict
    state |= {
        f"{PREDICTOR}.bbox_pred.weight": torch.full((4, 6), 0.5),
        f"{PREDICTOR}.bbox_pred.bias": torch.full((4,), 0.3),
        f"{PREDICTOR}.target_statistics.mean": torch.full((1, 4), 0.01),
        f"{PREDICTOR}.target_statistics.std": torch.full((1, 4), 0.2),
        "proposal_generator.target_statistics.mean": torch.full((1, 4), 0.01),
        "proposal_generator.target_statistics.std": torch.full((1, 4), 0.2),
        "proposal_generator.rpn_head.rpn_bbox_pred.weight": torch.full((36, 4, 1, 1), 0.5),
        "proposal_generator.rpn_head.rpn_bbox_pred.bias": torch.full((36,), 0.3),
    }
    layers, _ = convert_to_caffe(state, bbox_reg_weights=(1.0, 1.0, 1.0, 1.0))
    for name, rows in (("bbox_pred", slice(4, None)), ("rpn_bbox_pred", slice(None))):
        weight, bias = layers[name]
        np.testing.assert_allclose(weight[rows], 0.1, rtol=1e-7)
        np.testing.assert_allclose(bias[rows], 0.07, rtol=1e-6)
    assert not layers["bbox_pred"][0][:4].any()  # background, which nothing is known of


def test_back_without_statistics_divides_by_the_weights() -> None:
    """What this plugin trains predicts deltas x (10, 10, 5, 5)."""
    state = convert_caffe(
        networks.detector(networks.zf(), classes=1, rpn_conv="rpn_conv1")
    ).state_dict
    trained = {k: v for k, v in state.items() if "target_statistics" not in k}
    trained[f"{PREDICTOR}.bbox_pred.bias"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    layers, _ = convert_to_caffe(trained)
    np.testing.assert_allclose(layers["bbox_pred"][1], [0, 0, 0, 0, 0.1, 0.2, 0.6, 0.8], rtol=1e-6)


def test_back_with_the_name_of_the_other_prototxt() -> None:
    result = convert_caffe(networks.detector(networks.zf(), classes=1, rpn_conv="rpn_conv1"))
    assert "rpn_conv1" in convert_to_caffe(result.state_dict, rpn_conv="rpn_conv1")[0]


def test_fc6_takes_channel_row_column() -> None:
    """A single 1 in Caffe's input (c, y, x) = (2, 1, 5) picks column 2*49 + 1*7 + 5 of fc6."""
    layers = networks.vgg16()
    state = convert_caffe(layers).state_dict
    head = FC6FC7Head(ShapeSpec(channels=4, height=7, width=7), fc_dim=6, dropout=0.0)
    head.load_state_dict(
        {k.removeprefix("roi_heads.box_head."): v for k, v in state.items() if "box_head" in k}
    )
    pooled = torch.zeros(1, 4, 7, 7)
    pooled[0, 2, 1, 5] = 1.0
    fc6 = layers["fc6"][0][:, 2 * 49 + 1 * 7 + 5] + layers["fc6"][1]
    expected = np.maximum(layers["fc7"][0] @ np.maximum(fc6, 0) + layers["fc7"][1], 0)
    np.testing.assert_allclose(head(pooled)[0].detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("places", [(0, 3), (1, 4)], ids=["torchvision", "loadcaffe"])
def test_torchvision(places: tuple[int, int]) -> None:
    layers = networks.vgg16()
    result = convert_torchvision(networks.torchvision_vgg16(fully_connected=places), TORCHVISION)
    assert result.metadata == Metadata("imagenet", TORCHVISION)
    assert result.unused == ["classifier.6.weight", "classifier.6.bias"]
    expected = convert_caffe(layers).state_dict
    assert set(result.state_dict) == set(expected)
    assert all(torch.equal(result.state_dict[k], v) for k, v in expected.items())


def test_torchvision_without_classifier() -> None:
    result = convert_torchvision(networks.torchvision_vgg16(fully_connected=None), TORCHVISION)
    assert len(result.state_dict) == 26
    assert result.unused == []


def test_torchvision_features_only_file_has_nan() -> None:
    state = networks.torchvision_vgg16()
    for name in state:
        if name.startswith("classifier."):
            state[name] = torch.full_like(state[name], float("nan"))
    result = convert_torchvision(state, TORCHVISION)
    assert len(result.state_dict) == 26
    assert "classifier.0.weight (not a number)" in result.unused


def test_same_features_as_torchvision() -> None:
    """On a size whose poolings do not round, our backbone is torchvision's without pool5."""
    torch.manual_seed(0)
    theirs = torchvision_model(weights=None).features[:30].eval()
    state = convert_torchvision(
        {f"features.{k}": v for k, v in theirs.state_dict().items()}, TORCHVISION
    ).state_dict
    ours = VGG16(channels=(64, 128, 256, 512, 512), out_features=["conv5"], freeze_at=0).eval()
    ours.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()})
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)["conv5"], theirs(image))


def test_same_features_as_torchvision_with_batch_norm() -> None:
    torch.manual_seed(0)
    theirs = vgg16_bn(weights=None).features[:43]
    theirs.train()(torch.randn(2, 3, 32, 32))  # statistics that are not 0 and 1
    state = {f"features.{k}": v for k, v in theirs.eval().state_dict().items()}
    result = convert_torchvision(state, TORCHVISION)
    assert all(name.endswith("num_batches_tracked") for name in result.unused)
    weights = {k.removeprefix("backbone."): v for k, v in result.state_dict.items()}
    ours = VGG16(norm="FrozenBN")
    ours.load_state_dict(weights)
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)["conv5"], theirs(image))


def without(layers: networks.Layers, *names: str) -> networks.Layers:
    return {k: v for k, v in layers.items() if k not in names}


BIASES = np.zeros(3, "f4")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (without(networks.vgg16(), "conv4_2"), "the network lacks conv4_2; its layers: conv1_1"),
        (networks.vgg16() | {"conv3_4": [BIASES, BIASES]}, "is VGG19, not VGG16"),
        (
            {"conv1": [np.zeros((96, 3, 11, 11), "f4"), np.zeros(96, "f4")]},
            "neither VGG16 nor ZF .* its layers: conv1",
        ),
        ({"conv1_1": [BIASES, BIASES]}, "lacks conv1_2, conv2_1"),
        (networks.zf() | {"fc6": [BIASES]}, "layer fc6 has 1 blobs"),
        (networks.zf() | {"fc6": [BIASES, BIASES]}, r"layer fc6 has a weight of shape \(3,\)"),
        (networks.zf() | {"conv3": [np.zeros((2, 3), "f4"), BIASES]}, "layer conv3 has a weight"),
        (
            networks.zf()
            | {
                "cls_score": [np.zeros((3, 6), "f4"), BIASES],
                "bbox_pred": [np.zeros((8, 6), "f4"), np.zeros(8, "f4")],
            },
            "cls_score has 3 outputs and bbox_pred 8",
        ),
    ],
)
def test_other_networks(layers: networks.Layers, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert_caffe(layers)


def test_other_networks_of_torchvision() -> None:
    state = networks.torchvision_vgg16()
    del state["features.28.weight"]
    with pytest.raises(UserError, match="no VGG16, nor one with batch normalisation"):
        convert_torchvision(state, TORCHVISION)
    state = networks.torchvision_vgg16()
    del state["features.28.bias"]
    with pytest.raises(UserError, match=r"lacks features\.28\.bias"):
        convert_torchvision(state, TORCHVISION)


def test_back_from_something_else() -> None:
    with pytest.raises(
        UserError, match=r"no place for 1 of the weights, such as stem\.conv1\.weight"
    ):
        convert_to_caffe({"stem.conv1.weight": torch.zeros(1)})


def test_back_from_a_class_agnostic_head() -> None:
    state = {
        f"{PREDICTOR}.cls_score.weight": torch.zeros(4, 1),
        f"{PREDICTOR}.cls_score.bias": torch.zeros(4),
        f"{PREDICTOR}.bbox_pred.weight": torch.zeros(4, 1),
        f"{PREDICTOR}.bbox_pred.bias": torch.zeros(4),
    }
    with pytest.raises(UserError, match="4 outputs for 3 classes, so it is class-agnostic"):
        convert_to_caffe(state)


CONV4 = ["MODEL.PAPER_VGG.OUT_FEATURES", ["conv4", "conv5"]]
NO_PLACE, OTHER = "no place for .* such as ", "the detector has MODEL."


@pytest.mark.parametrize(
    ("demo", "opts", "message"),
    [
        ("", [], ""),
        ("_joint", [], ""),
        ("_ohem", [], ""),
        ("_softnms", [], ""),
        ("_dilated", [], f"{OTHER}PAPER_VGG.CONV5_DILATION 2, .* have 1"),
        ("_nonapproximate", [], f"{OTHER}ROI_BOX_HEAD.POOLER_TYPE PrROIPool"),
        ("_cascade", [], f"{NO_PLACE}roi_heads.box_head.0"),
        ("_rfcn", [], f"{NO_PLACE}roi_heads.box_head.conv_new"),
        ("_mask", [], f"{NO_PLACE}roi_heads.mask_head"),
        ("_fpn", [], f"{NO_PLACE}backbone.fpn"),
        ("_hypernet", [], f"{NO_PLACE}backbone.hyper"),
        ("_hypernet", ["MODEL.PAPER_RCNN.PHASE", "rpn"], f"{NO_PLACE}backbone.hyper"),
        ("_joint", ["MODEL.PAPER_VGG.NORM", "BN"], f"{NO_PLACE}backbone.conv1.bn1_1"),
        ("_joint", ["MODEL.PAPER_VGG.NORM", "FrozenBN"], f"{NO_PLACE}backbone.conv1.bn1_1"),
        ("_joint", ["MODEL.RPN.HEAD_NAME", "StandardRPNHead"], f"{NO_PLACE}proposal_generator"),
        ("_joint", ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"], f"{OTHER}ROI_BOX_HEAD.POOLER"),
        (
            "_joint",
            [*CONV4, "MODEL.RPN.IN_FEATURES", ["conv4"]],
            f"{OTHER}RPN.IN_FEATURES .'conv4'",
        ),
        (
            "_joint",
            [*CONV4, "MODEL.ROI_HEADS.IN_FEATURES", ["conv4"]],
            f"{OTHER}ROI_HEADS.IN_FEATURES",
        ),
        ("_joint", ["MODEL.PIXEL_STD", [10.0, 10.0, 10.0]], f"{OTHER}PIXEL_STD"),
        ("_joint", ["INPUT.FORMAT", "RGB"], "the detector has INPUT.FORMAT RGB, .* have BGR"),
    ],
)
def test_back_from_another_network(demo: str, opts: list[object], message: str) -> None:
    """Also from one whose weights have the same names and shapes: the config tells."""
    cfg = plugin_cfg()
    load_config_file(cfg, f"frcnn://demo/vgg16_shapes{demo}.yaml")
    narrow = ["MODEL.PAPER_VGG.CHANNELS", [8] * 5, "MODEL.ROI_BOX_HEAD.FC_DIM", 8]
    images = ["MODEL.PIXEL_STD", [1.0] * 3, "MODEL.DEVICE", "cpu"]
    cfg.merge_from_list([*narrow, *images, *opts])
    metadata = Metadata("detector", config=cfg.dump())
    state = build_model(cfg).state_dict()
    if message:
        with pytest.raises(UserError, match=message):
            convert_to_caffe(state, metadata)
    else:
        assert {"conv5_3", "rpn_bbox_pred", "bbox_pred"} <= set(
            convert_to_caffe(state, metadata)[0]
        )


def test_back_from_images_that_caffe_has_not() -> None:
    """Weights of another program have no config, but say which images they expect."""
    result = convert_torchvision(networks.torchvision_vgg16(), TORCHVISION)
    with pytest.raises(UserError, match=r"has INPUT\.FORMAT RGB, but .* have BGR"):
        convert_to_caffe(result.state_dict, result.metadata)


def test_names_of_the_matlab_code() -> None:
    """The same RPN, which would be left out."""
    layers = networks.detector(networks.vgg16(), classes=2, rpn_conv="rpn_conv/3x3")
    names = {
        "rpn_conv/3x3": "conv_proposal1",
        "rpn_cls_score": "proposal_cls_score",
        "rpn_bbox_pred": "proposal_bbox_pred",
    }
    only_rpn = without(layers, "cls_score", "bbox_pred", "fc6", "fc7")
    result = convert_caffe({names.get(name, name): blobs for name, blobs in only_rpn.items()})
    assert (result.network, result.metadata.kind, result.unused) == ("VGG16, RPN", "detector", [])
    expected = convert_caffe(only_rpn).state_dict
    assert result.state_dict.keys() == expected.keys()
    assert all(torch.equal(result.state_dict[name], tensor) for name, tensor in expected.items())
