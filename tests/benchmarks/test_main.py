"""python -m benchmarks on tiny networks. Times are not looked at, only that they are there."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import family, measuring, targets
from benchmarks.__main__ import main

from .tiny import CONFIG, SIZE, SMALL

PEERS = ["--versus", "detectron2", "--versus", "torchvision"]


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the tool says when it stops; not a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code not in (0, None)
    code = stop.value.code
    return str(code) if isinstance(code, str) else capsys.readouterr().err


# ---- infer, train ---------------------------------------------------------------------------


def test_infer_beside_both_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["infer", *SIZE, *PEERS, "--syncs", "--output", str(tmp_path), *SMALL])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    # A warm-up round is not among them; each round runs all.
    assert result["order"] == ["ours", "detectron2", "torchvision"] * 2
    assert {"command", "cpu", "cores", "threads", "gpu", "load"} <= set(result)
    assert {"frcnn_plugin", "PyTorch"} <= set(result["environment"])
    assert result["work"]["seed"] == 0
    for model in result["models"].values():
        # As many as the config allows.
        counts = {"proposals": 20, "detections": 10}
        assert {k: v for k, v in model["outcome"].items() if k in counts} == counts
        assert len(model["seconds"]) == 2
        sections = model["sections"]
        for i in range(2):
            inner = [sections[k][i] for k in ("conv", "proposal", "region-wise", "other")]
            assert sum(inner) == pytest.approx(sections["total"][i])
            assert sections["layers"][i] >= sections["conv"][i]
    assert (tmp_path / "infer.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "ours / this [95%]" in out
    assert "nms" in out  # each suppresses, and a GPU would have to be waited for


def test_train_in_bfloat16_beside_float32() -> None:
    result = main(["train", *SIZE, *PEERS, "--bf16", "--repeats", "1", *SMALL])
    assert result["order"] == ["ours bf16", "detectron2", "torchvision"]
    for model in result["models"].values():
        assert 0 < model["outcome"]["loss"] < 1000
        assert {"backward", "optimizer"} <= set(model["sections"])


def test_peers_in_bfloat16() -> None:
    result = main(["infer", *SIZE, *PEERS, "--versus-bf16", "--repeats", "1", *SMALL])
    assert result["order"] == ["ours", "detectron2 bf16", "torchvision bf16"]


def test_beside_busy_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(measuring, "busy", lambda n: (counts.append(n), nullcontext())[1])
    result = main(["infer", *SIZE, "--versus", "detectron2", "--busy", "3", *SMALL])
    one_round = ["ours", "detectron2", "ours beside others", "detectron2 beside others"]
    assert result["order"] == one_round * 2 and counts == [3] * 2 * 3  # a warm-up round, too
    assert set(result["models"]) == {"ours", "detectron2"}
    for model in result["models"].values():
        assert len(model["busy"]) == len(model["seconds"]) == 2
        assert model["busy"] != model["seconds"]
    assert "busy / alone [95%]" in capsys.readouterr().out


def test_which_detections_are_found_again() -> None:
    """All of them by the same model, in a process of its own as well; the first has no such row."""
    result = main(["infer", *SIZE, "--versus", CONFIG, "--separate", *SMALL])
    ours, theirs = (model["outcome"] for model in result["models"].values())
    assert "ours found, %" not in ours
    assert theirs["ours found, %"] == 100


def test_versus_a_config_with_overrides_of_its_own() -> None:
    overrides = ["--versus-opts", "MODEL.RPN.POST_NMS_TOPK_TEST", "7"]
    result = main(["infer", *SIZE, "--versus", CONFIG, *overrides, *SMALL])
    found = {name: m["outcome"]["proposals"] for name, m in result["models"].items()}
    assert found == {"ours": 20, "faster_rcnn_vgg16_voc_joint": 7}


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    held = torch.ones(2**28)  # 1 GiB of this process, which its children do not have
    result = main(["infer", *SIZE, "--memory", *SMALL])
    own = measuring.peak()["process_mib"]
    assert 50 < result["models"]["ours"]["peak"]["process_mib"] < own
    assert held[-1] == 1


# ---- scale, stages, data, targets -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "points"), [("image", "96,128"), ("gts", "2,30"), ("batch", "1,2")]
)
def test_curves(tmp_path: Path, kind: str, points: str) -> None:
    argv = ["train", *SIZE, "--scale", kind, "--points", points, "--output", str(tmp_path)]
    main([*argv, *SMALL])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert [x for x, _ in result["curves"]["ours"]] == [int(p) for p in points.split(",")]
    assert (tmp_path / f"train_{kind}.png").is_file()
    works = [point["work"] for point in result["points"]]
    key = {"image": "height", "gts": "objects", "batch": "batch"}[kind]
    assert [w[key] for w in works] == [int(p) for p in points.split(",")]


def test_curve_of_proposals() -> None:
    result = main(["infer", *SIZE, *PEERS, "--scale", "proposals", "--points", "5,9", *SMALL])
    for point, models in ((p["point"], p["models"]) for p in result["points"]):
        assert {m["outcome"]["proposals"] for m in models.values()} == {point}


def test_more_proposals_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["infer", *SIZE, "--scale", "proposals", "--points", "5,5000", *SMALL])
    out = capsys.readouterr().out
    assert re.findall(r"ours keeps \d+ proposals of (\d+)", out) == ["5000"]


def test_data(tmp_path: Path) -> None:
    argv = ["data", *SIZE, "--images", "3", "--workers", "0,1", "--output", str(tmp_path)]
    main([*argv, *SMALL])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert [workers for workers, _ in result["loader"]] == [0, 1]
    assert all(speed > 0 for _, speed in result["loader"])
    assert list(result["seconds"]) == ["5 boxes", "500 boxes"]


def test_targets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Eight processes that import torch would take a minute.
    monkeypatch.setattr(measuring, "ChildSession", measuring.LocalSession)
    main(["targets", *SIZE, "--images", "2", "--output", str(tmp_path), *SMALL])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row[1] for row in result["targets"]] == [
        *("<= 0.57", "<= 0.32", "<= 0.68", "<= 0.37", "<= 6", "<= 12", "<= 0.8", "<= 0.45"),
        *("<= 0.45", "<= 4", "<= 0.95", "<= 1", ">= 0.95", "<= 1.05"),
    ]
    assert {row[3] for row in result["targets"]} <= {"yes", "no"}
    assert list(result["infer"]["models"]) == ["ours", "ours bf16", "detectron2", "torchvision"]
    assert "reached" in capsys.readouterr().out


def test_the_best_peer_is_the_faster_one() -> None:
    models = {
        "ours": {"seconds": [1.0, 1.0]},
        "detectron2": {"seconds": [2.0, 2.0]},
        "torchvision": {"seconds": [4.0, 4.0]},
    }
    target = targets.TARGETS[0]
    value, text = target.value({"infer": {"models": models}})
    assert (value, text) == (0.5, "0.500 [0.500, 0.500] of detectron2")
    assert target.reached(0.57)
    assert not target.reached(0.58)


# ---- family ---------------------------------------------------------------------------------


def test_family_beside_the_plain_detector(capsys: pytest.CaptureFixture[str]) -> None:
    narrow = [
        "MODEL.RFCN.CONV_DIM",
        "8",
        "MODEL.HYPER.CHANNELS",
        "4",
        "MODEL.HYPER_RPN.FC_DIM",
        "8",
    ]
    result = main(["family", "--together", *SIZE, "--repeats", "1", *SMALL, *narrow])
    names = ["plain", *family.MEMBERS]
    assert [list(result[what]["models"]) for what in ("infer", "train")] == [names, names]
    targets = [(name, what, target) for name, what, target, _, _ in result["rows"] if target]
    assert targets == [
        ("Soft-NMS", "infer, time", "<= 1.05"),
        ("Cascade", "infer, time", "<= 1.35"),
        ("R-FCN", "infer, time", "<= 0.95"),
        ("HyperNet-SP", "infer, time", "<= 1.6"),
        ("OHEM", "train, time", "<= 1.25"),
        ("non-approximate", "train, time", "<= 1.2"),
    ]
    assert "the family beside the plain detector" in capsys.readouterr().out


# ---- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["infer", "--versus", "mmdetection"],
            "error: --versus mmdetection: use detectron2, torchvision, or the path of a config",
        ),
        (
            ["infer", "--versus", "detectron2", "--versus", "detectron2"],
            "error: --versus detectron2 detectron2: each may be named once",
        ),
        (["infer", "--repeats", "0"], "error: --repeats must be at least 1, not 0"),
        (["data", "--images", "0"], "error: --images must be at least 1, not 0"),
        (["train", "--threads", "-1"], "error: --threads must be at least 0, not -1"),
        (["infer", "--points", "1"], "error: --points belongs to --scale: name the curve"),
        (
            ["infer", "--scale", "batch", "--points", "0"],
            "error: --points must be at least 1, not 0",
        ),
        (["infer", "--busy", "-1"], "error: --busy must be at least 0, not -1"),
        (
            ["train", "--busy", "1", "--scale", "batch"],
            "error: --busy measures no curve: leave out --scale or --busy",
        ),
        (["infer", "--image", "600"], "'600' is no HEIGHTxWIDTH of 64 pixels or more"),
        (["data", "--workers", "a"], "'a' is no list of whole numbers, such as 0,1,2"),
        (["infer", "--config-file", "no.yaml"], "error: no config file 'no.yaml'"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in error_of(capsys, *options, *SMALL)


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        (["infer"], ["MODEL.NONE", "1"], "error: there is no key MODEL.NONE"),
        (
            ["infer", "--versus", "torchvision"],
            ["MODEL.BACKBONE.NAME", "ZF", "MODEL.PAPER_ZF.CHANNELS", "[4,4,8,8,8]"],
            "error: MODEL.BACKBONE.NAME is ZF, but torchvision can only be compared with VGG16",
        ),
        (
            ["stages"],
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "error: stages needs MODEL.META_ARCHITECTURE PaperRCNN",
        ),
        (
            ["infer"],
            ["MODEL.META_ARCHITECTURE", "ProposalNetwork"],
            "ProposalNetwork is no two-stage detector, which is what this tool measures",
        ),
    ],
)
def test_wrong_overrides(
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    overrides: list[str],
    message: str,
) -> None:
    assert message in error_of(capsys, *options, *SIZE, *SMALL, *overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_no_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(capsys, "infer", "--device", "cuda")
    assert text == "error: --device cuda: there is no CUDA here; leave it out"


def test_output_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    text = error_of(capsys, "infer", "--output", str(file))
    assert text == f"error: --output {file}: File exists"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu() -> None:
    argv = ["train", "--image", "96x160", "--repeats", "2", *PEERS, "--device", "cuda", "--memory"]
    result = main([*argv, *SMALL])
    for model in result["models"].values():
        assert model["peak"]["cuda_mib"] > 0
