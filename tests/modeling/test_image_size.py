"""Sizes with a memory, and the scale they were made by. By hand, or py-faster-rcnn's test.py."""

from __future__ import annotations

import copy
import pickle

import pytest

from frcnn_plugin.modeling.image_size import ScaledImageSize, image_scale, resize_scale


@pytest.mark.parametrize(
    ("original", "size", "scale"),
    [
        ((375, 500), (600, 800), 1.6),
        ((333, 500), (600, 901), 600 / 333),  # and not 901 / 500
        ((500, 333), (901, 600), 600 / 333),
        ((301, 505), (596, 1000), 1000 / 505),  # limited; not 596 / 301
        ((300, 500), (600, 1000), 2.0),
        ((400, 503), (600, 754), 1.5),  # 754.5, rounded to even by OpenCV
        ((400, 503), (600, 755), 1.5),  # rounded up by Detectron2
        ((600, 1000), (600, 1000), 1.0),
        ((1200, 900), (800, 600), 2 / 3),
        ((97, 131), (97, 131), 1.0),  # not resized
        # limited, and the shorter side rounds to 600 all the same: 599.52
        ((1500, 2502), (600, 1000), 1000 / 2502),
    ],
)
def test_scale(original: tuple[int, int], size: tuple[int, int], scale: float) -> None:
    assert resize_scale(size, original, {600}) == pytest.approx(scale, rel=1e-9)


def test_size_is_a_tuple_that_remembers() -> None:
    size = ScaledImageSize((600, 901), 600 / 333, (333, 500))
    assert size == (600, 901)
    for copied in (size, copy.deepcopy(size), pickle.loads(pickle.dumps(size))):
        assert image_scale(copied) == 600 / 333
        assert copied.original == (333, 500)


def test_original_size_follows_from_the_scale() -> None:
    assert ScaledImageSize((600, 800), 1.6).original == (375, 500)


def test_plain_size_has_scale_1() -> None:
    assert image_scale((600, 800)) == 1.0
