"""The converter of published files against the mapping written here, and through a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from frcnn_plugin import config_files
from frcnn_plugin.atomic_files import digest
from frcnn_plugin.checkpoint import convert_caffe, write_caffemodel
from frcnn_plugin.checkpoint.catalog import known_files
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.config import plugin_cfg

from .caffe_net import VGG16_ALT_OPT, VGG16_COCO, ZF_ALT_OPT, Net
from .harness import CONFIGS, load_config, model_input
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


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_a_photo_becomes_a_picture_by_the_name_of_a_detector(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the README, on a narrow file under the published name in the cache."""
    cfg = plugin_cfg()
    config_files.load_config_file(cfg, f"frcnn://{CONFIGS[net.name]}")
    known = known_files.find(cfg.MODEL.WEIGHTS.removeprefix("frcnn://"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    file = tmp_path / "frcnn_plugin" / known.file_name
    file.parent.mkdir()
    case = Case(net, (120, 160), background=0.0)
    write_caffemodel(file, {k: [t.numpy() for t in v] for k, v in case.weights().items()})
    stand_in = dataclasses.replace(known, checksum=f"sha1:{digest(file, 'sha1')}", archive=None)
    monkeypatch.setattr(known_files, "CATALOG", (stand_in,))
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (160, 120), "teal").save(photo)

    words = ["predict", "--weights", f"frcnn://{known.name}", str(photo), "--score", "0"]
    words += ["--config-file", f"frcnn://{CONFIGS[net.name]}", "--output", str(tmp_path / "found")]
    key = "MODEL.PAPER_VGG.CHANNELS" if net.backbone == "VGG16" else "MODEL.PAPER_ZF.CHANNELS"
    widths = str([*case.all_widths()])
    assert main([*words, key, widths, "MODEL.ROI_BOX_HEAD.FC_DIM", str(case.fc)]) == 0
    assert (tmp_path / "found" / "photo.jpg").is_file()
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    names = [category["name"] for category in found["categories"]]
    assert (len(names), names[0]) == ((80, "person") if "COCO" in net.name else (20, "aeroplane"))
    assert found["annotations"]
