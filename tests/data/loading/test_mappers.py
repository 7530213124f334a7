"""From a record to an input of the model. Literals: examples E7, E8 (docs/worked_examples.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.data.loading.mappers import (
    FloatResizeShortestEdge,
    FloatResizeTransform,
    MirroringMapper,
    build_mapper,
    with_resize,
)
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.roi_heads.detections import to_original_size

E7 = [
    ((375, 500), (600, 800), 1.6),
    ((333, 500), (600, 901), 600 / 333),
    ((300, 500), (600, 1000), 2.0),
    ((299, 500), (598, 1000), 2.0),
    ((200, 500), (400, 1000), 2.0),
]


@pytest.mark.parametrize(
    ("size", "new", "factor"),
    [
        *E7,
        ((400, 503), (600, 754), 1.5),  # 754.5; Detectron2: 755
        ((1200, 2001), (600, 1000), 0.5),  # 1000.5 rounds to 1000: not limited
        ((1200, 900), (800, 600), 2 / 3),
    ],
)
def test_sizes_e7(size: tuple[int, int], new: tuple[int, int], factor: float) -> None:
    image = np.zeros((*size, 3), np.uint8)
    transform = FloatResizeShortestEdge(600, 1000).get_transform(image)
    assert transform.apply_image(image).shape == (*new, 3)
    assert transform.factor == pytest.approx(factor, rel=1e-12)


def test_sizes_of_detectron2_e7() -> None:
    """By Detectron2's resize, with the numbers of the presets."""
    cfg = plugin_cfg()
    cfg.merge_from_file(get_config_file("Base-PyEnd2End.yaml"))
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice")
    for size, new, _ in E7:
        transform = resize.get_transform(np.zeros((*size, 3), dtype=np.uint8))
        assert (transform.new_h, transform.new_w) == new


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


def test_only_the_resize_is_replaced() -> None:
    flip = T.RandomFlip()
    host = [T.ResizeShortestEdge((480, 600), 1000, "choice"), flip]
    cfg = plugin_cfg()
    cfg.INPUT.RESIZE = "opencv"
    ours = with_resize(cfg, host)
    assert type(ours[0]) is FloatResizeShortestEdge and ours[1] is flip
    assert (tuple(ours[0].short_edge_length), ours[0].max_size) == ((480, 600), 1000)
    cfg.INPUT.RESIZE = "pillow"
    assert with_resize(cfg, host) == host


def test_a_range_of_sizes_and_none() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    np.random.seed(0)
    ranged = FloatResizeShortestEdge((50, 60), 1000, "range")
    heights = {ranged.get_transform(image).new_h for _ in range(100)}
    assert min(heights) == 50 and max(heights) == 60
    assert FloatResizeShortestEdge(0, 1000).get_transform(image).apply_image(image) is image


def test_plain_mapper(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save(file)
    record = {"file_name": str(file), "height": 40, "width": 50}
    cfg = plugin_cfg()
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 61, "INPUT.RESIZE", "opencv"])
    image = build_mapper(cfg, is_train=False)(record)["image"]
    assert image.shape == (3, 61, 76) and image.dtype == torch.float32  # 76.25
    assert (image == 7).all()
    cfg.INPUT.RESIZE = "pillow"
    host = DatasetMapper(cfg, is_train=False)(record)["image"]
    ours = build_mapper(cfg, is_train=False)(record)["image"]
    assert ours.dtype == host.dtype == torch.uint8 and torch.equal(ours, host)


def test_unknown_resize() -> None:
    cfg = plugin_cfg()
    cfg.INPUT.RESIZE = "cv2"
    with pytest.raises(UserError, match=r"INPUT.RESIZE is 'cv2': use one of pillow, opencv"):
        build_mapper(cfg, is_train=False)
    cfg.INPUT.RESIZE, cfg.INPUT.BOX_SCALING = "pillow", "exact"
    with pytest.raises(UserError, match=r"BOX_SCALING is 'exact': use one of continuous, inclusi"):
        build_mapper(cfg, is_train=False)


def unresized_cfg() -> CfgNode:
    """For the image of :func:`record`."""
    cfg = plugin_cfg()
    cfg.merge_from_file(get_config_file("Base-PyEnd2End.yaml"))
    cfg.INPUT.MIN_SIZE_TRAIN = (500,)
    return cfg


