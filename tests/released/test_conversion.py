"""The converter of published files against the mapping written here, and through a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from frcnn_plugin.checkpoint import convert_caffe, write_caffemodel
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer

from .caffe_net import VGG16_ALT_OPT, VGG16_COCO, ZF_ALT_OPT, Net
from .harness import load_config, model_input
from .runs import FC, Case, as_detections, largest_difference, transcription
from .weights import NARROW, make_weights, state_dict

NETS = [VGG16_ALT_OPT, ZF_ALT_OPT, VGG16_COCO]


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_names_and_order(net: Net) -> None:
    weights = make_weights(net, NARROW[net.backbone], FC)
    converted = convert_caffe({k: [t.numpy() for t in v] for k, v in weights.items()})
    expected = state_dict(net, weights)
    assert set(converted.state_dict) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(converted.state_dict[name], tensor), name
    assert not converted.unused


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_file_detects_as_the_original(net: Net, tmp_path: Path) -> None:
    """As `train_net.py --eval-only` loads it, from a caffemodel of the released structure."""
    case = Case(net, (353, 500), seed=2)
    file = tmp_path / "released.caffemodel"
    write_caffemodel(file, {k: [t.numpy() for t in v] for k, v in case.weights().items()})
    cfg = load_config(net, case.all_widths(), FC, "MODEL.WEIGHTS", str(file))
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(str(file))
    with torch.no_grad():
        (output,) = model.eval()([model_input(case.image(), case.original)])
    run = transcription(case)
    assert run.margins.iou > 2e-6 and run.margins.cell > 5e-4  # not a matter of luck
    pixels, score = largest_difference(as_detections(net, output["instances"]), run.detections)
    assert pixels < 0.01 and score < 1e-4
