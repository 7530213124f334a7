"""The list of checks as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcnn_plugin.data import SHAPE_CLASSES, load_voc_instances
from frcnn_plugin.data.proposals.files import save_proposals
from frcnn_plugin.errors import UserError
from frcnn_plugin.preflight import preflight, run, stop_on_errors
from tests.preflight.conftest import only

FAST_RCNN = ["MODEL.LOAD_PROPOSALS", "True", "MODEL.PAPER_RCNN.PHASE", "fast_rcnn"]


def test_a_good_run(plan) -> None:
    findings = list(preflight(plan()))
    assert {f.level for f in findings} == {"ok"}
    assert {f.subject for f in findings} == {
        "environment", "output", "data", "weights", "schedule", "disk",
    }  # fmt: skip


def test_all_errors_at_once(plan, capsys: pytest.CaptureFixture[str]) -> None:
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "4", "MODEL.WEIGHTS", "nothing.pth"]
    with pytest.raises(UserError) as caught:
        stop_on_errors(plan(*opts, "DATASETS.TEST", "()"))
    first, second = str(caught.value).split("\nerror: ")
    assert "NUM_CLASSES 3" in first and "nothing.pth" in second
    assert "warning: DATASETS.TEST is empty" in capsys.readouterr().err
    stop_on_errors(plan("DATASETS.TEST", "()"))  # warnings do not stop


def test_a_check_that_fails_stops_nothing(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(run, "_CHECKS", (("weights", fail),))
    findings = list(preflight(plan()))
    assert "could not be checked (ZeroDivisionError" in only(findings[:1], "weights", "warning")
    assert {f.level for f in findings[1:]} == {"ok"}


def test_several_machines(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks at its own devices."""
    asked = []
    monkeypatch.setattr(
        run, "check_environment", lambda device, n, **_: asked.append(n) or iter(())
    )
    list(preflight(plan(num_processes=8, num_machines=4)))
    assert asked == [2]


def test_nothing_on_space_after_an_error(plan) -> None:
    findings = list(preflight(plan("DATASETS.TRAIN", "()")))
    assert not {"disk", "memory"} & {f.subject for f in findings}


def proposals(path: Path, shapes: Path, split: str) -> str:
    dicts = load_voc_instances(shapes, split, SHAPE_CLASSES)
    box, logit = np.array([[0, 0, 9, 9]], dtype=np.float32), np.zeros(1, dtype=np.float32)
    save_proposals(path, [d["image_id"] for d in dicts], [box] * len(dicts), [logit] * len(dicts))
    return str(path)


def files(train: str, test: str) -> list[str]:
    return [
        *("DATASETS.PROPOSAL_FILES_TRAIN", f"('{train}',)"),
        *("DATASETS.PROPOSAL_FILES_TEST", f"('{test}',)"),
    ]


def test_proposal_files(plan, shapes: Path, tmp_path: Path) -> None:
    opts = files(
        proposals(tmp_path / "a.pkl", shapes, "trainval"),
        proposals(tmp_path / "b.pkl", shapes, "test"),
    )
    findings = [f for f in preflight(plan(*FAST_RCNN, *opts)) if f.subject == "proposals"]
    assert [f.level for f in findings] == ["ok", "ok"]
    assert "all 6 images of shapes_trainval, 1 boxes per image" in findings[0].text


def test_bad_proposal_files_are_all_told(find, shapes: Path, tmp_path: Path) -> None:
    opts = files(proposals(tmp_path / "b.pkl", shapes, "test"), str(tmp_path / "none.pkl"))
    first, second = find(*FAST_RCNN, *opts)
    assert first.subject == second.subject == "proposals"
    assert "no entry for image" in first.text
    assert "there is no proposal file" in second.text and "frcnn proposals dump" in second.text
