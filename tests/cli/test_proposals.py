"""`frcnn proposals dump`, `frcnn proposals sizes` and `frcnn proposals convert`."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.modeling import build_model

from frcnn_plugin.cli.proposals import format_sizes, mean_sizes
from frcnn_plugin.data.proposals.files import check_proposals, load_proposals
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.evaluation.proposals.evaluator import ProposalShards
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO, SMALL

OPTS = [
    *SMALL,
    *("DATALOADER.NUM_WORKERS", "0"),
]
# Runs a command in a process that is killed, as by a power cut, after a number of images.
KILLED = """
import os, signal, sys
from frcnn_plugin.cli import proposals
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.modeling import PaperRCNN
proposals.SHARD_SIZE = 2
stock, left = PaperRCNN.inference, [int(sys.argv[1])]
def inference(self, *args, **kwargs):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return stock(self, *args, **kwargs)
PaperRCNN.inference = inference
main(["proposals", "dump", *sys.argv[2:]])
"""


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    write_synthetic_voc(root / "demo_shapes", num_trainval=6, num_test=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield root


def logged(caplog: pytest.LogCaptureFixture, *words: str) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.MonkeyPatch.context() as patch:
        for name in ("detectron2", "frcnn_plugin"):  # another test may have called setup_logger
            patch.setattr(logging.getLogger(name), "propagate", True)
        frcnn("proposals", *words)
    return caplog.text


@pytest.fixture
def dump(caplog: pytest.LogCaptureFixture) -> Callable[[list], str]:
    """Runs the command on a list of arguments; returns what it logged."""
    return lambda args: logged(caplog, "dump", *args)


def killed(images: int, args: list[str]) -> None:
    command = [sys.executable, "-c", KILLED, str(images), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def arguments(output: Path, weights: Path, *options: str, opts: tuple[str, ...] = ()) -> list[str]:
    return [
        *("--config-file", DEMO, "--dataset", "shapes_trainval", "--output", str(output)),
        *(*options, *OPTS, "MODEL.WEIGHTS", str(weights), *opts),
    ]


@pytest.fixture(scope="module")
def dumped(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    path = tmp_path_factory.mktemp("dumped") / "p.pkl"
    results = frcnn("proposals", "dump", *arguments(path, weights))
    assert 0 < results["R@0.5@2000"] <= 100
    return path


@pytest.fixture
def dicts(data: Path) -> list[dict]:
    setup_cfg(DEMO)
    return DatasetCatalog.get("shapes_trainval")


def test_writes_proposals_in_image_pixels_and_recall(dumped: Path, dicts: list[dict]) -> None:
    proposals = check_proposals(dumped, dicts, "shapes_trainval")
    # Not the 300 of the config, and boxes of the original image, not of the network's.
    assert max(len(boxes) for boxes in proposals.boxes) > 300
    reach = [boxes[:, 2:].max(axis=0) for boxes in proposals.boxes]
    sizes = [(item["width"], item["height"]) for item in dicts]
    assert np.allclose(reach, sizes, atol=1.0)
    assert load_proposals_into_dataset(dicts, str(dumped))[0]["proposal_boxes"].shape[1] == 4
    files = {file.name for file in dumped.parent.iterdir()}
    assert files == {"p.pkl", "p.recall.json", "p.recall.png"}
    recall = json.loads(dumped.with_name("p.recall.json").read_text())
    assert list(recall["recall"]) == ["50", "100", "300", "1000", "2000"]


def test_killed_run_goes_on_where_it_stopped(
    dump: Callable, weights: Path, dumped: Path, tmp_path: Path
) -> None:
    args = arguments(tmp_path / "p.pkl", weights)
    killed(5, args)
    partial = tmp_path / "p.pkl.partial"
    shards = sorted(partial.glob("*.pkl"))
    # Five images were done; the fifth was not yet in a shard of two.
    assert [len(load_proposals(shard).ids) for shard in shards] == [2, 2]
    assert not (tmp_path / "p.pkl").exists()
    # A shard that a failing disk has cut short is done again; the other is not.
    shards[0].write_bytes(shards[0].read_bytes()[:-7])
    output = dump(args)
    assert f"{shards[0]} is damaged" in output and "its images are done again" in output
    assert "2 of 6 images are done already" in output and "Start inference on 4 batches" in output
    assert (tmp_path / "p.pkl").read_bytes() == dumped.read_bytes()
    assert not partial.exists()


def test_run_that_ended_before_cleaning_up_is_finished(
    dump: Callable, weights: Path, dumped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path / "p.pkl", weights)
    with monkeypatch.context() as patch:
        patch.setattr(ProposalShards, "remove", lambda self: None)
        dump(args)
    assert "6 of 6 images are done already" in dump(args)
    assert (tmp_path / "p.pkl").read_bytes() == dumped.read_bytes()
    assert not (tmp_path / "p.pkl.partial").exists()


def test_shards_of_something_else_are_not_used(
    dump: Callable, weights: Path, dumped: Path, tmp_path: Path
) -> None:
    """Other settings, then other weights under the same name."""
    own, path = tmp_path / "model.pth", tmp_path / "p.pkl"
    state = torch.load(weights, weights_only=True)
    next(iter(state["model"].values())).add_(1)
    torch.save(state, own)
    killed(3, arguments(path, weights, opts=("MODEL.RPN.NMS_THRESH", "0.5")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProposalShards, "remove", lambda self: None)
        output = dump(arguments(path, own))
    assert "p.pkl.partial: made before the config and weights changed: removed, all i" in output
    assert path.read_bytes() != dumped.read_bytes()
    own.write_bytes(weights.read_bytes())
    assert "p.pkl.partial: made before the weights changed: removed" in dump(arguments(path, own))
    assert path.read_bytes() == dumped.read_bytes()


def test_two_processes_give_what_one_gives(
    weights: Path, dumped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.pkl"
    recall = frcnn("proposals", "dump", *arguments(path, weights, "--num-gpus", "2"))
    output = "".join(capfd.readouterr())
    assert "terminate called" not in output
    assert recall and "Start inference on 3 batches" in output
    assert path.read_bytes() == dumped.read_bytes()


def test_existing_file_is_kept(
    dump: Callable, fails: Callable[..., str], weights: Path, dumped: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"precious")
    said = f"{path} exists already: add --overwrite, or --output with another name"
    assert fails("proposals", "dump", *arguments(path, weights)) == said
    assert path.read_bytes() == b"precious"
    assert not path.with_name("p.pkl.partial").exists()
    dump(arguments(path, weights, "--overwrite"))
    assert path.read_bytes() == dumped.read_bytes()


def test_default_output_and_number_of_proposals(
    dump: Callable, weights: Path, tmp_path: Path
) -> None:
    args = [
        *("--config-file", DEMO, "--dataset", "shapes_test", *OPTS),
        *("MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path)),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "100"),
    ]
    dump(args)
    proposals = load_proposals(tmp_path / "inference" / "shapes_test" / "proposals.pkl")
    assert [len(boxes) for boxes in proposals.boxes] == [100, 100, 100]
    # Nothing of the training run is overwritten.
    assert [file.name for file in tmp_path.iterdir()] == ["inference"]


@pytest.mark.parametrize(
    ("dataset", "opts", "message"),
    [
        ("shapes_trainval", [], "whose proposals? Add MODEL.WEIGHTS path/to/model_final.pth"),
        ("shapes_trainvl", ["MODEL.WEIGHTS", DEMO], "data set 'shapes_trainvl' is not registered"),
        ("shapes_test", ["MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS: there is no file no.pth"),
        (
            "shapes_test",
            ["MODEL.WEIGHTS", DEMO, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
            f"{DEMO} has no region proposal network to make proposals",
        ),
    ],
)
def test_mistakes(
    fails: Callable[..., str], tmp_path: Path, dataset: str, opts: list[str], message: str
) -> None:
    args = ["--config-file", DEMO, "--dataset", dataset, *OPTS, "OUTPUT_DIR", str(tmp_path)]
    assert fails("proposals", "dump", *args, *opts).startswith(message)
    assert not list(tmp_path.iterdir())


CONVERT = ("convert", "--config-file", DEMO, "--dataset", "shapes_trainval", "--input")


def test_convert_and_check(
    caplog: pytest.LogCaptureFixture, dicts: list[dict], tmp_path: Path
) -> None:
    """The objects themselves as proposals: recall is 100 %."""
    boxes = {d["image_id"]: np.array([o["bbox"] for o in d["annotations"]]) for d in dicts}
    np.savez(tmp_path / "p.npz", **boxes)
    path = tmp_path / "p.pkl"
    output = logged(caplog, *CONVERT, str(tmp_path / "p.npz"), "--output", str(path))
    assert "6 images" in output and "       50   100.00   100.00" in output
    assert pickle.loads(path.read_bytes())["ids"] == list(boxes)
    assert "       50   100.00   100.00" in logged(caplog, *CONVERT, str(path))


def test_convert_mistakes(fails: Callable[..., str], dumped: Path, tmp_path: Path) -> None:
    for args, message in (
        (["a.txt"], "--input a.txt: only .mat, .npz and .pkl files can be read"),
        (["a.npz"], "--output is missing: the .pkl file to write"),
        (["a.npz", "--output", tmp_path / "p.pkl"], "there is no file a.npz"),
        ([dumped, "--output", "p.pkl"], "--input is a .pkl file, which is only"),
        ([dumped, "--dataset", "shapes_test"], f"proposal file {dumped} has no en"),
    ):
        assert fails("proposals", *CONVERT, *args).startswith(message)
    assert not list(tmp_path.iterdir())


def test_mean_sizes(tiny_cfg: Callable) -> None:
    """A 64 x 64 image has 4 x 4 cells with centres 8, 24, 40 and 56.

    Clipped anchors of 32 pixels are 24, 32, 32 and 24 wide, 28 on average; twice as wide, 40, 56,
    56 and 40, 48 on average, as those of 64 pixels are.
    """
    opts = ("MODEL.RPN.NMS_THRESH", 1.0, "MODEL.RPN.DECODE_GROWTH", 0.0)
    node = "MODEL.ANCHOR_GENERATOR"
    cfg = tiny_cfg(*opts, f"{node}.SIZES", [[32, 64]], f"{node}.ASPECT_RATIOS", [[1.0]])
    model = build_model(cfg).eval()
    head = model.proposal_generator.rpn_head
    with torch.no_grad():
        for layer in (head.rpn_cls_score, head.rpn_bbox_pred):
            layer.weight.zero_()
        head.rpn_bbox_pred.bias[3] = float(np.log(2))  # dh of the first anchor
        head.rpn_cls_score.bias[2] = 1.0  # it is also the better one
    batches = [[{"image": torch.zeros(3, 64, 64)}], [{"image": torch.zeros(3, 64, 64)}]]
    both = np.array(mean_sizes(model, batches))
    np.testing.assert_allclose(both, [[32, 32, 32, 28, 48], [64, 64, 32, 48, 48]], rtol=1e-6)
    model.proposal_generator.post_nms_topk = {True: 2000, False: 16}
    best = mean_sizes(model, batches)
    np.testing.assert_allclose(best[0], [32, 32, 32, 28, 48], rtol=1e-6)
    assert best[1][:3] == [64, 64, 0] and np.isnan(best[1][3:]).all()


def test_table_of_sizes() -> None:
    rows = [[184.0, 96, 12, 180.4, 99.6], [32.0, 32, 0, float("nan"), float("nan")]]
    assert format_sizes(rows).splitlines()[2:] == [
        "| 128^2, 2:1 | 184x96 | 12          | 188x111 | 180x100 |",
        "|            | 32x32  | 0           |         |         |",
    ]


def test_sizes_are_of_the_proposals_of_the_test(
    weights: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """As many as are written with the numbers of the test, and of the same mean size."""
    words = ["--config-file", DEMO, "--dataset", "shapes_test"]
    opts = [*OPTS, "MODEL.WEIGHTS", str(weights), "MODEL.RPN.POST_NMS_TOPK_TEST", "40"]
    rows = np.array(frcnn("proposals", "sizes", *words, *opts))
    assert "| anchor" in capsys.readouterr().out
    path, before = tmp_path / "p.pkl", ("MODEL.RPN.PRE_NMS_TOPK_TEST", "6000")
    frcnn("proposals", "dump", *words, "--output", str(path), *opts, *before)
    boxes, scales = load_proposals(path).boxes, []
    for item in DatasetCatalog.get("shapes_test"):
        scales.append(
            setup_cfg(DEMO, SMALL).INPUT.MIN_SIZE_TEST / min(item["height"], item["width"])
        )
    widths = np.concatenate([(b[:, 2] - b[:, 0]) * s for b, s in zip(boxes, scales, strict=True)])
    assert rows[:, 2].sum() == len(widths) == 120
    assert np.nansum(rows[:, 2] * rows[:, 3]) / 120 == pytest.approx(widths.mean(), rel=0.01)


def test_sizes_of_another_generator(fails: Callable[..., str], weights: Path) -> None:
    words = ["--config-file", DEMO, "--dataset", "shapes_test", *OPTS, "MODEL.WEIGHTS", weights]
    message = fails("proposals", "sizes", *words, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    assert "sizes are measured for PaperRPN" in message and "PROPOSAL_GENERATOR.NAME RPN" in message
