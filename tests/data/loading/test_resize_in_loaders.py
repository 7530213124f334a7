"""INPUT.RESIZE reaches every loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from frcnn_plugin.data.loading.mappers import MirroringMapper
from frcnn_plugin.engine import PaperTrainer


@pytest.fixture
def dataset(tmp_path: Path, restore_catalogs: None) -> str:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((40, 51, 3), 7, np.uint8)).save(file)
    box = {"bbox": [2, 3, 30, 32], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(file), "height": 40, "width": 51, "image_id": "a"}
    DatasetCatalog.register("resize_test", lambda: [{**record, "annotations": [box]}] * 2)
    return "resize_test"


@pytest.mark.parametrize(
    ("resize", "dtype", "width"), [("opencv", torch.float32, 76), ("pillow", torch.uint8, 77)]
)
def test_loaders(tiny_cfg, dataset: str, resize: str, dtype: torch.dtype, width: int) -> None:
    """40x51 to 60: 76.5 wide, rounded to even by OpenCV, up by the host."""
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
