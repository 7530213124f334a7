"""What the training loader hands to the model. Literals: checks E7, E8 (docs/checks.md)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from PIL import Image

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.data.loading.mappers import MirroringMapper
from frcnn_plugin.data.loading.train_loader import build_train_loader
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError


def joint_cfg() -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.merge_from_file(get_config_file("Base-PyEnd2End.yaml"))
    return cfg


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
def test_resizing_e7(size: tuple[int, int], expected: tuple[int, int]) -> None:
    cfg = joint_cfg()
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice")
    transform = resize.get_transform(np.zeros((*size, 3), dtype=np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def unresized_cfg() -> CfgNode:
    """For the image of :func:`record`."""
    cfg = joint_cfg()
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


def test_proposals_are_mirrored_with_the_image(tmp_path: Path) -> None:
    cfg = unresized_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    proposals = {
        "proposal_boxes": np.array([[10, 20, 31, 41]], dtype=np.float32),
        "proposal_objectness_logits": np.array([1.0], dtype=np.float32),
        "proposal_bbox_mode": 0,
    }
    out = MirroringMapper(cfg, is_train=True)(record(tmp_path, mirrored=True, **proposals))
    assert out["proposals"].proposal_boxes.tensor.tolist() == [[469, 20, 490, 41]]


@pytest.fixture
def shapes_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=12, num_test=2)
    config = get_config_file("demo/vgg16_shapes_joint.yaml")
    return setup_cfg(config, ["DATALOADER.NUM_WORKERS", "0"])


def batches(cfg: CfgNode, number: int, **kwargs: int) -> list[list[tuple[str, bool]]]:
    loader = build_train_loader(cfg, images_per_process=2, **{"seed": 1, **kwargs})
    return [[(x["image_id"], x["mirrored"]) for x in b] for b in itertools.islice(loader, number)]


def test_loader_goes_on_where_it_was_told(shapes_cfg: CfgNode) -> None:
    assert batches(shapes_cfg, 6, start_iter=4) == batches(shapes_cfg, 10)[4:]


def test_worker_processes_change_nothing(shapes_cfg: CfgNode) -> None:
    workers = shapes_cfg.clone()
    workers.defrost()
    workers.DATALOADER.NUM_WORKERS = 2
    assert batches(workers, 8) == batches(shapes_cfg, 8)


def test_every_image_and_its_mirror_image_come(shapes_cfg: CfgNode) -> None:
    seen = {entry for batch in batches(shapes_cfg, 30) for entry in batch}
    images = {image_id for image_id, _ in seen}
    assert seen == {(i, m) for i in images for m in (False, True)}


def test_size_must_be_known(shapes_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "frcnn_plugin.data.loading.train_loader.get_detection_dataset_dicts",
        lambda *args, **kwargs: [{"file_name": "a.jpg", "annotations": []}],
    )
    with pytest.raises(UserError, match=r"a.jpg: .* DATALOADER.MIRRORED_COPIES False"):
        batches(shapes_cfg, 1)
