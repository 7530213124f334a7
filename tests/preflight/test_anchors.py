"""Anchors against objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_iou
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.modeling.box_ops import inside_image
from frcnn_plugin.preflight import preflight
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
    assert found.sizes.tolist() == [[64, 64], [32, 64], [16, 16]]
    assert (found.empty, found.images) == (1, 2)
    assert found.share(0.5) == pytest.approx(2 / 3) and found.share(0.7) == pytest.approx(1 / 3)


@pytest.mark.parametrize("border", ["0", "20", "-1"])
@pytest.mark.parametrize("config", ["vgg16_shapes_joint", "vgg16_shapes_fpn"])
def test_overlaps_are_those_with_every_anchor(plan, config: str, border: str) -> None:
    """Columns and rows looked at apart, against all anchors that the model makes."""
    run = plan(
        *("INPUT.MIN_SIZE_TRAIN", "(0,)", "MODEL.RPN.BOUNDARY_THRESH", border),
        *("MODEL.DEVICE", "cpu"),
        config=get_config_file(f"demo/{config}.yaml"),
    )
    rng = np.random.default_rng(3)
    corners = np.sort(rng.uniform(0, [[[320], [192]]], (40, 2, 2)))
    boxes = torch.tensor(corners.transpose(0, 2, 1).reshape(-1, 4))
    model = build_model(run.cfg)
    features = model.backbone(ImageList.from_tensors([torch.zeros(3, 192, 320)]).tensor)
    rpn = model.proposal_generator
    anchors = Boxes.cat(rpn.anchor_generator([features[f] for f in rpn.in_features])).tensor
    anchors = anchors[inside_image(anchors, (192, 320), float(border))]
    wanted = pairwise_iou(Boxes(boxes), Boxes(anchors)).max(1).values
    found = overlaps(run, [record(320, 192, *boxes.tolist())])
    assert found.best == pytest.approx(wanted.numpy(), abs=1e-6)
    assert 0 < found.best.min() < 0.5 < found.best.max()


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
    """Ten objects of 20 px: none has a good anchor; 16 px would do."""
    run = plan(*strips(tmp_path, [(300, 300)] * 10))
    (finding,) = check_anchors(run)
    assert finding.level == "warning"
    assert "strips: 0 % of the objects have an anchor of IoU 0.5 or more" in finding.text
    assert "(10 images). The side" in finding.text
    assert "20 px in the median" in finding.text
    assert 'SIZES "[[16]]" to cover more objects (100 % and 0 %)' in finding.fix
    assert ". Raise INPUT.MIN_SIZE_TRAIN" in finding.fix


def objects_of(*kinds: tuple[int, int, int, int], where: tuple[int, int] = (0, 0)) -> list[str]:
    """Overrides for training on images with one object each, of (class, width, height, number)."""
    dicts = []
    for kind, width, height, number in kinds:
        for _ in range(number):
            image = record(500, 400, [56.0, 40.0, 56.0 + width, 40.0 + height])
            image["annotations"][0]["category_id"] = kind
            dicts.append({**image, "file_name": f"{len(dicts)}.png"})
    DatasetCatalog.register("cells", lambda: dicts)
    MetadataCatalog.get("cells").thing_classes = ["red", "white"]
    opts = ["DATASETS.TRAIN", "('cells',)", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    return [*opts, "INPUT.MIN_SIZE_TRAIN", "(0,)", "MODEL.ANCHOR_GENERATOR.SIZES", "[[128]]"]


def typed_by(finding: Any, key: str) -> list[str]:
    """The override in its advice, as a shell hands it on."""
    text = finding.sentence.partition(f'MODEL.ANCHOR_GENERATOR.{key} "')[2].partition('"')[0]
    return [f"MODEL.ANCHOR_GENERATOR.{key}", text] if text else []


def test_sizes_of_a_rare_class(plan) -> None:
    """Each class counts alike; the advice keeps its word, and nothing is left to advise then."""
    opts = objects_of((0, 128, 128, 190), (1, 46, 46, 10))
    (finding,) = check_anchors(plan(*opts))
    assert finding.level == "warning"
    assert (
        "cells: 95 % of the objects" in finding.text and "at 0.5 only 0 % of white" in finding.text
    )
    sizes = typed_by(finding, "SIZES")
    assert sizes[1] == "[[48, 128]]" and "more objects (100 % and 95 %)" in finding.fix
    assert "better" not in finding.sentence and "docs/custom_data.md" in finding.fix
    (after,) = check_anchors(plan(*opts, *sizes))
    assert after.level == "ok" and not typed_by(after, "SIZES")
    assert "100 % of the objects have an anchor of IoU 0.5 or more, 95 % of 0.7" in after.text


def test_too_few_objects_are_given_no_size(plan) -> None:
    (finding,) = check_anchors(plan(*objects_of((0, 128, 128, 190), (1, 46, 46, 9))))
    assert finding.level == "ok" and not typed_by(finding, "SIZES")


def test_advice_when_all_is_not_bad(plan) -> None:
    """Three quarters have an anchor: no warning, but the sizes of the rest are told."""
    (finding,) = check_anchors(plan(*objects_of((0, 128, 128, 30), (0, 46, 46, 10))))
    assert finding.level == "ok" and typed_by(finding, "SIZES")[1] == "[[48, 128]]"


def test_ratios_only_where_sizes_do_not_do(plan) -> None:
    opts = objects_of((0, 300, 38, 30))
    (finding,) = check_anchors(plan(*opts))
    ratios = typed_by(finding, "ASPECT_RATIOS")
    assert ratios[1] == "[[0.125]]"
    (after,) = check_anchors(plan(*opts, *typed_by(finding, "SIZES"), *ratios))
    assert after.level == "ok" and "100 % of the objects" in after.text


def test_no_sizes_are_advised_for_a_pyramid(plan) -> None:
    """They belong to its maps, one each."""
    opts = [*objects_of((0, 300, 38, 30))[:-2]]
    (finding,) = check_anchors(plan(*opts, config=get_config_file("demo/vgg16_shapes_fpn.yaml")))
    assert finding.level == "warning" and not typed_by(finding, "SIZES")
    assert finding.fix == "Look at them: frcnn visualize --mode matches"


def test_anchors_are_judged_without_weights(plan) -> None:
    """Which a user may not have yet."""
    found = list(preflight(plan("MODEL.WEIGHTS", "none.pth")))
    assert [f.level for f in found if "have an anchor" in f.text] == ["ok"]
    assert [f.subject for f in found if f.level == "error"] == ["weights"]


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
