"""The page against what lies in the folder; a browser looks at it in test_browser.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.proposals.recall import RecallCurves
from frcnn_plugin.evaluation.record import EvaluationRecord
from frcnn_plugin.report import write_report

from .conftest import (
    BAD_NAME,
    JOINT,
    RESULTS,
    config_text,
    evaluation,
    training_lines,
    write_four_step,
)
from .html_page import Page

SECTIONS = ["plan", "config", "curves", "proposals", "ap", "images", "times", "environment"]


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = tmp_path_factory.mktemp("page") / "report.html"
    return Page(write_report(finished_run, file).read_text(encoding="utf-8"))


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_all_sections_in_order(page: Page) -> None:
    assert [values["id"] for tag, values in page.tags if tag == "section"] == SECTIONS
    links = [values["href"] for tag, values in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


def test_nothing_is_fetched(page: Page) -> None:
    assert all(a.startswith(("data:", "#")) for a in page.addresses())
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    policy = next(v["content"] for tag, v in page.tags if "http-equiv" in v)
    assert policy.startswith("default-src 'none'")


def test_head(page: Page, finished_run: Path) -> None:
    head = page.words("head")
    assert "Faster R-CNN, VGG16, in four steps finished" in head
    assert "71.5 % AP50 shapes_test" in head
    assert "3 min 20 s in all, evaluation included" in head  # the session: 200 s
    assert "trained on shapes_trainval tested on shapes_test (40 images)" in head
    assert str(finished_run) in head
    assert "Missing or damaged" not in head


def test_plan_says_state_and_results(page: Page, finished_run: Path) -> None:
    recall = RecallCurves.load(finished_run / "proposals/stage3/shapes_test.recall.json").metrics()
    rows = page.table("step", "trains")
    assert [row[0] for row in rows] == ["1 RPN", "2 detector", "3 RPN", "4 detector"]
    assert [row[-2] for row in rows] == ["done"] * 4
    assert rows[1][-1] == "AP50 61.5\nAP 31.2"  # 10 less than at the end; 31.25 rounds to even
    assert rows[2][-1] == f"R@0.5@300 {recall['R@0.5@300']:.1f}\nAR@300 {recall['AR@300']:.1f}"
    assert rows[3][-1] == "AP50 71.5\nAP 41.2"


def test_config_differences(page: Page) -> None:
    rows = page.table("key", "Base-PyEnd2End.yaml", "vgg16_shapes.yaml", "this run")
    by_key = {row[0]: row[1:] for row in rows}
    # Of Detectron2's default, the demo's config and the override.
    assert by_key["SOLVER.BASE_LR"] == ["0.001", "0.01", "0.005"]
    assert by_key["MODEL.ROI_HEADS.NUM_CLASSES"] == ["20", "3", "3"]
    assert by_key["FOUR_STEP.ITERS"][2] == "[100, 200, 100, 200]"
    assert "SOLVER.MAX_ITER" not in by_key  # follows from FOUR_STEP.ITERS
    changed = [row[0] for row in rows if row[2] != row[3]]
    assert [row[0] for row in rows[: len(changed)]] == changed, "what the run changed comes first"
    assert "Started from vgg16_shapes.yaml, which builds on the preset" in page.words("config")


def test_curves_end_with_the_last_values_logged(page: Page, finished_run: Path) -> None:
    lines = [json.loads(line) for line in (finished_run / "metrics.json").open()]
    last = [row for row in lines if "lr" in row][-1]
    assert last["iteration"] == 599 and "loss_cls" in last
    text = page.words("curves")
    assert f"total_loss {last['total_loss']:.4g}" in text
    assert f"loss_cls {last['loss_cls']:.4g}" in text


def test_recall_table_equals_the_curves(page: Page, finished_run: Path) -> None:
    rows = page.table("RPN of", "proposals", "AR")
    # The fixture's curves of 100 and 300 proposals are the same: one is shown.
    assert [row[:2] for row in rows] == [["step 1", "100"], ["step 3", "100"]]
    for row in rows:
        step = row[0].removeprefix("step ")
        curves = RecallCurves.load(finished_run / f"proposals/stage{step}/shapes_test.recall.json")
        metrics = curves.metrics()
        assert row[2] == f"{metrics[f'AR@{row[1]}']:.2f}"
        assert row[3] == f"{metrics[f'R@0.5@{row[1]}']:.2f}"
        assert row[5] == f"{metrics[f'R@0.7@{row[1]}']:.2f}"


def test_ap_table_equals_the_evaluation(page: Page, finished_run: Path) -> None:
    record = EvaluationRecord.load(finished_run / "inference/shapes_test/evaluation.json")
    rows = page.table("class", "objects", "detections", "AP50, 11-point", "AP50, area")
    assert [row[0] for row in rows] == [entry.name for entry in record.classes]
    assert rows[0][1:5] == ["50", "80", "90.12", "92.50"]  # 90.125 rounds to even
    assert rows[2][1:5] == ["0", "3", "–", "–"]
    text = page.words("ap")
    assert "shapes_test, at the end of the run" in text
    assert "AP50 71.50, AP75 43.00, AP at .50:.95 41.25" in text


def test_names_are_escaped(page: Page) -> None:
    assert BAD_NAME in [row[0] for row in page.table("class", "objects")]
    assert "script" not in {tag for tag, _ in page.tags}


def test_images(page: Page) -> None:
    text = page.words("images")
    assert "000001 1 right, 1 wrong, 1 missed" in text
    assert "circle 0.91" in text and "square 0.62" in text and f"{BAD_NAME} missed" in text
    photos = [v for tag, v in page.tags if tag == "img" and v["alt"] == "Image 000001"]
    assert len(photos) == 1 and photos[0]["src"].startswith("data:image/jpeg;base64,")
    assert "image not reachable" in text and "not found: " in text and "gone.jpg" in text


def test_times(page: Page) -> None:
    rows = page.table("part", "iterations")
    # Spans of the fixture: from 0.3 x first + 5 to 0.3 x end seconds.
    assert rows[0] == ["step 1 RPN", "100 of 100", "0.2500", "0.0500 s", "5.0 s", "25.0 s"]
    assert rows[1] == ["step 2 detector", "200 of 200", "0.2500", "0.0500 s", "5.0 s", "55.0 s"]
    assert rows[-1] == ["in all", "", "", "", "", "3 min 20 s"]


def test_environment(page: Page) -> None:
    text = page.words("environment")
    assert "torch 2.9.0" in text and "tools/train_net.py --config-file" in text
    assert "01 March 2026, 10:20 UTC, finished after 3 min 20 s" in text


def test_killed_in_step_2(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run", done=180)
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 199, "lr": 0.0')  # torn
    page = page_of(folder)
    head = page.words("head")
    assert "interrupted, or still running: 180 of 600 iterations, in step 2 of 4" in head
    assert "not readable and left out: 1." in head
    assert "recall of 300 proposals at IoU .5 shapes_test, after step 1 of 4" in head
    assert "1 min 30 s to go" in head  # the host's eta of 90 s
    assert [r[-2] for r in page.table("step", "trains")] == [
        "done", "80 of 200", "not begun", "not begun",
    ]  # fmt: skip
    assert "No detector was evaluated here yet; the RPN was" in page.words("ap")
    # Not measured to its end: 80 iterations of 0.25 s.
    assert page.table("part", "iterations")[1][-1] == "about 20.0 s"
    # Until its last note 35 s, and those.
    assert page.table("part", "iterations")[-1][-1] == "55.0 s"


def test_evaluation_of_step_2_is_not_taken_for_the_end(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run", done=500)
    record = evaluation(folder)
    record.results["AP50"] = RESULTS["AP50"] - 10
    record.save(folder / "inference/shapes_test/evaluation.json")
    page = page_of(folder)
    assert "shapes_test, after step 2 of 4" in page.words("ap")
    assert "61.5 % AP50 shapes_test, after step 2 of 4" in page.words("head")


def test_joint_run_without_a_record(tmp_path: Path) -> None:
    """As an own trainer or an older version leaves it; only the host's files."""
    (tmp_path / "config.yaml").write_text(config_text(JOINT, "SOLVER.MAX_ITER", 100))
    lines = training_lines(60, lambda i: True)
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    (tmp_path / "log.txt").write_text(
        "[01/01 00:00:00] detectron2 INFO: Environment info:\n-----\nPython   3.11.7\n-----\n"
        "[01/01 00:00:00] detectron2 INFO: Command line arguments: Namespace()\n"
    )
    page = page_of(tmp_path)
    assert "Faster R-CNN, VGG16, trained jointly" in page.words("head")
    assert "There is no run.json" in page.words("head")
    assert "Joint training, 100 iterations; not trained in steps." in page.words("plan")
    assert "nearest of those that come with the plugin, vgg16_shapes_joint.yaml" in page.words(
        "config"
    )
    assert page.table("part", "iterations")[0] == [
        "joint training", "60 of 100", "0.2500", "0.0500 s", "–", "about 15.0 s",
    ]  # fmt: skip
    assert "Python 3.11.7" in page.words("environment")
    assert "Command line arguments" not in page.words("environment")


