"""py-faster-rcnn's resizing: E7 (docs/worked_examples.md), its arithmetic by hand, its sizes."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from frcnn_plugin import get_config_file
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.data.loading.resize import (
    FloatResizeShortestEdge,
    FloatResizeTransform,
    with_resize,
)


@pytest.mark.parametrize(
    ("size", "new", "factor"),
    [
        ((375, 500), (600, 800), 1.6),
        ((333, 500), (600, 901), 600 / 333),
        ((300, 500), (600, 1000), 2.0),
        ((299, 500), (598, 1000), 2.0),
        ((200, 500), (400, 1000), 2.0),
        ((400, 503), (600, 754), 1.5),  # 754.5; Detectron2: 755
        ((1200, 2001), (600, 1000), 0.5),  # 1000.5 rounds to 1000: not limited
        ((1200, 900), (800, 600), 2 / 3),
    ],
)
def test_sizes_e7(size: tuple[int, int], new: tuple[int, int], factor: float) -> None:
    transform = FloatResizeShortestEdge(600, 1000).get_transform(np.zeros((*size, 3), np.uint8))
    assert transform.apply_image(np.zeros((*size, 3), np.uint8)).shape == (*new, 3)
    assert transform.factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (600, 800)),
        ((333, 500), (600, 901)),
        ((300, 500), (600, 1000)),
        ((299, 500), (598, 1000)),
        ((200, 500), (400, 1000)),
    ],
)
def test_sizes_of_detectron2_e7(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """By Detectron2's resize, with the numbers of the presets."""
    cfg = plugin_cfg()
    cfg.merge_from_file(get_config_file("Base-PyEnd2End.yaml"))
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice")
    transform = resize.get_transform(np.zeros((*size, 3), dtype=np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def bilinear(image: np.ndarray, factor: float, height: int, width: int) -> np.ndarray:
    """By the rule: sample at (x + 0.5) / factor - 0.5, clamped to the image."""

    def along(n: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(new) + 0.5) / factor - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 1)
        return low, np.minimum(low + 1, n - 1), at - low

    top, bottom, fy = along(image.shape[0], height)
    left, right, fx = along(image.shape[1], width)
    fx, fy = fx[None, :, None], fy[:, None, None]
    upper = image[top][:, left] * (1 - fx) + image[top][:, right] * fx
    lower = image[bottom][:, left] * (1 - fx) + image[bottom][:, right] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize(("height", "width", "factor"), [(33, 50, 600 / 333), (60, 45, 0.37)])
def test_pixels_as_of_the_original(height: int, width: int, factor: float) -> None:
    """Subtracting the mean before, as in the originals, or after is the same."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mean = np.array([102.9801, 115.9465, 122.7717])
    transform = FloatResizeTransform(height, width, factor)
    ours = transform.apply_image(image)
    assert ours.dtype == np.float32
    expected = bilinear(image - mean, factor, transform.new_h, transform.new_w)
    assert np.abs(ours - mean - expected).max() < 0.02


def test_pillow_is_something_else() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 45, 3)).astype(np.uint8)
    ours = FloatResizeTransform(60, 45, 0.37).apply_image(image)
    host = T.ResizeTransform(60, 45, *ours.shape[:2]).apply_image(image)
    assert np.abs(ours - host).max() > 10


def test_grey_images_and_segmentations() -> None:
    transform = FloatResizeTransform(4, 6, 2.0)
    assert transform.apply_image(np.zeros((4, 6, 1), np.uint8)).shape == (8, 12, 1)
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert set(transform.apply_segmentation(labels).flatten()) == set(range(24))
    assert transform.apply_box(np.array([[1.0, 1, 3, 4]])).tolist() == [[2, 2, 6, 8]]


def config(resize: str) -> CfgNode:
    cfg = plugin_cfg()
    cfg.INPUT.RESIZE = resize
    return cfg


def test_only_the_resize_is_replaced() -> None:
    flip = T.RandomFlip()
    host = [T.ResizeShortestEdge((480, 600), 1000, "choice"), flip]
    ours = with_resize(config("opencv"), host)
    assert type(ours[0]) is FloatResizeShortestEdge and ours[1] is flip
    assert (tuple(ours[0].short_edge_length), ours[0].max_size) == ((480, 600), 1000)
    assert with_resize(config("pillow"), host) == host


def test_a_range_of_sizes_and_none() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    np.random.seed(0)
    ranged = FloatResizeShortestEdge((50, 60), 1000, "range")
    heights = {ranged.get_transform(image).new_h for _ in range(100)}
    assert min(heights) == 50 and max(heights) == 60
    assert FloatResizeShortestEdge(0, 1000).get_transform(image).apply_image(image) is image
