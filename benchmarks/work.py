"""What is measured: which models, and the random images and ground truth that they are given."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from frcnn_plugin.data import register_voc
from frcnn_plugin.data.synthetic import SHAPE_CLASSES, write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError

PEERS = ("detectron2", "torchvision")

# An iteration is computed in full but moves nothing, so that all of them do the same work.
_NEUTRAL_OPTS = ("SOLVER.BASE_LR", "1e-12", "MODEL.WEIGHTS", "")


@dataclass(frozen=True)
class Spec:
    """Which model."""

    name: str  # in tables
    kind: str  # "config", or one of :data:`PEERS`
    config_file: str  # what it is built from; the peers take numbers from it
    opts: tuple[str, ...] = ()  # ``KEY VALUE`` overrides
    bf16: bool = False  # bfloat16, by the config's own switch or by autocast

    def cfg(self, training: bool) -> CfgNode:
        """Return the config; see :func:`frcnn_plugin.engine.setup_cfg` for errors."""
        cfg = setup_cfg(self.config_file, [*_NEUTRAL_OPTS, *self.opts])
        if self.own_switch(cfg, training):
            cfg.defrost()
            cfg.MODEL.PAPER_RCNN.INFERENCE_DTYPE = "bfloat16"
            cfg.SOLVER.AMP.ENABLED = training
            cfg.freeze()
        return cfg

    def own_switch(self, cfg: CfgNode, training: bool) -> bool:
        """Return whether bfloat16 is wanted and the model has a switch of its own for it.

        In training that is SOLVER.AMP.ENABLED, which the model obeys on a CPU; on a GPU it is the
        trainer that applies autocast.
        """
        ours = self.kind == "config" and cfg.MODEL.META_ARCHITECTURE == "PaperRCNN"
        return self.bf16 and ours and not (training and cfg.MODEL.DEVICE != "cpu")


@dataclass(frozen=True)
class Work:
    """What a model is given to do, again and again."""

    training: bool  # training iterations; else inference
    height: int = 600  # pixels of an image
    width: int = 1000
    batch: int = 1  # images
    objects: int = 5  # ground-truth boxes per image
    seed: int = 0  # of weights, images and sampling


def specs_from(args: argparse.Namespace) -> list[Spec]:
    """Return our model, then those of --versus.

    Raises:
        UserError: --versus names no peer and no file, or one of them twice.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    device = ("MODEL.DEVICE", args.device) if args.device else ()
    opts = ("MODEL.DEVICE", usual, *args.opts, *device)
    name = "ours bf16" if args.bf16 else "ours"
    specs = [Spec(name, "config", args.config_file, opts, args.bf16)]
    other_opts = (*opts, *(word for pair in args.versus_opts for word in pair))
    for versus in args.versus:
        name = f"{Path(versus).stem} bf16" if args.versus_bf16 else Path(versus).stem
        if versus in PEERS:
            kind, config_file = versus, args.config_file
        elif Path(versus).is_file():
            kind, config_file = "config", versus
        else:
            raise UserError(
                f"--versus {versus}: use {', '.join(PEERS)}, or the path of a config file"
            )
        specs.append(Spec(name, kind, config_file, other_opts, args.versus_bf16))
    if len({spec.name for spec in specs}) < len(specs):
        raise UserError(f"--versus {' '.join(args.versus)}: each may be named once")
    return specs


def work_from(args: argparse.Namespace) -> Work:
    """Return what each model has to do."""
    height, width = args.image
    return Work(args.command == "train", height, width, args.batch, args.objects, args.seed)


def make_batch(work: Work, classes: int) -> list[dict[str, Any]]:
    """Make a batch as Detectron2's mapper does, whose images already have the network's size."""
    height, width = work.height, work.width
    generator = torch.Generator().manual_seed(work.seed)
    batch = []
    for i in range(work.batch):
        # Blobs rather than noise: neighbouring cells of a feature map are alike, as in photographs.
        size = (1, 3, max(2, height // 16), max(2, width // 16))
        coarse = torch.rand(size, generator=generator)
        image = F.interpolate(coarse, (height, width), mode="bilinear")[0] * 255
        boxes = random_boxes(work.objects, height, width, 0.1, generator)
        kinds = torch.randint(0, classes, (work.objects,), generator=generator)
        truth = Instances((height, width), gt_boxes=boxes, gt_classes=kinds)
        names = {"image_id": str(i), "file_name": f"{i}.jpg"}
        batch.append(
            {"image": image, "height": height, "width": width, **names, "instances": truth}
        )
    return batch


def random_boxes(
    count: int, height: int, width: int, smallest: float, generator: torch.Generator
) -> Boxes:
    """Draw boxes inside an image; sides are ``smallest`` to ``smallest`` + 0.5 of the image's."""
    sides = torch.rand((count, 2), generator=generator) * 0.5 + smallest
    corner = torch.rand((count, 2), generator=generator) * (1 - sides)
    return Boxes(torch.cat((corner, corner + sides), 1) * torch.tensor([width, height] * 2))


@contextmanager
def generated_set(folder: Path, images: int, short_side: int) -> Iterator[str]:
    """Write image files to load, and register them as a VOC-format set until the block ends."""
    name = "benchmark_shapes"
    root = write_synthetic_voc(folder / name, images, 0, 0, (short_side, short_side))
    register_voc(name, str(root), "trainval", classes=SHAPE_CLASSES)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