def test_rpn_alone(tmp_path: Path) -> None:
    text = config_text(JOINT, "MODEL.PAPER_RCNN.PHASE", "rpn", "SOLVER.MAX_ITER", 100)
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "model_final.pth").write_bytes(b"")
    curves = recall_and_metrics(tmp_path)
    page = page_of(tmp_path)
    head = page.words("head")
    assert "Region proposal network, VGG16" in head and "finished" in head
    assert (
        f"{curves.metrics()['R@0.5@300']:.1f} % recall of 300 proposals at IoU .5 shapes_test"
        in head
    )
    assert page.table("RPN of", "proposals")[0][0] == "evaluation"


def recall_and_metrics(folder: Path) -> RecallCurves:
    from .conftest import recall_curves

    curves = recall_curves("shapes_test", 0.8)
    curves.save(folder / "inference/shapes_test/recall.json")
    values = {f"proposals/{k}": v for k, v in curves.metrics().items()}
    lines = [*training_lines(100, lambda i: False), json.dumps({**values, "iteration": 100})]
    (folder / "metrics.json").write_text("\n".join(lines))
    return curves


def test_config_alone(tmp_path: Path) -> None:
    """Stopped before anything was logged."""
    (tmp_path / "config.yaml").write_text(config_text(JOINT))
    page = page_of(tmp_path)
    assert "nothing logged yet" in page.words("head")
    assert "Nothing was logged." in page.words("curves")