def record(tmp_path: Path, **extra: Any) -> dict[str, Any]:
    """An image of 600 x 500 with the box of E8, bright in its left half."""
    pixels = np.zeros((600, 500, 3), dtype=np.uint8)
    pixels[:, :250] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    # Inclusive [10, 20, 30, 40] is continuous [10, 20, 31, 41].
    annotation = {"bbox": [10.0, 20.0, 31.0, 41.0], "bbox_mode": 0, "category_id": 0}
    return {
        "file_name": str(tmp_path / "image.png"),
        "height": 600,
        "width": 500,
        "image_id": "image",
        "annotations": [annotation, {**annotation, "iscrowd": 1}],
        **extra,
    }


def test_mirrored_entry_e8(tmp_path: Path) -> None:
    """Inclusive [469, 20, 489, 40]; pixels are mirrored, too; difficult objects are left out."""
    mapper = MirroringMapper(unresized_cfg(), is_train=True)
    plain = mapper(record(tmp_path))
    mirrored = mapper(record(tmp_path, mirrored=True))
    assert plain["instances"].gt_boxes.tensor.tolist() == [[10, 20, 31, 41]]
    assert mirrored["instances"].gt_boxes.tensor.tolist() == [[469, 20, 490, 41]]
    assert plain["image"][:, :, :250].min() == 255 and plain["image"][:, :, 250:].max() == 0
    assert mirrored["image"].flip(2).equal(plain["image"])


