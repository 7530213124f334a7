"""What several tests need: a small config, inputs for a model."""

from __future__ import annotations

import logging
import os

# Processes that share the cores (make test) would wait for each other with a thread per core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.modeling import PaperRCNN

# A finished four-step run, and a predictor with its detector, which several folders look at.
pytest_plugins = ["tests.four_step.fixtures"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def make_instances(
    image_size: tuple[int, int], boxes: list[list[float]], classes: list[int] | None = None
) -> Instances:
    """Ground truth of one image, boxes in network-input pixels."""
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes if classes is not None else [0] * len(boxes))
    instances.gt_classes = instances.gt_classes.to(torch.int64)
    return instances


def make_input(
    height: int, width: int, boxes: list[list[float]], *, scale: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """One entry of a batch, as Detectron2's mapper makes it, from noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator).float(),
        "height": round(height / scale),
        "width": round(width / scale),
        "instances": make_instances((height, width), boxes),
        "file_name": f"{seed}.jpg",
        "image_id": str(seed),
    }


@pytest.fixture(autouse=True)
def matmul_precision() -> Iterator[None]:
    """Tools set it for their process (frcnn_plugin/process.py); here that is all tests'."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def restore_catalogs() -> Iterator[None]:
    """Leaves Detectron2's catalogs as they were."""
    saved = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, data in saved:
        catalog.data = data


@pytest.fixture
def restore_registries() -> Iterator[None]:
    """Leaves the names of models and of their parts as they were."""
    registries = (
        *(META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY),
        ROI_HEADS_REGISTRY,
    )
    saved = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, names in saved:
        registry._obj_map = names


@pytest.fixture
def tiny_cfg() -> Callable[..., CfgNode]:
    """A function that gives a joint config of narrow layers on the CPU, with overrides."""

    def build(*opts: Any) -> CfgNode:
        cfg = get_cfg()
        add_frcnn_config(cfg)
        cfg.merge_from_file(get_config_file("Base-PyEnd2End.yaml"))
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", "cpu"),
                *("MODEL.BACKBONE.FREEZE_AT", 0),
                *("MODEL.PAPER_VGG.CHANNELS", [4, 4, 8, 8, 8]),
                *("MODEL.PAPER_ZF.CHANNELS", [4, 4, 8, 8, 8]),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128]]),
                *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
                *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
                *opts,
            ]
        )
        return cfg

    return build


@pytest.fixture
def one_by_one_model(tiny_cfg: Callable[..., CfgNode]) -> PaperRCNN:
    """A narrow model in training, through which images pass one by one."""
    torch.manual_seed(0)
    cfg = tiny_cfg("MODEL.WEIGHTS", "", "MODEL.PAPER_RCNN.ONE_BY_ONE", True)
    built = PaperRCNN(**PaperRCNN.from_config(cfg))
    return built.train()


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Handlers of commands write to a stream that ends with the test, and keep others from logs."""
    names = ("benchmarks", "detectron2", "frcnn_plugin", "fvcore")
    logs = [logging.getLogger(name) for name in names]
    before = [(list(log.handlers), log.level, log.propagate) for log in logs]
    yield
    for log, (handlers, level, propagate) in zip(logs, before, strict=True):
        if log.handlers != handlers:
            setup_logger.cache_clear()
        log.handlers, log.level, log.propagate = handlers, level, propagate
