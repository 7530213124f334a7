"""tools/doctor.py as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from tests.tool_modules import load_command

ROOT = Path(__file__).resolve().parents[2]
DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")

doctor = load_command("doctor")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_catalogs: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=6, num_test=3)
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out.splitlines()


def test_without_config(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    *findings, summary = lines(capsys)
    assert findings[0].startswith("ok    environment")
    assert findings[-1].startswith("warn  data         no VOC or COCO in DETECTRON2_DATASETS")
    assert summary.endswith("1 warning, 0 errors")


def test_good_config(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--config-file", DEMO, "--strict", "MODEL.DEVICE", "cpu"]) == 0
    *findings, summary = lines(capsys)
    assert all(line.startswith("ok    ") for line in findings)
    assert summary == f"{len(findings)} fine, 0 warnings, 0 errors"
    assert not (data / "output").exists()  # it leaves nothing behind


def test_warnings_and_strictness(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config-file", DEMO, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "('shapes_trainval',)"]
    assert doctor.main(args) == 0
    assert doctor.main(["--strict", *args]) == 1
    assert "1 warning, 0 errors" in lines(capsys)[-1]


def test_errors_and_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--json", "report.json", "--all", "--config-file", DEMO]
    assert doctor.main([*args, "MODEL.ROI_HEADS.NUM_CLASSES", "4", "MODEL.DEVICE", "cpu"]) == 1
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
        (["--config-file", DEMO, "MODEL.NO", "1"], "FAIL  config       the command line: Non-"),
        (
            ["--num-gpus", "0", "--config-file", DEMO],
            "FAIL  config       --num-gpus is 0: it must be 1 or more",
        ),
    ],
)
def test_mistakes(
    data: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert doctor.main(args) == 1
    assert any(line.startswith(message) for line in lines(capsys))


def test_json_that_cannot_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", "no/such/report.json"]) == 1
    assert "cannot write --json no/such/report.json (No such file" in capsys.readouterr().err


def test_colour_on_terminals_only(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    doctor.main(["--config-file", "no.yaml"])
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    doctor.main(["--config-file", "no.yaml"])
    assert "\033[31mFAIL" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    doctor.main(["--config-file", "no.yaml"])
    assert "\033" not in capsys.readouterr().out


def test_broken_installation(tmp_path: Path) -> None:
    """A torchvision that does not match torch: said in one line, where nothing can be imported."""
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "doctor.py")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  environment  Python 3")
    assert "torchvision does not match the installed torch" in done.stdout
    assert "Traceback" not in done.stderr
