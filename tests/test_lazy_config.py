"""configs/lazy: the model, the optimizer and the schedule of the YAML, in Detectron2's own loop."""

from __future__ import annotations

from inspect import isroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.engine import SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig

from frcnn_plugin import add_frcnn_config, get_config_file, load_config_file
from frcnn_plugin.data import register_voc, write_synthetic_voc
from frcnn_plugin.errors import UserError
from tests.conftest import make_input

NAME = "faster_rcnn_vgg16_voc_joint"
BOXES = [[10.0, 12.0, 160.0, 170.0], [50.0, 20.0, 320.0, 290.0]]


def lazy(*overrides: str) -> Any:
    """Narrow, as all layers are the same when they are wide."""
    narrow = ["model.backbone.channels=[4,4,8,8,8]", "model.roi_heads.box_head.fc_dim=16"]
    config = LazyConfig.load(get_config_file(f"lazy/{NAME}.py"))
    return LazyConfig.apply_overrides(config, [*narrow, *overrides])


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    load_config_file(cfg, f"frcnn://{NAME}.yaml")
    narrow = ["MODEL.PAPER_VGG.CHANNELS", [4, 4, 8, 8, 8], "MODEL.ROI_BOX_HEAD.FC_DIM", 16]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *narrow])
    return cfg


def outputs(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[Any]]:
    batch = [make_input(600, 650, BOXES, scale=1.6), make_input(375, 1000, BOXES[:1], scale=2.0)]
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()(batch)
        sum(losses.values()).backward()
    with torch.no_grad():
        return losses, [x["instances"] for x in model.eval()(batch)]


def test_the_model_is_that_of_the_yaml(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    ours, theirs = build_model(cfg), instantiate(lazy().model)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    (losses, found), (other_losses, other_found) = outputs(ours), outputs(theirs)
    assert losses == other_losses and len(losses) == 4
    for a, b in zip(found, other_found, strict=True):
        assert len(a) >= 100
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert p.requires_grad == q.requires_grad, name
        assert p.grad is q.grad is None or torch.equal(p.grad, q.grad), name


def settings(value: Any) -> Any:
    """Everything that is set in an object: numbers, names, the settings of its parts."""
    if isinstance(value, torch.nn.Module):
        parts = {name: vars(module) for name, module in value.named_modules()}
        own = {f"{n}.{k}": v for n, part in parts.items() for k, v in part.items() if k[0] != "_"}
        return {key: settings(v) for key, v in own.items()}
    if isinstance(value, (tuple, list, ListConfig)):
        return [settings(v) for v in value]
    if isinstance(value, dict):
        return {key: settings(v) for key, v in value.items()}
    if isroutine(value) or not hasattr(value, "__dict__"):
        return getattr(value, "__name__", value)
    return {"class": type(value).__name__, **settings(vars(value))}


def test_every_setting_of_every_layer_is_that_of_the_yaml(cfg: CfgNode) -> None:
    """Also those that do not show in two images."""
    ours, theirs = settings(build_model(cfg)), settings(instantiate(lazy().model))
    # Of random scores, which there are not; the default; 1, which is also the default.
    for name in ("proposal_generator.seed", "roi_heads.box_pooler.integer_rois"):
        ours.pop(name), theirs.pop(name, None)
    ours["roi_heads.box_predictor.loss_weight"]["loss_cls"] = 1.0
    assert len(ours) > 300 and ours == theirs


def test_optimizer_and_schedule_are_those_of_the_yaml(cfg: CfgNode) -> None:
    model, config = build_model(cfg), lazy()
    config.optimizer.params.model = model
    optimizer, wanted = instantiate(config.optimizer), build_optimizer(cfg, model)
    for group, other in zip(optimizer.param_groups, wanted.param_groups, strict=True):
        keys = ("lr", "momentum", "weight_decay", "nesterov", "dampening")
        assert [group[k] for k in keys] == [other[k] for k in keys]
        assert [id(p) for p in group["params"]] == [id(p) for p in other["params"]]
    assert config.train.max_iter == cfg.SOLVER.MAX_ITER
    assert config.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    scheduler, multiplier = build_lr_scheduler(cfg, wanted), instantiate(config.lr_multiplier)
    for scheduler.last_epoch in (0, 1, 49999, 50000, 69999):
        rates = [x["lr"] * multiplier(scheduler.last_epoch / 70000) for x in optimizer.param_groups]
        assert scheduler.get_lr() == pytest.approx(rates)


def test_it_is_no_yaml(cfg: CfgNode) -> None:
    with pytest.raises(UserError, match=r"joint\.py, .*LazyConfig; use the \.yaml of that name"):
        load_config_file(cfg.clone(), f"frcnn://lazy/{NAME}.py")


@pytest.mark.usefixtures("restore_catalogs")
def test_it_trains_in_detectron2s_own_loop(tmp_path: Path) -> None:
    """What tools/lazyconfig_train_net.py does, for two iterations and four images."""
    write_synthetic_voc(tmp_path / "data", num_trainval=4, num_test=2)
    for split in ("trainval", "test"):
        classes = ["circle", "square", "triangle"]
        register_voc(f"lazy_{split}", tmp_path / "data", split, classes=classes)
    parts = ("train", "test")
    config = lazy(
        *(f"dataloader.{p}.num_workers=0" for p in parts),
        *(f"dataloader.{p}.mapper.augmentations.0.short_edge_length=[160]" for p in parts),
        "dataloader.train.dataset.names=lazy_trainval",
        "dataloader.test.dataset.names=lazy_test",
        "model.short_sides=[160]",
        "model.proposal_generator.anchor_generator.sizes=[[32,64,96]]",
        *("model.roi_heads.num_classes=3", "model.backbone.freeze_at=0"),
        *("train.device=cpu", "train.max_iter=2", f"train.output_dir={tmp_path / 'out'}"),
        "train.init_checkpoint=",
    )
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert not (tmp_path / "config.yaml.pkl").exists(), "it can be written as YAML"
    model = instantiate(config.model).to(config.train.device)
    config.optimizer.params.model = model
    trainer = SimpleTrainer(
        create_ddp_model(model, **config.train.ddp),
        instantiate(config.dataloader.train),
        instantiate(config.optimizer),
    )
    checkpointer = DetectionCheckpointer(model, config.train.output_dir, trainer=trainer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(config.lr_multiplier))])
    checkpointer.resume_or_load(config.train.init_checkpoint, resume=False)
    before = model.roi_heads.box_head.fc7.weight.clone()
    trainer.train(0, config.train.max_iter)
    assert not torch.equal(before, model.roi_heads.box_head.fc7.weight)
    results = inference_on_dataset(
        model, instantiate(config.dataloader.test), instantiate(config.dataloader.evaluator)
    )
    assert 0 <= results["bbox"]["AP50"] <= 100
    assert (tmp_path / "out" / "inference" / "evaluation.json").exists()
