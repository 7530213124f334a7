"""A detector from its weights alone, and what it was made from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from frcnn_plugin.checkpoint import (
    Metadata,
    convert_to_caffe,
    read_weights,
    save_weights,
    write_caffemodel,
)
from frcnn_plugin.checkpoint.conversion import Conversion
from frcnn_plugin.checkpoint.metadata import CAFFE, KEY
from frcnn_plugin.engine import FasterRCNNPredictor
from frcnn_plugin.engine.checkpointer import AtomicCheckpointer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.roi_features import detect_with_features
from tests.random_detector import random_detector, squares

CLASSES = ("cat", "dog", "bird")
BOXES = [[10.0, 20.0, 90.5, 70.0], [0.0, 0.0, 150.0, 100.0], [40.0, 30.0, 41.0, 33.5]]


@pytest.fixture(scope="module")
def named_set() -> str:
    MetadataCatalog.get("predictor_test").thing_classes = list(CLASSES)
    return "predictor_test"


SMALL = ("INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 192, "MODEL.RPN.MIN_SIZE_IMAGE", 4.0)


@pytest.fixture
def save(tiny_cfg: Callable, tmp_path: Path, named_set: str) -> Callable[..., str]:
    """A function that writes a checkpoint of random weights; overrides of its config."""

    def write(*opts: object, name: str = "model_final", **content: object) -> str:
        cfg = tiny_cfg(*SMALL, *opts)
        if "DATASETS.TRAIN" not in opts:
            cfg.DATASETS.TRAIN = (named_set,)
        AtomicCheckpointer(random_detector(cfg), str(tmp_path), cfg=cfg).save(name, **content)
        return str(tmp_path / f"{name}.pth")

    return write


@pytest.fixture
def predictor(save: Callable) -> FasterRCNNPredictor:
    return FasterRCNNPredictor(save(), device="cpu")


def same(a: Instances, b: Instances, tolerance: float = 1e-5) -> None:
    assert a.image_size == b.image_size
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
    assert torch.equal(a.pred_classes, b.pred_classes)


def test_weights_alone(predictor: FasterRCNNPredictor) -> None:
    assert predictor.class_names == CLASSES
    assert predictor.cfg.MODEL.VGG.CHANNELS == [4, 4, 8, 8, 8]
    assert predictor.cfg.DATASETS.TRAIN == predictor.cfg.DATASETS.TEST == ()
    assert not predictor.model.training
    result = predictor(squares(100, 150))
    assert result.image_size == (100, 150) and len(result) > 3
    assert result.scores.device.type == "cpu" and (result.scores.diff() <= 0).all()
    boxes = result.pred_boxes.tensor
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 150 and boxes[:, 3].max() <= 100
    assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_equals_the_hosts_predictor(predictor: FasterRCNNPredictor) -> None:
    host = DefaultPredictor(predictor.cfg)
    for image in (squares(100, 150), squares(97, 61, 1), squares(400, 300, 2)):
        same(predictor(image), host(image)["instances"])


def test_batch_of_several_sizes_equals_one_by_one(predictor: FasterRCNNPredictor) -> None:
    images = [squares(100, 150, 0), squares(97, 61, 1), squares(100, 150, 2), squares(300, 301, 3)]
    one_by_one = [predictor(image) for image in images]
    for features in (False, True):
        results = predictor.predict(images, features=features)
        for a, b in zip(results, one_by_one, strict=True):
            same(a, b)
    assert predictor.predict([]) == []


def test_paths_and_rgb_arrays(predictor: FasterRCNNPredictor, tmp_path: Path) -> None:
    image = squares(100, 150)
    path = tmp_path / "a.png"
    Image.fromarray(image[:, :, ::-1]).save(path)
    expected = predictor(image)
    for a in predictor.predict([path, str(path)]):
        same(a, expected)
    same(predictor(image[:, :, ::-1], image_format="RGB"), expected)
    different = predictor(image, image_format="RGB")
    assert len(different) != len(expected) or not torch.equal(different.scores, expected.scores)


def test_rgb_network_gets_rgb(save: Callable) -> None:
    """The same weights, but the config says RGB: reversed pictures look the same to it."""
    bgr = FasterRCNNPredictor(save())
    rgb = FasterRCNNPredictor(save("INPUT.FORMAT", "RGB", name="rgb"), device="cpu")
    image = squares(100, 150)
    same(rgb(image[:, :, ::-1]), bgr(image))


def test_features_say_what_a_detection_was_made_from(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    result = predictor(image, features=True)
    same(result, predictor(image))
    number = len(result)
    assert result.fc7.shape == (number, 16) and result.scores_all.shape == (number, 4)
    # Classifying the features again gives the scores, and the detection's score is one of them.
    again = predictor.model.roi_heads.box_predictor.cls_score(result.fc7).softmax(dim=1)
    torch.testing.assert_close(again, result.scores_all, rtol=0, atol=1e-6)
    own = result.scores_all.gather(1, result.pred_classes[:, None]).squeeze(1)
    torch.testing.assert_close(own, result.scores, rtol=0, atol=1e-6)
    # The index is a row of the proposals.
    proposals = predictor.propose([image])[0]
    index = result.proposal_index
    assert index.dtype == torch.int64 and len(set(index.tolist())) > 1
    torch.testing.assert_close(
        result.proposal_boxes.tensor, proposals.proposal_boxes.tensor[index], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(result.objectness, proposals.objectness[index], rtol=0, atol=1e-6)
    assert (proposals.objectness.diff() <= 0).all()
    assert 0 <= proposals.objectness.min() < 0.1 and 0.9 < proposals.objectness.max() <= 1


@pytest.mark.parametrize("pooler", ["ROIPool", "ROIAlignV2"])
@pytest.mark.parametrize("size", [(100, 150), (97, 61), (333, 500)])
def test_own_boxes_have_the_features_of_equal_proposals(
    save: Callable, pooler: str, size: tuple[int, int]
) -> None:
    """1e-4 of the largest feature: boxes travel to original pixels and back."""
    predictor = FasterRCNNPredictor(save("MODEL.ROI_BOX_HEAD.POOLER_TYPE", pooler), device="cpu")
    image = squares(*size)
    detected = predictor(image, features=True)
    given = predictor.extract(image, detected.proposal_boxes.tensor)
    tolerance = 1e-4 * float(detected.fc7.max())
    torch.testing.assert_close(given.fc7, detected.fc7, rtol=0, atol=tolerance)
    torch.testing.assert_close(given.scores_all, detected.scores_all, rtol=0, atol=1e-4)
    assert torch.equal(given.proposal_boxes.tensor, detected.proposal_boxes.tensor)


def test_extract_keeps_order_and_number(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    result = predictor.extract(image, BOXES)
    assert result.image_size == (100, 150)
    assert result.proposal_boxes.tensor.tolist() == BOXES
    turned = predictor.extract(image, np.array(BOXES[::-1] * 2))
    expected = result.fc7.flip(0).repeat(2, 1)
    torch.testing.assert_close(turned.fc7, expected, rtol=0, atol=1e-5 * float(expected.max()))
    assert (result.fc7[0] - result.fc7[1]).abs().max() > 1e-3
    torch.testing.assert_close(result.scores_all.sum(dim=1), torch.ones(3))
    empty = predictor.extract(image, [])
    assert empty.fc7.shape == (0, 16) and empty.scores_all.shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([*BOXES, [5, 5, 5, 9]], r"box 3, \[5.0, 5.0, 5.0, 9.0\], has no area: boxes are x1 y1"),
        ([[1, 9, 5, 2]], r"box 0, .* has no area"),
        ([[0, 0, 5, 5], [0, 0, float("nan"), 5]], r"box 1, .* has no area"),
        ([[150, 0, 160, 9]], r"box 0, .* lies outside the image, which is 150 x 100 pixels"),
        ([1, 2, 3, 4], "boxes must be rows of four numbers, x1 y1 x2 y2"),
        ([["a", 2, 3, 4]], "boxes must be rows of four numbers, x1 y1 x2 y2"),
    ],
)
def test_wrong_boxes(predictor: FasterRCNNPredictor, boxes: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.extract(squares(100, 150), boxes)


def test_no_proposals_and_no_detections(save: Callable) -> None:
    predictor = FasterRCNNPredictor(save("MODEL.RPN.MIN_SIZE_IMAGE", 1e4), device="cpu")
    result = predictor(squares(100, 150), features=True)
    assert len(result) == 0 and result.fc7.shape == (0, 16)
    assert len(predictor.propose([squares(100, 150)])[0]) == 0
    strict = FasterRCNNPredictor(save(), score_threshold=1.0)
    assert len(strict(squares(100, 150), features=True)) == len(strict(squares(100, 150))) == 0


def test_threshold_device_and_overrides(save: Callable, tmp_path: Path) -> None:
    path = save()
    low = FasterRCNNPredictor(path, score_threshold=0.0)(squares(100, 150))
    limit = float(low.scores.median())
    high = FasterRCNNPredictor(path, score_threshold=limit)(squares(100, 150))
    assert 0 < len(high) < len(low) and high.scores.min() > limit
    opts = ["TEST.DETECTIONS_PER_IMAGE", "1", "TEST.KEEP_TIES", "False"]
    one = FasterRCNNPredictor(path, opts=opts, device="cpu")
    assert one.cfg.TEST.DETECTIONS_PER_IMAGE == 1 and len(one(squares(100, 150))) <= 1
    (tmp_path / "own.yaml").write_text("MODEL:\n  WEIGHTS: other.pth\n")
    with pytest.raises(UserError, match="was trained on other images than the config makes"):
        FasterRCNNPredictor(path, str(tmp_path / "own.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_cuda_the_cpu(save: Callable, caplog: pytest.LogCaptureFixture) -> None:
    path = save("MODEL.DEVICE", "cpu")
    with caplog.at_level(logging.WARNING):
        assert FasterRCNNPredictor(path, device="cuda").cfg.MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is cuda but there is no CUDA: using the CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_what_the_cpu_gives(save: Callable) -> None:
    path, image = save(), squares(100, 150)
    cpu = FasterRCNNPredictor(path, device="cpu").extract(image, BOXES)
    cuda = FasterRCNNPredictor(path, device="cuda")
    assert cuda(image, features=True).fc7.device.type == "cpu"
    result = cuda.extract(image, BOXES)
    torch.testing.assert_close(result.fc7, cpu.fc7, rtol=1e-2, atol=1e-2)


def test_autocast_and_compiled_parts(predictor: FasterRCNNPredictor) -> None:
    image = squares(100, 150)
    full = predictor.extract(image, BOXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = predictor.extract(image, BOXES)
        assert len(predictor(image, features=True)) > 0
    assert half.fc7.dtype == half.scores_all.dtype == torch.float32
    assert not torch.equal(half.fc7, full.fc7)  # bfloat16 has 8 bits
    torch.testing.assert_close(half.fc7, full.fc7, rtol=0, atol=0.05 * float(full.fc7.max()))
    predictor.model.roi_heads.box_head = torch.compile(
        predictor.model.roi_heads.box_head, backend="eager"
    )
    torch.testing.assert_close(predictor.extract(image, BOXES).fc7, full.fc7)


def test_a_config_of_another_version(save: Callable) -> None:
    """Unknown keys in a checkpoint do no harm; mistyped overrides are found all the same."""
    path = save()
    content = torch.load(path, weights_only=True)
    content[KEY]["config"] += "FROM_THE_FUTURE: 1\n"
    torch.save(content, path)
    assert len(FasterRCNNPredictor(path, device="cpu")(squares(100, 150))) > 0
    with pytest.raises(UserError, match=r"the command line: Non-existent key: MODEL.DEVIC"):
        FasterRCNNPredictor(path, opts=["MODEL.DEVIC", "cpu"])


def test_class_names(save: Callable, caplog: pytest.LogCaptureFixture) -> None:
    path = save("DATASETS.TRAIN", "('nowhere',)")
    with caplog.at_level(logging.WARNING):
        assert FasterRCNNPredictor(path).class_names == ("class 1", "class 2", "class 3")
    assert (
        f"{path} does not name its 3 classes; tools/convert_weights.py --classes adds names"
        in caplog.text
    )
    path = save("MODEL.ROI_HEADS.NUM_CLASSES", 20, "DATASETS.TRAIN", "('voc07_test',)")
    assert FasterRCNNPredictor(path).class_names[0] == "aeroplane"


def test_weights_without_config(tiny_cfg: Callable, tmp_path: Path) -> None:
    """As converted from the authors' release: classes and preprocessing, no config."""
    cfg = tiny_cfg(*SMALL)
    model = random_detector(cfg)
    path = str(tmp_path / "released.pth")
    conversion = Conversion(
        "detector", model.state_dict(), Metadata("detector", CAFFE, CLASSES), []
    )
    save_weights(path, conversion)
    with pytest.raises(UserError) as caught:
        FasterRCNNPredictor(path)
    assert str(caught.value) == (
        f"{path} carries no config: give the one that it was trained with (--config-file, or "
        "config_file in Python); for the detectors that the authors released it is in "
        "configs/released"
    )
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    predictor = FasterRCNNPredictor(path, str(config))
    assert predictor.class_names == CLASSES and len(predictor(squares(100, 150))) > 0


