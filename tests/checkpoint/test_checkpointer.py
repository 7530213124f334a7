"""Weights that do not fit stop the run; checkpoints say what they are."""

from __future__ import annotations

import logging
import os
import pickle
import re
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from frcnn_plugin.checkpoint import KEY, Metadata, write_caffemodel
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer, preprocessing
from frcnn_plugin.checkpoint.metadata import TORCHVISION
from frcnn_plugin.engine import evaluate_checkpoint
from frcnn_plugin.engine.trainer import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import fold_target_statistics
from tests.cli.conftest import frcnn
from tests.damage import Calls

from . import networks

# The networks of .networks as a config.
NARROW = [*("MODEL.PAPER_VGG.CHANNELS", [4] * 5), *("MODEL.ROI_BOX_HEAD.FC_DIM", 6)]


def load(cfg, path: Path, **kwargs) -> torch.nn.Module:
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, **kwargs).load(str(path))
    return model


@pytest.fixture
def caffemodel(tmp_path: Path) -> Path:
    path = tmp_path / "vgg16.caffemodel"
    write_caffemodel(path, networks.vgg16())
    return path


def test_caffemodel_as_it_is(tiny_cfg, caffemodel: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, "frcnn_plugin"):
        model = load(tiny_cfg(*NARROW), caffemodel)
    layers = networks.vgg16()
    assert model.backbone.conv3.conv3_2.weight.tolist() == layers["conv3_2"][0].tolist()
    assert model.roi_heads.box_head.fc6.bias.tolist() == layers["fc6"][1].tolist()
    assert "vgg16.caffemodel (VGG16, ImageNet, caffemodel) is converted" in caplog.text


def test_weights_of_another_network(tiny_cfg, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"stem.conv1.weight": torch.ones(4, 3, 3, 3)}, path)
    message = r"VGG16: 0 of 13 conv layers found in .*resnet\.pth; its first keys: stem\.conv1\.we"
    with pytest.raises(UserError, match=message + r".*frcnn weights check"):
        load(tiny_cfg(), path)


def test_without_fc6_and_fc7(tiny_cfg, tmp_path: Path) -> None:
    """A features-only file: stops, unless the config allows it or the head is not trained."""
    layers = {k: v for k, v in networks.vgg16().items() if not k.startswith("fc")}
    path = tmp_path / "features.caffemodel"
    write_caffemodel(path, layers)
    with pytest.raises(UserError, match=r"FC6FC7Head: 0 of 2 .*MODEL.WEIGHTS_MAY_LACK"):
        load(tiny_cfg(*NARROW), path)
    load(tiny_cfg(*NARROW, "MODEL.WEIGHTS_MAY_LACK", ["roi_heads.box_head"]), path)
    load(tiny_cfg(*NARROW, "MODEL.PAPER_RCNN.PHASE", "rpn"), path)


def test_fc6_and_fc7_as_convolutions(tiny_cfg, caffemodel: Path, tmp_path: Path, caplog) -> None:
    """R-FCN's reduced layers: every third of 6 outputs, every third of 7 x 7 taps."""
    rfcn = [
        *("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
        *("MODEL.RFCN.BACKBONE_FC", "reduced"),
        *("MODEL.RFCN.CONV_DIM", 2),
    ]
    with caplog.at_level(logging.INFO, "frcnn_plugin"):
        model = load(tiny_cfg(*NARROW, *rfcn), caffemodel)
    assert "fc6 and fc7 of" in caplog.text
    layers, head = networks.vgg16(), model.roi_heads.box_head
    fc6 = layers["fc6"][0].reshape(6, 4, 7, 7)
    for i, output in enumerate((0, 3)):
        for row, column in ((0, 0), (1, 2), (2, 1)):
            taps = fc6[output, :, 3 * row, 3 * column]
            assert head.fc6.weight[i, :, row, column].tolist() == taps.tolist()
    assert head.fc6.bias.tolist() == layers["fc6"][1][[0, 3]].tolist()
    assert head.fc7.weight[:, :, 0, 0].tolist() == layers["fc7"][0][[0, 3]][:, [0, 3]].tolist()
    assert head.fc7.bias.tolist() == layers["fc7"][1][[0, 3]].tolist()

    # What the model then saves is not sub-sampled again; a width that does not divide is refused.
    AtomicCheckpointer(model, str(tmp_path), cfg=tiny_cfg(*NARROW, *rfcn)).save("saved")
    again = load(tiny_cfg(*NARROW, *rfcn), tmp_path / "saved.pth")
    assert again.roi_heads.box_head.fc6.weight.equal(head.fc6.weight)
    with pytest.raises(UserError, match="RFCNConvs: 0 of 2 fully connected layers found"):
        load(tiny_cfg(*NARROW, *rfcn, "MODEL.RFCN.CONV_DIM", 4), caffemodel)


def test_frozen_parts_must_not_stay_random(tiny_cfg, caffemodel: Path) -> None:
    key, rpn = "MODEL.PAPER_RCNN.FREEZE", "proposal_generator"
    load(tiny_cfg(*NARROW, key, ["roi_heads.box_head"]), caffemodel)
    with pytest.raises(UserError, match=rf"FREEZE \['{rpn}'\]: 6 of these weights, such as {rpn}"):
        load(tiny_cfg(*NARROW, key, [rpn]), caffemodel)
    load(tiny_cfg(*NARROW, key, [rpn], "MODEL.WEIGHTS_MAY_LACK", [rpn]), caffemodel)


def test_may_lack_covers_other_shapes(tiny_cfg, caffemodel: Path) -> None:
    cfg = tiny_cfg(
        *("MODEL.PAPER_VGG.CHANNELS", [4] * 5),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 7),
        *("MODEL.WEIGHTS_MAY_LACK", ["roi_heads.box_head"]),
    )
    model = load(cfg, caffemodel)
    assert model.roi_heads.box_head.fc6.weight.shape[0] == 7