def test_metrics_alone_and_a_damaged_config(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("\n".join(training_lines(60, lambda i: True)))
    page = page_of(tmp_path)
    assert "the config is unknown" in page.words("head")
    assert "There is no config to compare." in page.words("config")
    (tmp_path / "config.yaml").write_text("MODEL: [unclosed")
    assert "The config is damaged" in page_of(tmp_path).words("head")
    (tmp_path / "config.yaml").write_text("MODEL: !!python/object/apply:os.getcwd []")
    assert "The config is damaged" in page_of(tmp_path).words("head")


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run")
    for name in (
        "run.json",
        "inference/shapes_test/evaluation.json",
        "proposals/stage1/shapes_test.recall.json",
    ):
        file = folder / name
        file.write_bytes(file.read_bytes()[:100])
    head = page_of(folder).words("head")
    assert "run.json is no record of a training" in head
    assert "evaluation.json holds no evaluation" in head
    assert "shapes_test.recall.json holds no recall curves" in head


def test_diverged(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run", done=60)
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"total_loss": 1.961', '"total_loss": NaN'))
    assert "total_loss is not finite at iteration 39: diverged." in page_of(folder).words("head")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder '.*nothing'; give the OUTPUT_DIR"):
        write_report(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no run \(no config.yaml, run.json, metrics.json"):
        write_report(tmp_path)
    write_four_step(tmp_path / "run", done=20)
    with pytest.raises(UserError, match=r"holds no run .*; did you mean .*/run\?"):
        write_report(tmp_path)


def test_cannot_write(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*report.html \(No such file.*--output"):
        write_report(finished_run, tmp_path / "no" / "report.html")


def test_written_whole_or_not_at_all(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_report(finished_run, file)
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
    assert file.read_text() == "old"