def test_a_caffemodel(tiny_cfg: Callable, save: Callable, tmp_path: Path) -> None:
    """As the authors released them, but tiny: three classes, whose names it cannot hold."""
    content = read_weights(save())
    path, config = tmp_path / "released.caffemodel", tmp_path / "config.yaml"
    write_caffemodel(path, convert_to_caffe(content.state_dict, content.metadata)[0])
    config.write_text(tiny_cfg(*SMALL).dump())
    predictor = FasterRCNNPredictor(path, str(config))
    image = squares(100, 150)
    same(predictor(image), FasterRCNNPredictor(save())(image), tolerance=1e-4)
    with pytest.raises(UserError, match=r"released.caffemodel carries no config: give the one"):
        FasterRCNNPredictor(path)


def test_a_pickle_of_the_host_needs_a_config(tmp_path: Path) -> None:
    path = tmp_path / "model_final_721ade.pkl"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match=r"721ade.pkl carries no config: give the one"):
        FasterRCNNPredictor(path)


def test_wrong_files(save: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file no.pth"):
        FasterRCNNPredictor("no.pth")
    path = Path(save())
    damaged = tmp_path / "half.pth"
    damaged.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"half.pth is damaged, or holds more than weights"):
        FasterRCNNPredictor(damaged)
    content = torch.load(path, weights_only=True)
    content[KEY]["config"] = "MODEL: [1, 2"
    torch.save(content, damaged)
    with pytest.raises(UserError, match=r"(?s)config in .*half.pth cannot be used .* --config-fil"):
        FasterRCNNPredictor(damaged)
    content[KEY] = {"kind": "imagenet"}
    torch.save(content, damaged)
    with pytest.raises(UserError, match=r"half.pth holds weights of ImageNet, where training star"):
        FasterRCNNPredictor(damaged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 50}, "the score threshold is 50: it must be from 0 to 1"),
        ({"device": "gpu"}, "there is no device 'gpu': give cpu, cuda or cuda:1"),
        ({"opts": ["INPUT.FORMAT", "L"]}, "INPUT.FORMAT is L: pictures are BGR or RGB"),
        ({"opts": ["INPUT.FORMAT"]}, "overrides come as KEY VALUE pairs, but there are 1 words"),
    ],
)
def test_wrong_arguments(save: Callable, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FasterRCNNPredictor(save(), **arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"image 1 is an array of float64 \(4, 4, 3\): needed is uint8"),
        (np.zeros((4, 4), np.uint8), r"image 1 is an array of uint8 \(4, 4\): needed is"),
        (np.zeros((0, 4, 3), np.uint8), r"image 1 is an array of uint8 \(0, 4, 3\)"),
        ("missing.jpg", r"there is no file missing.jpg"),
    ],
)
def test_wrong_images(predictor: FasterRCNNPredictor, image: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict([squares(40, 40), image])


def test_wrong_format(predictor: FasterRCNNPredictor) -> None:
    with pytest.raises(UserError, match="image_format is 'rgb': use BGR or RGB"):
        predictor(squares(40, 40), image_format="rgb")


def trainer_state(step: int) -> dict:
    return {"hooks": {"FourStepHook": {"step": step}}}


@pytest.mark.parametrize("step", [0, 1, 3])  # 0: trained with PHASE rpn
def test_region_proposal_network(save: Callable, step: int) -> None:
    opts = () if step else ("MODEL.PAPER_RCNN.PHASE", "rpn")
    path = save(*opts, trainer=trainer_state(step))
    predictor = FasterRCNNPredictor(path, device="cpu")
    with pytest.raises(UserError) as caught:
        predictor(squares(100, 150))
    assert str(caught.value) == (
        f"{path} is a region proposal network and detects nothing: give the checkpoint of a whole "
        "detector (steps 1 to 3 of a four-step run leave half of a detector; the last one's is "
        "model_final.pth). Its proposals: FasterRCNNPredictor.propose, or tools/dump_proposals.py"
    )
    with pytest.raises(UserError, match=r"is a region proposal network: it has no trained fc7"):
        predictor.extract(squares(100, 150), BOXES)
    [proposals] = predictor.propose([squares(100, 150)])
    assert proposals.image_size == (100, 150) and len(proposals) > 3
    assert proposals.proposal_boxes.tensor[:, 2].max() <= 150


@pytest.mark.parametrize("step", [0, 2])  # 0: Fast R-CNN
def test_detector_that_is_given_proposals(save: Callable, step: int) -> None:
    opts = () if step else ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    if not step:
        opts = (*opts, "MODEL.PAPER_RCNN.PHASE", "fast_rcnn", "MODEL.LOAD_PROPOSALS", True)
    path = save(*opts, trainer=trainer_state(step))
    predictor = FasterRCNNPredictor(path, device="cpu")
    with pytest.raises(UserError) as caught:
        predictor(squares(100, 150))
    assert str(caught.value) == (
        f"{path} is a detector that is given its proposals: give the checkpoint of a whole one "
        "(steps 1 to 3 of a four-step run leave half of a detector; the last one's is "
        "model_final.pth). Features of given boxes: FasterRCNNPredictor.extract, or --boxes of "
        "tools/predict.py; its average precision: tools/train_net.py --eval-only"
    )
    with pytest.raises(UserError, match=r"detects on proposals that it is given and makes none"):
        predictor.propose([squares(100, 150)])
    assert len(predictor.extract(squares(100, 150), BOXES)) == 3


def stock_cfg(*opts: object) -> CfgNode:
    """A stock Detectron2 model, as small as it gets: no key of ours is used."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, *opts),
        ]
    )
    return cfg


ONE_LAYER = (
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 9),
)


@pytest.mark.parametrize(
    ("opts", "width"),
    [
        ((), 128),  # Res5ROIHeads
        (("MODEL.ROI_HEADS.NAME", "StandardROIHeads", *ONE_LAYER), 9),
    ],
)
def test_stock_models(tmp_path: Path, opts: tuple, width: int) -> None:
    """With a config file, as nothing of Detectron2's own carries one."""
    cfg = stock_cfg(*opts)
    torch.manual_seed(0)
    path, config = tmp_path / "stock.pth", tmp_path / "stock.yaml"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    config.write_text(cfg.dump())
    predictor = FasterRCNNPredictor(path, str(config), score_threshold=0.0)
    image = squares(60, 90)
    detected = predictor(image, features=True)
    same(detected, predictor(image))
    assert len(detected) and detected.fc7.shape[1] == width
    given = predictor.extract(image, detected.proposal_boxes.tensor)
    torch.testing.assert_close(given.fc7, detected.fc7, rtol=1e-3, atol=1e-3)


def test_heads_without_one_feature_vector(tmp_path: Path) -> None:
    agnostic = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    cfg = stock_cfg("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *agnostic, *ONE_LAYER)
    path, config = tmp_path / "cascade.pth", tmp_path / "cascade.yaml"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    config.write_text(cfg.dump())
    predictor = FasterRCNNPredictor(path, str(config))
    predictor(squares(60, 90))
    with pytest.raises(UserError, match=r"CascadeROIHeads has not one feature vector per box: f"):
        predictor(squares(60, 90), features=True)


def test_another_family(tmp_path: Path) -> None:
    cfg = stock_cfg(
        *(
            "MODEL.META_ARCHITECTURE",
            "RetinaNet",
            "MODEL.FPN.IN_FEATURES",
            ["res3", "res4", "res5"],
        ),
        *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
    )
    path, config = tmp_path / "retina.pth", tmp_path / "retina.yaml"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    config.write_text(cfg.dump())
    with pytest.raises(UserError, match=r"RetinaNet has neither proposals nor ROI heads: a model"):
        FasterRCNNPredictor(path, str(config))


def test_index_counts_proposals_that_are_not_finite(predictor: FasterRCNNPredictor) -> None:
    """The host drops them and numbers the rest anew."""
    heads = predictor.model.roi_heads
    maps = {"conv5": torch.rand(1, 8, 9, 12)}
    proposals = Instances((128, 192), proposal_boxes=Boxes(torch.tensor(BOXES)))
    proposals.objectness_logits = torch.zeros(3)
    decode = heads.box_predictor.predict_boxes

    def first_is_infinite(*args: object) -> list[torch.Tensor]:
        boxes = decode(*args)
        boxes[0][0] = float("inf")
        return boxes

    heads.box_predictor.predict_boxes = first_is_infinite
    with torch.no_grad():
        [result] = detect_with_features(heads, maps, [proposals])
    assert set(result.proposal_index.tolist()) == {1, 2}
    own = result.scores_all.gather(1, result.pred_classes[:, None]).squeeze(1)
    torch.testing.assert_close(own, result.scores)