def proposals(*boxes: list[float]) -> dict[str, Any]:
    return {
        "proposal_boxes": np.array(boxes, dtype=np.float32),
        "proposal_objectness_logits": np.arange(len(boxes), 0, -1, dtype=np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }


def test_proposals_are_mirrored_with_the_image(tmp_path: Path) -> None:
    cfg = unresized_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    item = record(tmp_path, mirrored=True, **proposals([10, 20, 31, 41]))
    out = MirroringMapper(cfg, is_train=True)(item)
    assert out["proposals"].proposal_boxes.tensor.tolist() == [[469, 20, 490, 41]]


@pytest.mark.parametrize("mirrored", [False, True])
def test_random_flips_with_copies(tmp_path: Path, mirrored: bool) -> None:
    """The horizontal ones are left out, the vertical ones act: about half of the time."""
    cfg = unresized_cfg()
    item = record(tmp_path, mirrored=mirrored)
    pixels = np.array(Image.open(item["file_name"]))
    pixels[:300] //= 2  # the upper half is darker
    Image.fromarray(pixels).save(item["file_name"])
    np.random.seed(0)
    for flip, upside_down in (("horizontal", [0]), ("vertical", range(3, 18))):
        cfg.INPUT.RANDOM_FLIP = flip
        mapper = MirroringMapper(cfg, is_train=True)
        outs = [mapper(item) for _ in range(20)]
        bright = 499 if mirrored else 0
        flipped = [bool(out["image"][0, 0, bright] == 255) for out in outs]
        assert sum(flipped) in upside_down
        for out, is_flipped in zip(outs, flipped, strict=True):
            x1, y1, x2, y2 = out["instances"].gt_boxes.tensor[0].tolist()
            assert (x1, x2) == ((469, 490) if mirrored else (10, 31))
            assert (y1, y2) == ((559, 580) if is_flipped else (20, 41))


def test_a_crop_is_the_image_that_is_scaled(tmp_path: Path) -> None:
    """The model finds its scale by the size; of the whole image it would be half as large."""
    cfg = unresized_cfg()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative", [0.5, 0.5]
    for mapper in (MirroringMapper(cfg, is_train=True), build_mapper(cfg, is_train=True)):
        out = mapper(record(tmp_path))
        assert (out["height"], out["width"]) == (300, 250)
        assert tuple(out["image"].shape[1:]) == (600, 500)
    whole = build_mapper(cfg, is_train=False)(record(tmp_path))
    assert (whole["height"], whole["width"]) == (600, 500)


def test_mappers_read_deep_images(tmp_path: Path) -> None:
    """As the predictor does; Detectron2's mapper gives white."""
    item = record(tmp_path)
    Image.fromarray(np.full((600, 500), 25700, np.uint16)).save(item["file_name"])
    for is_train in (True, False):
        mapper = build_mapper(unresized_cfg(), is_train=is_train)
        assert float(mapper(item)["image"].max()) == 100


@pytest.mark.parametrize("resize", ["opencv", "pillow"])
@pytest.mark.parametrize("inclusive", [True, False])
def test_mirrored_before_or_after_the_resize(tmp_path: Path, resize: str, inclusive: bool) -> None:
    """OpenCV's grid, by a factor that does not fit the sides, is not its own mirror image."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    file = str(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, ::-1]).save(file)  # the mapper reads BGR
    cfg = unresized_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RESIZE = 60, resize
    cfg.MODEL.LOAD_PROPOSALS = True
    if inclusive:
        cfg.INPUT.BOX_SCALING = "inclusive"
    entry = {"file_name": file, "height": 33, "width": 47, **proposals([10.0, 20, 31, 32])}
    mapper = MirroringMapper(cfg, is_train=False)
    plain, mirrored = mapper(entry), mapper({**entry, "mirrored": True})
    image = mirrored["image"].permute(1, 2, 0).numpy()
    flipped_after = plain["image"].flip(2).permute(1, 2, 0).numpy()
    if resize == "pillow":  # whose grid is its own mirror image
        assert (image == flipped_after).all()
    else:
        expected = bilinear(pixels[:, ::-1], 60 / 33, 60, 85)
        np.testing.assert_allclose(image, expected, atol=1e-3)
        assert 0.1 < np.abs(image - flipped_after).mean()
    # By hand: inclusive (16, 20, 36, 31) times 60 / 33; 85.45 is 85 wide.
    ratio, factor = 85 / 47, 60 / 33
    expected = [16 * ratio, 20 * factor, 37 * ratio, 32 * factor]
    if inclusive:
        expected = [16 * factor, 20 * factor, 36 * factor + 1, 31 * factor + 1]
    boxes = mirrored["proposals"].proposal_boxes.tensor
    assert boxes.tolist() == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.parametrize("resize", ["opencv", "pillow"])
def test_inclusive_corners_e7b(tmp_path: Path, resize: str) -> None:
    """375x500 by 1.6: inclusive 100 and 499 become 160 and 798.4, in py-faster-rcnn."""
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((375, 500, 3), np.uint8)).save(file)
    cfg = unresized_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RESIZE = (600,), resize
    cfg.INPUT.BOX_SCALING = "inclusive"
    cfg.MODEL.LOAD_PROPOSALS = True
    box = {"bbox": [100, 50, 500, 375], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    entry = {"file_name": str(file), "height": 375, "width": 500, "annotations": [box]}
    entry |= proposals([100.0, 50, 500, 375], [0, 0, 1, 1])
    one = torch.tensor([0.0, 0, 1, 1])
    corners = [160, 80, 798.4, 598.4]
    for mapper in (MirroringMapper(cfg, is_train=True), build_mapper(cfg, is_train=True)):
        out = mapper(entry)
        scaled = (out["proposals"].proposal_boxes.tensor - one).tolist()
        assert scaled[0] == pytest.approx(corners) and scaled[1] == [0, 0, 0, 0]
        gt = (out["instances"].gt_boxes.tensor - one).tolist()
        assert gt == [pytest.approx(corners)]
    for empty in (np.zeros((0, 4)), np.zeros((0, 4), np.float32)):
        entry |= {"proposal_boxes": empty, "proposal_objectness_logits": empty[:, 0]}
        assert len(mapper(entry)["proposals"]) == 0


def test_inclusive_corners_and_back() -> None:
    cfg = plugin_cfg()
    cfg.INPUT.BOX_SCALING = "inclusive"
    (resize,) = with_resize(cfg, [T.ResizeShortestEdge((600,), 1000, "choice")])
    transform = resize.get_transform(np.zeros((333, 500, 3), np.uint8))
    assert transform.factor == 600 / 333  # not 901 / 500
    boxes = np.array([[3.5, 4, 400, 300.25], [7, 8, 8, 9]])
    scaled = transform.apply_box(boxes)
    corner = [7 * 600 / 333, 8 * 600 / 333]  # one pixel wide before and after
    assert scaled[1].tolist() == pytest.approx([*corner, corner[0] + 1, corner[1] + 1])
    np.testing.assert_allclose(transform.inverse().apply_box(scaled), boxes)
    assert transform.apply_segmentation(np.ones((333, 500), np.uint8)).shape == (600, 901)
    assert transform.apply_coords(np.array([[500.0, 333.0]])).tolist() == [[901, 600]]
    (none,) = with_resize(cfg, [T.ResizeShortestEdge(0, 1000)])
    unscaled = none.get_transform(np.zeros((9, 9, 3), np.uint8)).apply_box(boxes)
    assert unscaled.tolist() == boxes.tolist()


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((40, 51, 3), 7, np.uint8)).save(file)
    box = {"bbox": [2, 3, 30, 32], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(file), "height": 40, "width": 51, "image_id": "a"}
    DatasetCatalog.register("resize_test", lambda: [{**record, "annotations": [box]}] * 2)
    return "resize_test"


@pytest.mark.parametrize(
    ("resize", "dtype", "width"), [("opencv", torch.float32, 76), ("pillow", torch.uint8, 77)]
)
def test_resize_reaches_every_loader(
    tiny_cfg: Callable, dataset: str, resize: str, dtype: torch.dtype, width: int
) -> None:
    """40x51 to 60: 76.5 wide, rounded to even by OpenCV, up by Detectron2."""
    cfg = tiny_cfg(
        *("INPUT.RESIZE", resize, "INPUT.MIN_SIZE_TEST", 60, "INPUT.MIN_SIZE_TRAIN", (60,)),
        *("DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,)),
        *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1),
    )
    (batch,) = list(PaperTrainer.build_test_loader(cfg, dataset))[:1]
    images = [batch[0]["image"]]
    for mirrored in (True, False):
        cfg.DATALOADER.MIRRORED_COPIES = mirrored
        images.append(next(iter(PaperTrainer.build_train_loader(cfg)))[0]["image"])
    record = DatasetCatalog.get(dataset)[0]
    images.append(MirroringMapper(cfg, is_train=False)({**record, "mirrored": True})["image"])
    for image in images:
        assert image.dtype == dtype and image.shape == (3, 60, width)
        assert (image == 7).all()


def test_corners_as_in_matlab_and_back() -> None:
    """E7b: 500 px become 800, so column 100 goes to 160.12024 and the last column to the last."""
    cfg = plugin_cfg()
    cfg.INPUT.BOX_SCALING = "corners"
    (resize,) = with_resize(cfg, [T.ResizeShortestEdge((600,), 1000, "choice")])
    transform = resize.get_transform(np.zeros((375, 500, 3), np.uint8))
    boxes = np.array([[100.0, 0, 500, 375]])
    scaled = transform.apply_box(boxes)
    assert scaled[0].tolist() == pytest.approx([160.12024, 0, 800, 600], abs=1e-5)
    np.testing.assert_allclose(transform.inverse().apply_box(scaled), boxes)
    found = Instances((600, 800), pred_boxes=Boxes(torch.from_numpy(scaled)))
    back = to_original_size(found, 375, 500, corners=True).pred_boxes.tensor
    np.testing.assert_allclose(back, boxes)


@pytest.mark.parametrize("resize", ["pillow", "opencv"])
@pytest.mark.parametrize("scaling", ["continuous", "inclusive"])
def test_masks_follow_their_image(tmp_path: Path, resize: str, scaling: str) -> None:
    """The left half of a mirrored image is its right half; what has no mask does not train."""
    cfg = unresized_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.RESIZE, cfg.INPUT.BOX_SCALING = resize, scaling
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    Image.new("RGB", (40, 20)).save(tmp_path / "wide.png")
    left = [[0.0, 0.0, 20.0, 0.0, 20.0, 20.0, 0.0, 20.0]]
    obj = {"bbox": [0, 0, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    entry = {
        **{"file_name": str(tmp_path / "wide.png"), "height": 20, "width": 40, "image_id": 1},
        "annotations": [{**obj, "category_id": 0}, {**obj, "segmentation": left}],
    }
    mapper = MirroringMapper(cfg, is_train=True)
    for mirrored, half in ((False, slice(0, 40)), (True, slice(40, 80))):
        instances = mapper({**entry, "mirrored": mirrored})["instances"]
        assert instances.gt_classes.tolist() == [1]
        masks = instances.gt_masks.tensor
        assert masks.shape == (1, 40, 80)
        assert masks[0, :, half].all() and masks.sum() == 40 * 40
