"""The training loader: which images come, and when."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from frcnn_plugin import get_config_file
from frcnn_plugin.data.loading.train_loader import build_train_loader
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError


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
