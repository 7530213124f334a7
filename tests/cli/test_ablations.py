"""`frcnn ablations`: the paper's tables, run row by row."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog

from frcnn_plugin.cli import ablations
from frcnn_plugin.cli.ablation_tables import TABLES
from frcnn_plugin.cli.proposals import LEARNT_SIZES
from frcnn_plugin.config import get_config_file, plugin_cfg
from frcnn_plugin.config_files import load_config_file, merge_overrides
from frcnn_plugin.data.proposals.files import save_proposals
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from tests.cli.conftest import frcnn

CLASSES = ["circle", "square", "triangle"]
ENTRIES = [
    {"name": f"small_{split}", "root": "shapes", "split": split, "classes": CLASSES}
    for split in ("trainval", "test")
]
SMALL = [
    *("DATASETS.REGISTER", repr(ENTRIES)),
    *("DATASETS.TRAIN", "('small_trainval',)", "DATASETS.TEST", "('small_test',)"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]", "MODEL.PAPER_ZF.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32,64]]"),
    *("FOUR_STEP.ITERS", "[2,2,1,1]", "FOUR_STEP.DROPS", "[[1],[1],[],[]]"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.BASE_LR", "0.0001"),
]


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_catalogs: None) -> Path:
    """A folder of runs beside a small data set, and proposals of it in place of SS's."""
    write_synthetic_voc(tmp_path / "shapes", num_trainval=4, num_test=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_every_row_has_a_config_that_takes_its_overrides() -> None:
    names: dict[str, str] = {}
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.cells) == len(table.columns)
            for config in filter(None, (row.config, row.rpn)):
                cfg = plugin_cfg()
                load_config_file(cfg, get_config_file(config))
                merge_overrides(cfg, row.keys)
            described = f"{row.config} {row.keys} {row.rpn}"
            assert names.setdefault(row.name, described) == described  # no folder of two runs


def test_a_table_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert frcnn("ablations", "9", "--show", "--output", tmp_path) == 0
    text = capsys.readouterr().out
    assert "| lambda   | paper   | ours   |" in text
    assert "| 10       | 69.9    |        |" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["7"], "there is no table '7': give one of 2, 3"),
        (["1"], "frcnn proposals sizes prints Table 1"),
        (["9", "more"], "there is no table '9 more'"),
        (["9", "--rows", "5"], "give numbers from 1 to 4"),
        (["9", "DATASETS.TEST", "()"], "DATASETS.TEST is empty: name a set"),
        (["9", "--show", "DATASETS.TEST", "()"], "DATASETS.TEST is empty: name a set"),
        (["9", "--rows", "a"], "give numbers from 1 to 4"),
        (
            ["9", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "2.0"],
            "the rows '0.1' and '1' are the same run with the overrides MODEL.RPN.BBOX_REG",
        ),
    ],
)
def test_mistakes(fails: Callable[..., str], words: list[str], message: str) -> None:
    assert message in fails("ablations", *words)


def test_missing_files_of_selective_search(shapes: Path, capsys: pytest.CaptureFixture) -> None:
    """The row stays empty, says how to make the file, and the status is 1."""
    assert frcnn("ablations", "2", "--rows", "1", "--output", shapes, *SMALL) == 1
    assert (
        "SS, 2000, SS, 2000: needs datasets/proposals/voc07_trainval.pkl; make it with frcnn "
        "proposals convert --dataset small_trainval" in capsys.readouterr().out
    )
    (row,) = json.loads((shapes / "table2.json").read_text())["rows"]
    assert (row["paper"], row["ours"]) == (58.7, None)


def test_rows_are_run_once(
    shapes: Path, capsys: pytest.CaptureFixture, fails: Callable[..., str]
) -> None:
    """Table 10, all of its rows; again, nothing is run; other overrides are refused."""
    words = ["ablations", "10", "--output", shapes, *SMALL]
    assert frcnn(*words) == 0
    first = (shapes / "table10.md").read_text()
    assert first.startswith("Table 10")
    rows = json.loads((shapes / "table10.json").read_text())["rows"]
    assert len(rows) == 3 and all(0 <= row["ours"] <= 100 for row in rows)
    assert (
        "PYRAMID:\n    - 0.8\n" in (shapes / "zf_dense_windows_pyramid" / "config.yaml").read_text()
    )
    assert "frcnn train" in capsys.readouterr().out
    assert frcnn(*words) == 0
    assert (shapes / "table10.md").read_text() == first
    assert "frcnn train" not in capsys.readouterr().out
    message = fails(*words, "SOLVER.GAMMA", "0.2")
    assert "zf_unshared holds this row with other values of SOLVER.GAMMA" in message


