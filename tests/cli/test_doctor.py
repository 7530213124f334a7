"""`frcnn doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.preflight import schedule
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_catalogs: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(schedule, "_MANY_PASSES", 10_000)  # over six images
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=6, num_test=3)
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out.splitlines()


def test_without_config(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frcnn("doctor") == 0
    *findings, summary = lines(capsys)
    assert findings[0].startswith("ok    environment")
    assert findings[-1].startswith("warn  data         no VOC or COCO in DETECTRON2_DATASETS")
    assert summary.endswith("1 warning, 0 errors")


def test_good_config(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frcnn("doctor", "--config-file", DEMO, "--strict", "MODEL.DEVICE", "cpu") == 0
    *findings, summary = lines(capsys)
    assert all(line.startswith("ok    ") for line in findings)
    assert summary == f"{len(findings)} fine, 0 warnings, 0 errors"
    assert not (data / "output").exists()  # it leaves nothing behind


def test_warnings_and_strictness(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config-file", DEMO, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "('shapes_trainval',)"]
    assert frcnn("doctor", *args) == 0
    assert frcnn("doctor", "--strict", *args) == 1
    assert "1 warning, 0 errors" in lines(capsys)[-1]


def test_errors_and_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--json", "report.json", "--all", "--config-file", DEMO]
    assert frcnn("doctor", *args, "MODEL.ROI_HEADS.NUM_CLASSES", "4", "MODEL.DEVICE", "cpu") == 1
    failed = [line for line in lines(capsys) if line.startswith("FAIL")]
    assert len(failed) == 2 and "MODEL.ROI_HEADS.NUM_CLASSES 3" in failed[0]
    content = json.loads((data / "report.json").read_text())
    assert content["exit_status"] == 1
    levels = [f["level"] for f in content["findings"]]
    assert levels.count("error") == 2 and levels.count("ok") > 3
    assert set(content["findings"][0]) == {"level", "subject", "text", "fix"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "no.yaml"], "FAIL  config       no config file 'no.yaml'"),
        (["--config-file", DEMO, "MODEL.NO", "1"], "FAIL  config       there is no key MODEL.NO;"),
        (
            ["--num-gpus", "0", "--config-file", DEMO],
            "FAIL  config       --num-gpus is 0: it must be 1 or more",
        ),
    ],
)
def test_mistakes(
    data: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert frcnn("doctor", *args) == 1
    assert any(line.startswith(message) for line in lines(capsys))


def test_json_that_cannot_be_written(fails: Callable[..., str], data: Path) -> None:
    said = fails("doctor", "--json", "no/such/report.json")
    assert said.startswith("--json no/such/report.json cannot be written (No such file")


def test_colour_on_terminals_only(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    frcnn("doctor", "--config-file", "no.yaml")
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    frcnn("doctor", "--config-file", "no.yaml")
    assert "\033[31mFAIL" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    frcnn("doctor", "--config-file", "no.yaml")
    assert "\033" not in capsys.readouterr().out
