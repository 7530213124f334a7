"""python -m benchmarks learn: the rows, their start, and what is made of their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from benchmarks.__main__ import main
from benchmarks.learn import Point, curves, read_points, table
from benchmarks.peers import STOCK_RULES, as_peer, starting_weights
from benchmarks.work import PEERS
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg

from .tiny import CONFIG, SMALL


def tiny_cfg(*opts: str) -> CfgNode:
    return setup_cfg(CONFIG, [*SMALL, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])


def points(*values: tuple[int, float]) -> list[Point]:
    return [Point(i, {"AP50": x, "AP75": 0.0, "AP": x / 2, "AP50/cat": x}) for i, x in values]


def test_mean_and_deviation_over_seeds() -> None:
    """By hand: of 60 and 64, mean 62 and sample deviation sqrt(8) = 2.8."""
    found = {"joint": {1: points((5, 9.0), (9, 60.0)), 2: points((5, 7.0), (9, 64.0))}}
    header, _, line = (row.split("|")[1:-1] for row in table(found).splitlines())
    assert [word.strip() for word in header] == ["", "seeds", "AP50", "AP75", "AP", "AP50 cat"]
    cells = [word.strip() for word in line]
    assert cells == ["joint", "2", "62.0 ± 2.8", "0.0 ± 0.0", "31.0 ± 1.4", "62.0 ± 2.8"]
    assert curves(found, "AP50") == {"joint": [(5.0, 8.0), (9.0, 62.0)]}


def test_one_seed_has_no_deviation() -> None:
    assert "±" not in table({"joint": {1: points((9, 60.0))}})


def test_a_curve_has_the_points_of_all_seeds() -> None:
    found = {"four-step": {1: points((4, 1.0), (9, 3.0)), 2: points((9, 5.0))}}
    assert curves(found, "AP50") == {"four-step": [(9.0, 4.0)]}


def test_evaluations_of_a_resumed_run(tmp_path: Path) -> None:
    """Losses are skipped; of an iteration that was evaluated twice, the later counts.

    Detectron2 writes 3 for an evaluation after four iterations, but 8 for the last of eight; the
    stage before has its own prefix, and the number with which the next one begins.
    """
    rows: list[dict[str, Any]] = [
        {"iteration": 3, "total_loss": 1.0},
        {"iteration": 3, "bbox/AP": 2.0, "bbox/AP50": 1.0},
        {"iteration": 6, "stage2/bbox/AP": 1.0, "stage2/bbox/AP50": 3.0},
        {"iteration": 3, "bbox/AP": 5.0, "bbox/AP50": 4.0},
        {"iteration": 8, "bbox/AP": 7.0, "bbox/AP50": 6.0},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_points(tmp_path, 8) == [
        Point(4, {"AP": 5.0, "AP50": 4.0}),
        Point(6, {"AP": 1.0, "AP50": 3.0}),
        Point(8, {"AP": 7.0, "AP50": 6.0}),
    ]


@pytest.mark.parametrize("kind", PEERS)
def test_peers_start_with_our_convolutions(kind: str) -> None:
    """All 13, to the bit; fc6 and fc7 only if MODEL.WEIGHTS is said to have them."""
    whole = starting_weights(tiny_cfg(), kind)
    lacking = starting_weights(tiny_cfg("MODEL.WEIGHTS_MAY_LACK", "['roi_heads.box_head']"), kind)
    assert len(lacking) == 26
    assert len(whole) == 30
    model = build_model(as_peer(tiny_cfg(), kind))
    found = model.load_state_dict(whole, strict=False)
    assert not found.unexpected_keys
    assert all("rpn" in k or "proposal" in k or "predict" in k for k in found.missing_keys)


@pytest.mark.parametrize("kind", PEERS)
def test_peers_keep_their_rules_and_our_numbers(kind: str) -> None:
    cfg = as_peer(tiny_cfg(), kind)
    assert cfg.MODEL.ROI_BOX_HEAD.FC_DIM == 16
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 100
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlignV2"
    assert STOCK_RULES["SOLVER.BIAS_LR_FACTOR"] == cfg.SOLVER.BIAS_LR_FACTOR == 1.0


def test_torchvision_as_a_model_of_detectron2() -> None:
    """Boxes in pixels of the original image; two sizes in a batch; an image without objects."""
    torch.manual_seed(0)
    model = build_model(
        as_peer(tiny_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"), "torchvision")
    )
    batch = []
    for height, width, objects in ((96, 160, 1), (71, 113, 0)):
        truth = Instances((height, width))
        truth.gt_boxes = Boxes(torch.tensor([[10.0, 20.0, 60.0, 70.0]] * objects).reshape(-1, 4))
        truth.gt_classes = torch.zeros(objects, dtype=torch.int64)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "height": 2 * height, "width": 2 * width, "instances": truth})
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad():
        model.eval()
        model.detector.roi_heads.score_thresh = 0.0
        once = model([{"image": x["image"]} for x in batch])
        twice = model(batch)
    for small, large, x in zip(once, twice, batch, strict=True):
        assert large["instances"].image_size == (x["height"], x["width"])
        assert len(small["instances"]) > 0
        assert int(small["instances"].pred_classes.max()) < 20
        boxes = small["instances"].pred_boxes.tensor * 2
        torch.testing.assert_close(large["instances"].pred_boxes.tensor, boxes)


def test_a_row_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, seeds and evaluations as asked for; finished runs are read, other values refused."""
    root = write_synthetic_voc(tmp_path / "set", 3, 2, 0, (96, 128))
    sets = [
        {"name": f"learn_{split}", "root": str(root), "split": split, "classes": "auto"}
        for split in ("trainval", "test")
    ]
    argv = ["learn", "--config-file", CONFIG, "--seeds", "4", "--evaluations", "2"]
    argv += ["--row", "torchvision", "--output", str(tmp_path / "out"), *SMALL]
    argv += ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "-1"]
    argv += ["DATASETS.REGISTER", repr(sets), "DATASETS.TRAIN", "('learn_trainval',)"]
    argv += ["DATASETS.TEST", "('learn_test',)", "SOLVER.STEPS", "(1,)"]
    result = main([*argv, "SOLVER.MAX_ITER", "2"])
    ((seed, evaluations),) = result["rows"]["torchvision"].items()
    assert seed == 4
    assert [iteration for iteration, _ in evaluations] == [1, 2]
    assert (tmp_path / "out/learn_ap50.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/benchmark.json").is_file()
    capsys.readouterr()
    main([*argv, "SOLVER.MAX_ITER", "2"])
    assert "console.txt" not in capsys.readouterr().out  # nothing was run
    with pytest.raises(SystemExit, match=r"other values of .*SOLVER\.BASE_LR"):
        main([*argv, "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.0007"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "one"], "--seeds is 'one'"),
        (["--evaluations", "0"], "--evaluations must be at least 1"),
        (["--row", "joint", "FOUR_STEP.ENABLED", "True"], "give a config of joint training"),
        (["--row", "detectron2", "MODEL.BACKBONE.NAME", "ZF"], "MODEL.BACKBONE.NAME is ZF"),
        (["--try", "joint", "SEED 1"], "--try 'joint': give each row a name of its own"),
        (["--try", "..", "SEED 1"], "a name of its own"),
        (["--try", "a b", "SEED 1", "--try", "a/b", "SEED 2"], "a name of its own"),
        (["--try", "x", "SOLVER.BASE_LR '1"], "--try 'x' .*No closing quotation"),
        (["--try", "x", "SOLVER.BASE_LR"], "--try 'x' "),
        (["--try", "x", "SOLVER.BASELR 1"], "--try 'x' .*no key SOLVER.BASELR"),
        (["--try", "x", "SOLVER.BASE_LR hello"], "--try 'x' .*SOLVER.BASE_LR"),
        (["--try", "x", "SOLVER.MAX_ITER 9"], "the same SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", "3"], "MAX_ITER is 3: the row four-step needs at least 4"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["learn", "--config-file", CONFIG, "--output", str(tmp_path), *words])
