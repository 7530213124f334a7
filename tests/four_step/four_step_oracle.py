"""The four stages as four plain trainings, one after the other.

They hand weights and proposals over by files and do the surgery by hand. They share
with the package the model, the optimizer, the order of images and the measuring of target
statistics, which have tests of their own; neither FourStepHook, nor its checkpoints, its schedule,
its freezing or its proposals.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from frcnn_plugin.data.loading.train_loader import build_train_loader, training_dicts
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.four_step.statistics import head_target_statistics, rpn_target_statistics
from frcnn_plugin.modeling.backbone.caffe_backbone import backbone_feature_sizes
from tests.four_step.four_step_runs import tiny_cfg

SEED, RATE, ITERS, DROP = 3, 0.003, 4, 2
Weights = dict[str, torch.Tensor]


def plain_cfg(folder: Path, phase: str, proposals: Path | None = None) -> CfgNode:
    """A config without four-step training."""
    opts = [
        *("FOUR_STEP.ENABLED", "False"),
        *("MODEL.PAPER_RCNN.PHASE", phase),
        *("MODEL.RPN.PRE_NMS_TOPK_TEST", "-1"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "100"),
    ]
    if proposals:
        opts += [
            *("MODEL.LOAD_PROPOSALS", "True"),
            *("DATASETS.PROPOSAL_FILES_TRAIN", f"('{proposals}',)"),
            *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "100"),
        ]
    return tiny_cfg(folder, opts)


def train(
    cfg: CfgNode, model: nn.Module, stage: int, images: int, parts: tuple[str, ...], world: int
) -> None:
    """One stage: SGD with one drop of the rate, momentum as in Caffe.

    An iteration takes ``world`` batches and the mean of their gradients.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(parts))
    optimizer = PaperTrainer.build_optimizer(cfg, model)
    factors = [group["lr"] / RATE for group in optimizer.param_groups]
    loader = build_train_loader(
        cfg,
        images_per_process=images,
        seed=SEED + stage,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN,
    )
    batches = iter(loader)
    model.train()
    for i in range(ITERS):
        rate = RATE * (0.1 if i >= DROP else 1.0)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * RATE * (0.1 if i >= DROP else 1.0)
        if i == DROP:
            for state in optimizer.state.values():
                state["momentum_buffer"] *= RATE / rate
        optimizer.zero_grad()
        for rank in range(world):
            seed_all_rng(SEED + 1009 * ((stage - 1) * ITERS + i) + rank)
            with EventStorage():  # Detectron2's RPN and RoI heads write into it
                losses = model(next(batches))
            (sum(losses.values()) / world).backward()
        optimizer.step()


def propose(cfg: CfgNode, model: nn.Module, path: Path) -> None:
    """A proposal file in Detectron2's format."""
    mapper = DatasetMapper(cfg, is_train=False)
    content: dict[str, list[object]] = {"ids": [], "boxes": [], "objectness_logits": []}
    model.eval()
    for record in get_detection_dataset_dicts("tiny_trainval", filter_empty=False):
        with torch.no_grad():
            (output,) = model([mapper(record)])
        boxes = output["proposals"].proposal_boxes.tensor.numpy()
        assert np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        content["ids"].append(record["image_id"])
        content["boxes"].append(boxes)
        content["objectness_logits"].append(output["proposals"].objectness_logits.numpy())
    path.write_bytes(pickle.dumps({**content, "bbox_mode": 0}))


def draw(layer: nn.Module, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.empty_like(layer.weight).normal_(0, std, generator=generator))
        layer.bias.zero_()


def affine(layer: nn.Module, factor: torch.Tensor, offset: torch.Tensor) -> None:
    """Let a layer give ``factor * output + offset``; (C, 4) each, repeated over its channels."""
    repeats = len(layer.weight) // factor.numel()
    factor, offset = factor.double().flatten(), offset.double().flatten()
    factor, offset = factor.repeat(repeats), offset.repeat(repeats)
    with torch.no_grad():
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        layer.weight.copy_(layer.weight.double() * factor.reshape(shape))
        layer.bias.copy_(layer.bias.double() * factor + offset)