def test_other_numbers_of_classes_and_anchors(tiny_cfg, tmp_path: Path, caplog) -> None:
    old, cfg = (
        tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 5),
        tiny_cfg(
            *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[64, 128, 256, 512]]),
        ),
    )
    before = build_model(old)
    torch.save({"model": before.state_dict()}, tmp_path / "a.pth")
    model = build_model(cfg)
    random = model.roi_heads.box_predictor.cls_score.weight.clone()
    with caplog.at_level(logging.WARNING, "frcnn_plugin"):
        AtomicCheckpointer(model, cfg=cfg).load(str(tmp_path / "a.pth"))
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, random)
    assert torch.equal(
        model.proposal_generator.rpn_head.rpn_conv.weight,
        before.proposal_generator.rpn_head.rpn_conv.weight,
    )
    text = caplog.text
    assert "roi_heads.box_predictor.cls_score.weight (6x" in text
    assert "proposal_generator.rpn_head.rpn_bbox_pred.bias (36 in the file, 48 here)" in text
    assert "rpn_conv" not in text
    with pytest.raises(UserError, match=r"cls_score\.weight is 18x8x1x1 in"):
        load(cfg, tmp_path / "a.pth", evaluating=True)


def test_torchvision_weights_in_a_caffe_config(
    tiny_cfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vgg16.pth"
    torch.save(networks.torchvision_vgg16(), path)
    with pytest.raises(UserError, match="--layout"):
        load(tiny_cfg(*NARROW), path)
    monkeypatch.setattr("frcnn_plugin.checkpoint.read.sha256", lambda path: "397923af")
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is BGR, the weights expect RGB"):
        load(tiny_cfg(*NARROW), path)
    overrides = [
        *("INPUT.FORMAT", "RGB"),
        *("MODEL.PIXEL_MEAN", list(TORCHVISION.mean)),
        *("MODEL.PIXEL_STD", list(TORCHVISION.std)),
    ]
    model = load(tiny_cfg(*NARROW, *overrides), path)
    expected = networks.vgg16()["conv5_3"][0]
    assert model.backbone.conv5.conv5_3.weight.tolist() == expected.tolist()


def test_imagenet_weights_cannot_be_evaluated(tiny_cfg, caffemodel: Path, tmp_path: Path) -> None:
    """They have fc6 and fc7, but no predictor."""
    cfg = tiny_cfg(*NARROW, "MODEL.WEIGHTS", str(caffemodel), "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be evaluated: it lacks .*those of ImageNet are"):
        evaluate_checkpoint(cfg)


def test_checkpoints_say_what_they_are(tiny_cfg, tmp_path: Path) -> None:
    MetadataCatalog.get("three_things").thing_classes = ["a", "b", "c"]
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", ("three_things",))
    model = build_model(cfg)
    AtomicCheckpointer(model, str(tmp_path), cfg=cfg).save("model_final", iteration=3)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    metadata = Metadata.from_dict(content[KEY])
    assert metadata is not None
    assert metadata.kind == "detector"
    assert metadata.preprocessing == preprocessing(cfg)
    assert metadata.classes == ("a", "b", "c")
    assert metadata.config == cfg.dump()
    assert content["iteration"] == 3
    load(cfg, tmp_path / "model_final.pth", evaluating=True)
    with pytest.raises(UserError, match=r"PIXEL_MEAN is \[1.0, 2.0, 3.0\], the weights expect"):
        load(tiny_cfg("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]), tmp_path / "model_final.pth")


def test_without_a_config_nothing_is_checked(tiny_cfg, tmp_path: Path) -> None:
    """For other code that uses the class as it uses Detectron2's."""
    model = build_model(tiny_cfg())
    AtomicCheckpointer(model, str(tmp_path)).save("a")
    assert KEY not in torch.load(tmp_path / "a.pth", weights_only=True)
    AtomicCheckpointer(build_model(tiny_cfg())).load(str(tmp_path / "a.pth"))


def test_converted_detector_starts_training_in_the_units_of_the_run(
    tiny_cfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its raw deltas x (10, 10, 5, 5) are what the box layer predicts then; boxes stay."""
    layers = networks.detector(networks.vgg16(), classes=3, rpn_conv="rpn_conv/3x3")
    path = tmp_path / "det.caffemodel"
    write_caffemodel(path, layers)
    monkeypatch.setattr(PaperTrainer, "build_train_loader", classmethod(lambda *args: []))
    cfg = tiny_cfg(*NARROW, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path / "out"))
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=False)
    predictor = trainer.model.roi_heads.box_predictor
    assert not predictor.target_statistics.active
    raw = torch.from_numpy(layers["bbox_pred"][0][4:])
    expected = raw * torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(3)[:, None]
    torch.testing.assert_close(predictor.bbox_pred.weight.detach(), expected)


@pytest.mark.parametrize("way", ["MODEL.WEIGHTS", "last_checkpoint", "proposals", "test proposals"])
def test_no_code_in_a_pickle_is_run(tiny_cfg, tmp_path: Path, way: str) -> None:
    """Wherever Detectron2 would unpickle what the config names."""
    evil, harm = tmp_path / "evil.pkl", Calls(os.mkdir, str(tmp_path / "was_run"))
    evil.write_bytes(pickle.dumps({"model": {"a": harm}, "__author__": "x"}))
    cfg = tiny_cfg(
        *("MODEL.LOAD_PROPOSALS", True),
        *("DATASETS.PROPOSAL_FILES_TRAIN", (str(evil),)),
        *("DATASETS.PROPOSAL_FILES_TEST", (str(evil),)),
    )
    with pytest.raises(UserError, match=r"evil\.pkl.*posix\.mkdir"):
        if way == "MODEL.WEIGHTS":
            load(tiny_cfg(), evil)
        elif way == "last_checkpoint":
            (tmp_path / "last_checkpoint").write_text("evil.pkl")
            AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("")
        elif way == "proposals":
            PaperTrainer.build_train_loader(cfg)
        else:
            PaperTrainer.build_test_loader(cfg, "any")
    assert not (tmp_path / "was_run").exists()


def test_pickle_of_the_model_zoo(tmp_path: Path) -> None:
    """Arrays, whose names Detectron2 matches."""
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(1, 2, 1)))
    arrays = {"conv.weight": np.full((2, 1, 1, 1), 7, "f4"), "conv.bias": np.ones(2, "f4")}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 2))
    AtomicCheckpointer(model).load(str(tmp_path / "a.pkl"))
    assert model.conv.weight.flatten().tolist() == [7.0, 7.0]


def test_left_over_layers_are_logged(tiny_cfg, tmp_path: Path, caplog) -> None:
    layers = networks.vgg16()
    write_caffemodel(tmp_path / "a.caffemodel", {**layers, "extra": layers["fc8"]})
    with caplog.at_level(logging.INFO, "frcnn_plugin"):
        load(tiny_cfg(*NARROW), tmp_path / "a.caffemodel")
    assert "left out: fc8, extra" in caplog.text


def test_may_lack_of_what_the_model_has_not(tiny_cfg, caffemodel: Path) -> None:
    cfg = tiny_cfg(*NARROW, "MODEL.WEIGHTS_MAY_LACK", ["roi_heads.box_haed"])
    with pytest.raises(UserError, match=r"no 'roi_heads\.box_haed': did you mean roi_heads\.box_h"):
        load(cfg, caffemodel)


def test_folder_instead_of_a_file(tiny_cfg, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        load(tiny_cfg(), tmp_path)


def with_config(cfg, folder: Path) -> Path:
    AtomicCheckpointer(build_model(cfg), str(folder), cfg=cfg).save("model_final")
    return folder / "model_final.pth"


def test_anchors_that_fit_the_file_are_named(tiny_cfg, tmp_path: Path, caplog) -> None:
    key = "MODEL.ANCHOR_GENERATOR"
    old = tiny_cfg(f"{key}.SIZES", [[32, 64, 128, 256]], f"{key}.ASPECT_RATIOS", [[0.5, 2.0]])
    path = with_config(old, tmp_path)
    fitting = f'. Its 8 anchors: {key}.SIZES "[[32, 64, 128, 256]]" {key}.ASPECT_RATIOS "[[0.5, 2.0'
    with pytest.raises(UserError, match=re.escape(fitting)):
        load(tiny_cfg(), path, evaluating=True)
    with caplog.at_level(logging.WARNING, "frcnn_plugin"):
        load(tiny_cfg(), path)
    assert fitting in caplog.text
    # Without a config in it, those of the original networks with as many.
    torch.save({"model": build_model(tiny_cfg()).state_dict()}, tmp_path / "a.pth")
    usual = f'. It has 9 anchors, such as {key}.SIZES "[[128, 256, 512]]" {key}.ASPECT_RATIOS "[['
    with pytest.raises(UserError, match=re.escape(usual)):
        load(old, tmp_path / "a.pth", evaluating=True)


@pytest.mark.parametrize("evaluating", [True, False])
def test_other_anchors_of_the_same_number(
    tiny_cfg, tmp_path: Path, caplog, evaluating: bool
) -> None:
    path = with_config(tiny_cfg(), tmp_path)
    with caplog.at_level(logging.WARNING, "frcnn_plugin"):
        load(tiny_cfg(), path, evaluating=evaluating)
    assert "anchors" not in caplog.text
    other = tiny_cfg("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]])
    with caplog.at_level(logging.WARNING, "frcnn_plugin"):
        load(other, path, evaluating=evaluating)
    assert "was trained with other anchors" in caplog.text
    assert 'MODEL.ANCHOR_GENERATOR.SIZES "[[32, 64, 128]]"' in caplog.text


def test_statistics_that_the_model_cannot_use(tiny_cfg, tmp_path: Path, capsys) -> None:
    """Under Detectron2's own box layers boxes would be wrong; folded they are right."""
    ours = build_model(tiny_cfg())
    predictor = ours.roi_heads.box_predictor
    predictor.target_statistics.set(torch.full((3, 4), 0.1), torch.full((3, 4), 0.2))
    torch.save({"model": ours.state_dict()}, tmp_path / "a.pth")
    stock = torch.nn.Linear(predictor.bbox_pred.in_features, predictor.bbox_pred.out_features)
    theirs = torch.nn.Module()
    theirs.roi_heads = torch.nn.Module()
    theirs.roi_heads.box_predictor = torch.nn.ModuleDict({"bbox_pred": stock})
    with pytest.raises(UserError, match=r"box_predictor of the model cannot use.*--fold"):
        AtomicCheckpointer(theirs).load(str(tmp_path / "a.pth"))
    frcnn("weights", "convert", tmp_path / "a.pth", tmp_path / "b.pth", "--fold")
    assert "statistics folded in" in capsys.readouterr().out
    AtomicCheckpointer(theirs).load(str(tmp_path / "b.pth"))
    fold_target_statistics(ours)
    assert torch.equal(stock.weight, predictor.bbox_pred.weight)
    assert torch.equal(stock.bias, predictor.bbox_pred.bias)
    assert not [k for k in torch.load(tmp_path / "b.pth")["model"] if "statistics" in k]


def test_part_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / "model_0000004.pth.partial").write_bytes(b"half")
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_0000009")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last_checkpoint", "model_0000009.pth"]


def test_in_a_trainer_of_others(tiny_cfg, caffemodel: Path, tmp_path: Path) -> None:
    """As docs/weights.md says: Detectron2's own checkpointer cannot read it."""

    class Trainer(DefaultTrainer):
        build_train_loader = classmethod(lambda *args: [])

    cfg = tiny_cfg(*NARROW, "MODEL.WEIGHTS", str(caffemodel), "OUTPUT_DIR", str(tmp_path / "out"))
    trainer = Trainer(cfg)
    with pytest.raises(pickle.UnpicklingError):
        trainer.resume_or_load(resume=False)
    trainer.checkpointer = AtomicCheckpointer(
        trainer.model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(trainer)
    )
    trainer.resume_or_load(resume=False)
    expected = networks.vgg16()["conv3_2"][0]
    assert trainer.model.backbone.conv3.conv3_2.weight.tolist() == expected.tolist()


def test_parts_that_do_not_fit_the_run(tiny_cfg, tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth does not fit .*KeyError: 'param_groups'"):
        AtomicCheckpointer(model, optimizer=optimizer).load(str(tmp_path / "a.pth"))
    state = build_model(tiny_cfg()).state_dict()
    state["roi_heads.box_predictor.target_statistics.std"][1, 2] = 0
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth does not fit .*std of dw of class 1 is 0"):
        load(tiny_cfg(), tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=rf"^{tmp_path}/c\.pth is damaged, or no checkpoint"):
        load(tiny_cfg(), tmp_path / "c.pth")
