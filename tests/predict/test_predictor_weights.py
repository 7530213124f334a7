"""A predictor from weight files of every kind, and from those that are no whole detector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frcnn_plugin.checkpoint import (
    Metadata,
    convert_to_caffe,
    read_weights,
    save_weights,
    write_caffemodel,
)
from frcnn_plugin.checkpoint.conversion import Conversion
from frcnn_plugin.checkpoint.metadata import CAFFE, KEY
from frcnn_plugin.errors import UserError
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.predict.saved_detectors import BOXES, CLASSES, SMALL, assert_same
from tests.random_detector import random_detector, squares


def test_a_config_of_another_version(save_detector: Callable) -> None:
    """Unknown keys in a checkpoint do no harm; mistyped overrides are found all the same."""
    path = save_detector()
    content = torch.load(path, weights_only=True)
    content[KEY]["config"] += "FROM_THE_FUTURE: 1\n"
    torch.save(content, path)
    assert len(FasterRCNNPredictor(path, device="cpu")(squares(100, 150))) > 0
    with pytest.raises(UserError, match=r"no key MODEL.DEVIC; did you mean MODEL.DEVICE"):
        FasterRCNNPredictor(path, opts=["MODEL.DEVIC", "cpu"])


def test_class_names(save_detector: Callable, caplog: pytest.LogCaptureFixture) -> None:
    path = save_detector("DATASETS.TRAIN", "('nowhere',)")
    with caplog.at_level(logging.WARNING):
        assert FasterRCNNPredictor(path).class_names == ("class 1", "class 2", "class 3")
    assert (
        f"{path} does not name its 3 classes; `frcnn weights convert --classes` adds names"
        in caplog.text
    )
    path = save_detector("MODEL.ROI_HEADS.NUM_CLASSES", 20, "DATASETS.TRAIN", "('voc07_test',)")
    assert FasterRCNNPredictor(path).class_names[0] == "aeroplane"


def test_weights_without_config(tiny_cfg: Callable, tmp_path: Path) -> None:
    """As converted from the authors' release: classes and preprocessing, no config."""
    cfg = tiny_cfg(*SMALL)
    model = random_detector(cfg)
    path = str(tmp_path / "released.pth")
    conversion = Conversion(
        "detector", model.state_dict(), Metadata("detector", CAFFE, CLASSES), []
    )
    save_weights(path, conversion)
    with pytest.raises(UserError) as caught:
        FasterRCNNPredictor(path)
    assert str(caught.value) == (
        f"{path} carries no config: give the one that it was trained with (--config-file, or "
        "config_file in Python); for the detectors that the authors released, such as "
        "frcnn://released/vgg16_voc07_alt_opt.yaml"
    )
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    predictor = FasterRCNNPredictor(path, str(config))
    assert predictor.class_names == CLASSES and len(predictor(squares(100, 150))) > 0


def test_a_caffemodel(tiny_cfg: Callable, save_detector: Callable, tmp_path: Path) -> None:
    """As the authors released them, but tiny: three classes, whose names it cannot hold."""
    content = read_weights(save_detector())
    path, config = tmp_path / "released.caffemodel", tmp_path / "config.yaml"
    write_caffemodel(path, convert_to_caffe(content.state_dict, content.metadata)[0])
    config.write_text(tiny_cfg(*SMALL).dump())
    predictor = FasterRCNNPredictor(path, str(config))
    image = squares(100, 150)
    assert_same(predictor(image), FasterRCNNPredictor(save_detector())(image), tolerance=1e-4)
    with pytest.raises(UserError, match=r"released.caffemodel carries no config: give the one"):
        FasterRCNNPredictor(path)


def test_a_pickle_of_the_host_needs_a_config(tmp_path: Path) -> None:
    path = tmp_path / "model_final_721ade.pkl"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match=r"721ade.pkl carries no config: give the one"):
        FasterRCNNPredictor(path)


def test_wrong_files(save_detector: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file no.pth"):
        FasterRCNNPredictor("no.pth")
    path = Path(save_detector())
    damaged = tmp_path / "half.pth"
    damaged.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"half.pth is damaged, or no checkpoint"):
        FasterRCNNPredictor(damaged)
    content = torch.load(path, weights_only=True)
    content[KEY]["config"] = "MODEL: [1, 2"
    torch.save(content, damaged)
    with pytest.raises(UserError, match=r"(?s)config in .*half.pth cannot be used .* --config-fil"):
        FasterRCNNPredictor(damaged)
    content[KEY] = {"kind": "imagenet"}
    torch.save(content, damaged)
    with pytest.raises(UserError, match=r"half.pth holds weights of ImageNet, where training star"):
        FasterRCNNPredictor(damaged)


def trainer_state(step: int) -> dict:
    return {"hooks": {"FourStepHook": {"step": step}}}


@pytest.mark.parametrize("step", [0, 1, 3])  # 0: trained with PHASE rpn
def test_region_proposal_network(save_detector: Callable, step: int) -> None:
    opts = () if step else ("MODEL.PAPER_RCNN.PHASE", "rpn")
    path = save_detector(*opts, trainer=trainer_state(step))
    predictor = FasterRCNNPredictor(path, device="cpu")
    with pytest.raises(UserError) as caught:
        predictor(squares(100, 150))
    assert str(caught.value) == (
        f"{path} is a region proposal network and detects nothing: give the checkpoint of a whole "
        "detector (stages 1 to 3 of a four-step run leave half of a detector; the last one's is "
        "model_final.pth). Its proposals: FasterRCNNPredictor.propose, or `frcnn proposals dump`"
    )
    with pytest.raises(UserError, match=r"is a region proposal network: it has no trained fc7"):
        predictor.extract(squares(100, 150), BOXES)
    [proposals] = predictor.propose([squares(100, 150)])
    assert proposals.image_size == (100, 150) and len(proposals) > 3
    assert proposals.proposal_boxes.tensor[:, 2].max() <= 150


@pytest.mark.parametrize("step", [0, 2])  # 0: Fast R-CNN
def test_detector_that_is_given_proposals(save_detector: Callable, step: int) -> None:
    opts = () if step else ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    if not step:
        opts = (*opts, "MODEL.PAPER_RCNN.PHASE", "fast_rcnn", "MODEL.LOAD_PROPOSALS", True)
    path = save_detector(*opts, trainer=trainer_state(step))
    predictor = FasterRCNNPredictor(path, device="cpu")
    with pytest.raises(UserError) as caught:
        predictor(squares(100, 150))
    assert str(caught.value) == (
        f"{path} is a detector that is given its proposals: give the checkpoint of a whole one "
        "(stages 1 to 3 of a four-step run leave half of a detector; the last one's is "
        "model_final.pth). Features of given boxes: FasterRCNNPredictor.extract, or "
        "`frcnn predict --boxes`; its average precision: `frcnn train --eval-only`"
    )
    with pytest.raises(UserError, match=r"detects on proposals that it is given and makes none"):
        predictor.propose([squares(100, 150)])
    assert len(predictor.extract(squares(100, 150), BOXES)) == 3
