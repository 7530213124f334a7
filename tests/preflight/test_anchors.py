"""Anchors against objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from frcnn_plugin.preflight.anchors import check_anchors, overlaps, trained_size

SQUARES = ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "MODEL.PAPER_RCNN.PHASE", "rpn"]


def record(width: int, height: int, *boxes: list[float]) -> dict[str, Any]:
    """An image that is trained on at its own size."""
    objects = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in boxes]
    return {"width": width, "height": height, "annotations": objects, "image_id": "1"}


def test_overlaps_by_hand(plan) -> None:
    """Anchors of 64 px have their centres at 8, 24, 40, ...; the first inside is [8, 8, 72, 72]."""
    opts = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]"]
    boxes = [8.0, 8.0, 72.0, 72.0], [8.0, 8.0, 40.0, 72.0], [0.0, 0.0, 16.0, 16.0]
    found = overlaps(plan(*opts, *SQUARES), [record(160, 160, *boxes), record(60, 200)])
    assert found.best.tolist() == pytest.approx([1.0, 0.5, 64 / (64 * 64 + 16 * 16 - 64)])
    assert found.sides.tolist() == pytest.approx([64, (32 * 64) ** 0.5, 16])
    assert (found.empty, found.images) == (1, 2)
    assert found.share(0.5) == pytest.approx(2 / 3) and found.share(0.7) == pytest.approx(1 / 3)


def test_crowds_do_not_count(plan) -> None:
    crowd = record(100, 100, [0.0, 0.0, 50.0, 50.0])
    crowd["annotations"][0]["iscrowd"] = 1
    assert len(overlaps(plan(), [crowd]).best) == 0


def test_size_that_is_trained_at(plan) -> None:
    cfg = plan("INPUT.MIN_SIZE_TRAIN", "(100,300,200)", "INPUT.MAX_SIZE_TRAIN", "500").cfg
    assert trained_size(cfg, 50, 100) == (200, 400)
    assert trained_size(cfg, 50, 200) == (125, 500)
    assert trained_size(plan("INPUT.MIN_SIZE_TRAIN", "(0,)").cfg, 50, 200) == (50, 200)


def strips(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """Overrides for training on images of some sizes."""
    dicts = []
    for i, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{i}.png")
        dicts.append(
            {**record(*size, [0.0, 0.0, 20.0, 20.0]), "file_name": str(folder / f"{i}.png")}
        )
    DatasetCatalog.register("strips", lambda: dicts)
    MetadataCatalog.get("strips").thing_classes = ["bar"]
    opts = ["DATASETS.TRAIN", "('strips',)", "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    return [*opts, "INPUT.MIN_SIZE_TRAIN", "(0,)", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64,128]]"]


@pytest.mark.parametrize(
    ("sizes", "level", "share"),
    [([(512, 31)] * 3, "error", "3 of 3"), ([(512, 31), (512, 200)], "warning", "1 of 2")],
)
def test_images_without_an_inside_anchor(
    plan, tmp_path: Path, sizes: list[tuple[int, int]], level: str, share: str
) -> None:
    finding = next(check_anchors(plan(*strips(tmp_path, sizes))))
    assert finding.level == level
    assert f"no anchor lies inside {share} images" in finding.text
    assert "MODEL.ANCHOR_GENERATOR.SIZES [[64, 128]], INPUT.MIN_SIZE_TRAIN (0,)" in finding.text


def test_border_that_anchors_may_cross(plan, tmp_path: Path) -> None:
    run = plan(*strips(tmp_path, [(512, 31)]), "MODEL.RPN.BOUNDARY_THRESH", "-1")
    assert {f.level for f in check_anchors(run)} == {"ok"}


def test_small_objects_and_sizes_for_them(plan, tmp_path: Path, monkeypatch) -> None:
    """Ten objects of 20 px: a third of none has a good anchor; 16 px would do."""
    run = plan(*strips(tmp_path, [(300, 300)] * 10))
    (finding,) = check_anchors(run)
    assert finding.level == "warning"
    assert "strips: 0 % of the objects have an anchor of IoU 0.5 or more" in finding.text
    assert "(10 images), of some classes fewer: bar 0 %. The side" in finding.text
    assert "20 px in the median" in finding.text
    assert 'SIZES "[[16]]" (100 %). Raise INPUT.MIN_SIZE_TRAIN' in finding.fix


def test_demo_is_fine(plan) -> None:
    (finding,) = check_anchors(plan())
    assert finding.level == "ok" and "% of the objects have an anchor of IoU 0.5" in finding.text


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.META_ARCHITECTURE", "RetinaNet"],
        ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
        ["MODEL.PAPER_RCNN.PHASE", "fast_rcnn"],
    ],
)
def test_networks_without_these_anchors(plan, opts: list[str]) -> None:
    assert list(check_anchors(plan(*opts))) == []