def test_finished_rows_of_an_earlier_version(
    shapes: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that it did not know had its default; with another value the row is another one."""
    folder = shapes / "zf_dense_windows"
    row = TABLES["10"].rows[1]
    cfg = ablations._Runs(shapes, SMALL, 1)._config(row)
    lines = [line for line in cfg.dump().splitlines() if line.split(":")[0].strip() != "PYRAMID"]
    found = SimpleNamespace(complete=True, config="\n".join(lines))
    monkeypatch.setattr(ablations.RunRecord, "load", lambda folder: found)
    (folder / "inference" / "small_test" / "results").mkdir(parents=True)
    outcome = ablations._Runs(shapes, SMALL, 1).outcome(row)
    assert outcome is not None and "has no annotations" in outcome.note
    with pytest.raises(UserError, match=r"other values of MODEL.PAPER_RCNN.PYRAMID: give"):
        ablations._Runs(shapes, [*SMALL, "MODEL.PAPER_RCNN.PYRAMID", "[0.5]"], 1).outcome(row)


def test_a_killed_run_is_resumed(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """The finished row is kept as it is, the other one goes on from its last checkpoint."""
    words = ["ablations", "10", "--rows", "2,3", "--output", shapes, *SMALL]
    words += ["SOLVER.MAX_ITER", "20", "SOLVER.CHECKPOINT_PERIOD", "1"]
    checkpoint = shapes / "zf_dense_windows_pyramid" / "model_0000001.pth"  # the second

    def killed(command: list[str]) -> int:
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                if checkpoint.exists():
                    process.kill()
                time.sleep(0.01)
        return process.returncode

    with monkeypatch.context() as patch:
        patch.setattr(ablations, "run_with_parent", killed)
        assert "frcnn train ended with signal 9. The same frcnn ablations" in fails(*words)
    finished = (shapes / "zf_dense_windows" / "run.json").read_text()
    assert frcnn(*words) == 0
    assert (shapes / "zf_dense_windows" / "run.json").read_text() == finished
    log = (checkpoint.parent / "log.txt").read_text()
    starts = [int(n) for n in re.findall(r"Starting training from iteration (\d+)", log)]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the row goes on and is waited for")
def test_the_run_of_a_row_ends_with_the_command(tmp_path: Path) -> None:
    """As by kill -9, after which nothing else may write into the folder of the row."""
    file = tmp_path / "pid"
    row = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(900)"
    code = "import sys; from frcnn_plugin.cli import run_with_parent; "
    code += f"run_with_parent([sys.executable, '-c', {row!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code])

    def runs() -> bool:
        stat = Path("/proc", file.read_text(), "stat")
        return stat.exists() and stat.read_text().split()[2] != "Z"

    for ready in (lambda: file.exists() and file.read_text(), lambda: not runs()):
        deadline = time.monotonic() + 400
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ready()
        parent.kill()
    parent.wait()


def test_ctrl_c_waits_for_the_run_to_write_its_checkpoint(tmp_path: Path) -> None:
    begun, written = tmp_path / "begun", tmp_path / "written"
    # Set anew, as a shell's background jobs ignore the signal, and so do their children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    row = f"{heard}import pathlib, time\ntry:\n"
    row += f"    pathlib.Path({str(begun)!r}).touch(); time.sleep(900)\n"
    row += f"except KeyboardInterrupt:\n    time.sleep(1); pathlib.Path({str(written)!r}).touch()"
    code = f"{heard}import sys; from frcnn_plugin.cli import run_with_parent; "
    code += f"run_with_parent([sys.executable, '-c', {row!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not begun.exists():
        assert parent.poll() is None
        time.sleep(0.1)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    assert parent.wait(timeout=60) != 0
    assert written.exists()


def test_a_row_that_tests_another_rows_detector(shapes: Path) -> None:
    """Table 2, "no cls": SS's detector on random boxes of the first RPN of another run."""
    setup_cfg("", SMALL[:2])
    files = []
    for split in ("trainval", "test"):
        dicts = DatasetCatalog.get(f"small_{split}")
        boxes = [[o["bbox"] for o in d["annotations"]] for d in dicts]
        files.append(str(shapes.parent / f"{split}.pkl"))
        save_proposals(
            files[-1], [d["image_id"] for d in dicts], boxes, [[1.0] * len(b) for b in boxes]
        )
    given = [f"DATASETS.PROPOSAL_FILES_{k}" for k in ("TRAIN", "TEST")]
    pairs = [word for key, file in zip(given, files, strict=True) for word in (key, f"('{file}',)")]
    assert frcnn("ablations", "2", "--rows", "9", "--output", shapes, *SMALL, *pairs) == 0
    (row,) = json.loads((shapes / "table2.json").read_text())["rows"]
    assert row["cells"] == ["SS", "2000", "RPN+ZF (no cls)", "100"] and row["ours"] is not None
    assert (shapes / "zf_ss_on_rpn_zf_no_cls_100" / "small_test.pkl").is_file()
    saved = (shapes / "zf_ss_on_rpn_zf_no_cls_100" / "config.yaml").read_text()
    assert "PRECOMPUTED_PROPOSAL_TOPK_TEST: 100" in saved


def test_page_has_the_tables_as_they_are_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text()
    for size, (anchor, paper) in LEARNT_SIZES.items():
        assert [anchor, "x".join(map(str, size)), paper, ""] in [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()
        ]
    for table in TABLES.values():
        text = ablations.format_table(table, {row: ablations.Outcome() for row in table.rows})
        assert f"## {text}\n" in page
