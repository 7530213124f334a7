"""A detector from its weights alone: detections of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

from frcnn_plugin.data import build_mapper
from frcnn_plugin.errors import UserError
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.predict.saved_detectors import CLASSES, assert_same
from tests.random_detector import squares


def test_weights_alone(predictor: FasterRCNNPredictor) -> None:
    assert predictor.class_names == CLASSES
    assert predictor.cfg.MODEL.PAPER_VGG.CHANNELS == [4, 4, 8, 8, 8]
    assert predictor.cfg.DATASETS.TRAIN == predictor.cfg.DATASETS.TEST == ()
    assert not predictor.model.training
    result = predictor(squares(100, 150))
    assert result.image_size == (100, 150) and len(result) > 3
    assert result.scores.device.type == "cpu" and (result.scores.diff() <= 0).all()
    boxes = result.pred_boxes.tensor
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 150 and boxes[:, 3].max() <= 100
    assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_equals_detectron2s_predictor(predictor: FasterRCNNPredictor) -> None:
    host = DefaultPredictor(predictor.cfg)
    for image in (squares(100, 150), squares(97, 61, 1), squares(400, 300, 2)):
        assert_same(predictor(image), host(image)["instances"])


def test_batch_of_several_sizes_equals_one_by_one(predictor: FasterRCNNPredictor) -> None:
    images = [squares(100, 150, 0), squares(97, 61, 1), squares(100, 150, 2), squares(300, 301, 3)]
    one_by_one = [predictor(image) for image in images]
    for features in (False, True):
        results = predictor.predict(images, features=features)
        for a, b in zip(results, one_by_one, strict=True):
            assert_same(a, b)
    assert predictor.predict([]) == []


def test_paths_and_rgb_arrays(predictor: FasterRCNNPredictor, tmp_path: Path) -> None:
    image = squares(100, 150)
    path = tmp_path / "a.png"
    Image.fromarray(image[:, :, ::-1]).save(path)
    expected = predictor(image)
    for a in predictor.predict([path, str(path)]):
        assert_same(a, expected)
    assert_same(predictor(image[:, :, ::-1], image_format="RGB"), expected)
    different = predictor(image, image_format="RGB")
    assert len(different) != len(expected) or not torch.equal(different.scores, expected.scores)


def test_rgb_network_gets_rgb(save_detector: Callable) -> None:
    """The same weights, but the config says RGB: reversed pictures look the same to it."""
    bgr = FasterRCNNPredictor(save_detector())
    rgb = FasterRCNNPredictor(save_detector("INPUT.FORMAT", "RGB", name="rgb"), device="cpu")
    image = squares(100, 150)
    assert_same(rgb(image[:, :, ::-1]), bgr(image))


def test_no_proposals_and_no_detections(save_detector: Callable) -> None:
    predictor = FasterRCNNPredictor(save_detector("MODEL.RPN.MIN_SIZE_IMAGE", 1e4), device="cpu")
    result = predictor(squares(100, 150), features=True)
    assert len(result) == 0 and result.fc7.shape == (0, 16)
    assert len(predictor.propose([squares(100, 150)])[0]) == 0
    strict = FasterRCNNPredictor(save_detector(), score_threshold=1.0)
    assert len(strict(squares(100, 150), features=True)) == len(strict(squares(100, 150))) == 0


def test_threshold_device_and_overrides(save_detector: Callable, tmp_path: Path) -> None:
    path = save_detector()
    low = FasterRCNNPredictor(path, score_threshold=0.0)(squares(100, 150))
    limit = float(low.scores.median())
    high = FasterRCNNPredictor(path, score_threshold=limit)(squares(100, 150))
    assert 0 < len(high) < len(low) and high.scores.min() > limit
    opts = ["TEST.DETECTIONS_PER_IMAGE", "1", "TEST.KEEP_TIES", "False"]
    one = FasterRCNNPredictor(path, opts=opts, device="cpu")
    assert one.cfg.TEST.DETECTIONS_PER_IMAGE == 1 and len(one(squares(100, 150))) <= 1
    (tmp_path / "own.yaml").write_text("MODEL:\n  WEIGHTS: other.pth\n")
    with pytest.raises(UserError, match="expects other images than the config makes"):
        FasterRCNNPredictor(path, str(tmp_path / "own.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_without_cuda_the_cpu(save_detector: Callable, caplog: pytest.LogCaptureFixture) -> None:
    path = save_detector("MODEL.DEVICE", "cpu")
    with caplog.at_level(logging.WARNING):
        assert FasterRCNNPredictor(path, device="cuda").cfg.MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is cuda but there is no CUDA: using the CPU" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 50}, "the score threshold is 50: it must be from 0 to 1"),
        ({"device": "gpu"}, "there is no device 'gpu': give cpu, cuda or cuda:1"),
        (
            {"opts": ["INPUT.FORMAT"]},
            "has no value, it is the last word: overrides are pairs, KEY VALUE",
        ),
    ],
)
def test_wrong_arguments(save_detector: Callable, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FasterRCNNPredictor(save_detector(), **arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"image 1 is an array of float64 \(4, 4, 3\): give uint8"),
        (np.zeros((4, 4), np.uint8), r"image 1 is an array of uint8 \(4, 4\): give"),
        (np.zeros((0, 4, 3), np.uint8), r"image 1 is an array of uint8 \(0, 4, 3\)"),
        ("missing.jpg", r"there is no file missing.jpg"),
    ],
)
def test_wrong_images(predictor: FasterRCNNPredictor, image: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict([squares(40, 40), image])


def test_images_of_pillow(predictor: FasterRCNNPredictor, tmp_path: Path) -> None:
    """Their colours are known: nobody has to say RGB. An orientation counts as in the file."""
    image = squares(100, 150)
    pillow = Image.fromarray(image[:, :, ::-1])
    expected = predictor(image)
    assert_same(predictor(pillow), expected)
    assert_same(predictor(pillow, image_format="RGB"), expected)
    exif = Image.Exif()
    exif[0x0112] = 8
    pillow.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "a.png", exif=exif)
    for turned in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert_same(predictor(turned), expected)
    cut = (tmp_path / "a.png").read_bytes()[:-40]
    (tmp_path / "a.png").write_bytes(cut)
    with pytest.raises(UserError, match=r"image 0 cannot be read as an image"):
        predictor(Image.open(tmp_path / "a.png"))


def test_one_image_is_a_list_of_it(predictor: FasterRCNNPredictor, tmp_path: Path) -> None:
    image = squares(100, 150)
    path = tmp_path / "a.png"
    Image.fromarray(image[:, :, ::-1]).save(path)
    for one in (path, str(path), image, Image.open(path)):
        [found] = predictor.predict(one)
        assert_same(found, predictor(image))
    [proposals] = predictor.propose(str(path))
    assert proposals.image_size == (100, 150)
    with pytest.raises(UserError, match=r"there is no file x\.jpg"):
        predictor.predict("x.jpg")


def test_a_side_that_would_be_0_pixels(predictor: FasterRCNNPredictor, tmp_path: Path) -> None:
    Image.new("RGB", (2, 3000)).save(tmp_path / "strip.png")
    with pytest.raises(UserError, match=r"strip.png: 2 x 3000 pixels cannot be resized as INPUT"):
        predictor(tmp_path / "strip.png")
    with pytest.raises(UserError, match=r"^image 1: 3000 x 2 pixels cannot be resized"):
        predictor.predict([squares(40, 40), np.zeros((2, 3000, 3), np.uint8)])


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_draw(predictor: FasterRCNNPredictor, image_format: str) -> None:
    image = squares(500, 600)
    found = predictor(image, image_format=image_format)
    found.scores[0] = 1.0
    picture = predictor.draw(image, found, image_format=image_format)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture != image).any(axis=2).mean() < 0.5  # boxes and labels, the rest as it was
    assert (picture != image).any()
    assert (predictor.draw(image, found, score_threshold=1.1) == image).all()
    alone = predictor.draw(image, score_threshold=0.0, image_format=image_format)
    assert (alone != image).any()


def test_repr(predictor: FasterRCNNPredictor) -> None:
    text = repr(predictor)
    assert "model_final.pth" in text and f"{len(CLASSES)} classes" in text and "cpu" in text


@pytest.mark.parametrize("image_format", ["L", "YUV-BT.601", "CMYK"])
def test_other_formats(save_detector: Callable, tmp_path: Path, image_format: str) -> None:
    """What trains detects: as the mapper reads it, from files, arrays and Pillow alike."""
    channels = {"L": 1, "CMYK": 4}.get(image_format, 3)
    opts = ["INPUT.FORMAT", image_format, "MODEL.DEVICE", "cpu"]
    for key, value in (("MEAN", 0.0), ("STD", 1.0)):
        opts += [f"MODEL.PIXEL_{key}", [value] * channels]
    predictor = FasterRCNNPredictor(save_detector(*opts, name=image_format[0]))
    image = squares(100, 150)
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 0}
    entry = build_mapper(predictor.cfg, is_train=False)(record)
    assert len(entry["image"]) == channels
    expected = predictor.model([{**entry, "image": entry["image"].float()}])[0]["instances"]
    pillow = Image.open(tmp_path / "a.png")
    for given in (tmp_path / "a.png", image, pillow):
        assert_same(predictor(given), expected)
    assert predictor.draw(image).shape == (320, 480, 3)


def test_six_channels(save_detector: Callable, tmp_path: Path) -> None:
    opts = ["MODEL.PIXEL_MEAN", [0.0] * 6, "MODEL.PIXEL_STD", [1.0] * 6, "INPUT.RESIZE", "opencv"]
    predictor = FasterRCNNPredictor(save_detector(*opts, name="six"), device="cpu")
    image = np.concatenate([squares(100, 150), squares(100, 150, 1)], axis=2)
    assert predictor(image).image_size == (100, 150)
    with pytest.raises(UserError, match=r"takes 6 channels .* give arrays of uint8 .*width, 6"):
        predictor(squares(100, 150))
    pillow = FasterRCNNPredictor(predictor._weights, opts=["INPUT.RESIZE", "pillow"], device="cpu")
    with pytest.raises(UserError, match=r"image 0: INPUT.RESIZE pillow cannot .* 6 channels"):
        pillow(image)


def test_wrong_format(predictor: FasterRCNNPredictor) -> None:
    with pytest.raises(UserError, match="image_format is 'rgb': use one of BGR, RGB"):
        predictor(squares(40, 40), image_format="rgb")