def rpn_stage(folder: Path, stage: int, whiten: bool, world: int) -> None:
    """Stage 1 or 3; leaves a checkpoint and proposals."""
    cfg = plain_cfg(folder, "rpn")
    model = PaperTrainer.build_model(cfg)
    start = "start.pth" if stage == 1 else "2.pth"
    model.load_state_dict(torch.load(folder / start, weights_only=True))
    rpn = model.proposal_generator
    if stage == 3:
        generator = torch.Generator().manual_seed(SEED + 3)
        for layer in ("rpn_conv", "rpn_cls_score", "rpn_bbox_pred"):
            draw(getattr(rpn.rpn_head, layer), 0.01, generator)
    if whiten:
        sizes = backbone_feature_sizes(model.backbone, rpn.in_features)
        mean, std = rpn_target_statistics(
            training_dicts(cfg), rpn, sizes, min_size=96, max_size=160
        )
        rpn.target_statistics.set(mean, std)
    parts = ("backbone.", "proposal_generator.") if stage == 1 else ("proposal_generator.",)
    train(cfg, model, stage, 1, parts, world)
    if whiten:
        affine(rpn.rpn_head.rpn_bbox_pred, std, mean)
        rpn.target_statistics.clear()
    torch.save(model.state_dict(), folder / f"{stage}.pth")
    propose(cfg, model, folder / f"{stage}.pkl")


def detector_stage(folder: Path, stage: int, restart: bool, world: int) -> None:
    """Stage 2 or 4; leaves a checkpoint."""
    cfg = plain_cfg(folder, "fast_rcnn", folder / f"{stage - 1}.pkl")
    model = PaperTrainer.build_model(cfg)
    weights: Weights = torch.load(folder / f"{stage - 1}.pth", weights_only=True)
    if stage == 2:
        start: Weights = torch.load(folder / "start.pth", weights_only=True)
        weights |= {k: v for k, v in start.items() if not k.startswith("proposal_generator.")}
    model.load_state_dict(weights)
    predictor = model.roi_heads.box_predictor
    mean, std, _ = head_target_statistics(
        training_dicts(cfg, cfg.DATASETS.PROPOSAL_FILES_TRAIN), 3, predictor.box2box_transform
    )
    if stage == 4 and restart:
        generator = torch.Generator().manual_seed(SEED + 4)
        draw(predictor.cls_score, 0.01, generator)
        draw(predictor.bbox_pred, 0.001, generator)
    elif stage == 4:
        affine(predictor.bbox_pred, 1 / std.double(), -mean.double() / std.double())
    predictor.target_statistics.set(mean, std)
    parts = ("backbone.", "roi_heads.") if stage == 2 else ("roi_heads.",)
    train(cfg, model, stage, 2, parts, world)
    affine(predictor.bbox_pred, std, mean)
    predictor.target_statistics.clear()
    torch.save(model.state_dict(), folder / f"{stage}.pth")


def four_trainings(folder: Path, *, whiten: bool, restart: bool, world: int = 1) -> Weights:
    """Train from ``folder/start.pth``; leaves ``folder/{1,2,3,4}.pth`` and ``{1,3}.pkl``.

    Args:
        folder: exists; "start.pth" is written.
        whiten: normalise the RPN's targets.
        restart: the predictor starts again in stage 4.
        world: batches per iteration.

    Returns:
        the weights of the start.
    """
    torch.manual_seed(0)
    start: Weights = PaperTrainer.build_model(plain_cfg(folder, "joint")).state_dict()
    torch.save(start, folder / "start.pth")
    rpn_stage(folder, 1, whiten, world)
    detector_stage(folder, 2, restart, world)
    rpn_stage(folder, 3, whiten, world)
    detector_stage(folder, 4, restart, world)
    return start


def check_same(oracle: Path, run: Path) -> None:
    """Compare all weights after every stage."""
    for stage in (1, 2, 3, 4):
        expected: Weights = torch.load(oracle / f"{stage}.pth", weights_only=True)
        expected = {k: v for k, v in expected.items() if "target_statistics" not in k}  # all clear
        ours: Weights = torch.load(run / f"stage{stage}_final.pth", weights_only=True)["model"]
        assert ours.keys() == expected.keys()
        different = {
            k: (ours[k] - expected[k]).abs().max().item()
            for k in ours
            if not torch.equal(ours[k], expected[k])
        }
        assert not different, f"stage {stage}: {different}"
