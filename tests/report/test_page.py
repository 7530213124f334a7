"""The page against what lies in the folder; a browser looks at it in test_browser.py."""

from __future__ import annotations

import base64
import json
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
    recall_curves,
    training_lines,
    write_four_step,
)
from .html_page import Page

SECTIONS = ["plan", "ap", "images", "proposals", "curves", "config", "environment"]


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
    assert "Faster R-CNN, VGG16, stages 1 to 4 finished" in head
    assert "71.5 % AP50 shapes_test" in head
    assert "0:03:20 in total, including evaluation" in head  # the session: 200 s
    assert "trained on shapes_trainval tested on shapes_test started" in head
    assert str(finished_run) in head
    assert "Missing or damaged" not in head


def test_plan_says_what_became_of_each_stage(page: Page, finished_run: Path) -> None:
    recall = RecallCurves.load(finished_run / "proposals/stage3/shapes_test.recall.json").metrics()
    rows = page.table("stage", "trains")
    assert [row[0] for row in rows] == ["1 RPN", "2 detector", "3 RPN", "4 detector"]
    # Stages of the fixture end after 30, 90, 120 and 180 seconds.
    assert rows[1][-1].splitlines() == [
        "200 of 200 iterations", "0.2500 s each", "0.0500 s of it for data",
        "0:01:00 in total", "AP50 61.5", "AP 31.2",  # 10 less than at the end; 31.25 rounds to even
    ]  # fmt: skip
    assert rows[2][-1].splitlines()[-2:] == [
        f"R@0.5@300 {recall['R@0.5@300']:.1f}",
        f"AR@300 {recall['AR@300']:.1f}",
    ]
    assert rows[3][-1].endswith("AP50 71.5\nAP 41.2")


def test_config_differences(page: Page) -> None:
    by_key = {row[0]: row[1:] for row in page.table("key", "default", "this run")}
    assert by_key["SOLVER.BASE_LR"] == ["0.001", "0.005"]
    assert by_key["MODEL.PROPOSAL_GENERATOR.NAME"] == ["'RPN'", "'PaperRPN'"]
    assert by_key["FOUR_STEP.ITERS"][1] == "[100, 200, 100, 200]"
    # Tuples, which are lists in a YAML.
    assert not {"INPUT.CROP.SIZE", "MODEL.RPN.BBOX_REG_WEIGHTS"} & by_key.keys()


def test_key_that_this_version_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text(JOINT) + "OLD: {KEY: 1}\n")
    rows = page_of(tmp_path).table("key", "default", "this run")
    assert ["OLD.KEY", "–", "1"] in rows


def test_curves_end_with_the_last_values_logged(page: Page, finished_run: Path) -> None:
    lines = [json.loads(line) for line in (finished_run / "metrics.json").open()]
    last = [row for row in lines if "lr" in row][-1]
    assert last["iteration"] == 599 and "loss_cls" in last
    text = page.words("curves")
    assert f"total_loss {last['total_loss']:.4g}" in text
    assert f"loss_cls {last['loss_cls']:.4g}" in text


def test_recall_tables_are_those_of_the_curves(page: Page, finished_run: Path) -> None:
    for number in (1, 3):
        name = f"proposals/stage{number}/shapes_test.recall.json"
        table = RecallCurves.load(finished_run / name).table()
        assert f"Stage {number}: " + " ".join(table.split()) in page.words("proposals")


def test_ap_table_equals_the_evaluation(page: Page, finished_run: Path) -> None:
    record = EvaluationRecord.load(finished_run / "inference/shapes_test/evaluation.json")
    rows = page.table("class", "objects", "detections", "AP50-11point", "AP50-area")
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
    photos = [v["href"] for tag, v in page.tags if tag == "image"]
    assert len(photos) == 2 and photos[0].startswith("data:image/jpeg;base64,")
    assert "there is no file" in text and "gone.jpg" in text


def test_environment(page: Page) -> None:
    text = page.words("environment")
    assert "PyTorch 2.9.0" in text and "tools/train_net.py --config-file" in text
    assert "2026-03-01 10:20 UTC, finished after 0:03:20" in text


def test_killed_in_stage_2(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run", done=180)
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 199, "lr": 0.0')  # torn, and left out
    page = page_of(folder)
    head = page.words("head")
    assert "interrupted, or still running: 180 of 600 iterations, in stage 2 detector" in head
    assert "recall of 300 proposals at IoU .5 shapes_test, after stage 1 RPN" in head
    assert "No detector was evaluated here yet; the RPN was" in page.words("ap")
    outcomes = [row[-1].splitlines() for row in page.table("stage", "trains")]
    assert outcomes[0][:1] == ["100 of 100 iterations"] and "0:00:30 in total" in outcomes[0]
    assert outcomes[1] == [
        "80 of 200 iterations", "0.2500 s each", "0.0500 s of it for data",
    ]  # fmt: skip
    assert outcomes[2:] == [["0 of 100 iterations"], ["0 of 200 iterations"]]
    assert "0:00:30 in total so far" in head  # until the last note


def test_evaluation_of_stage_2_is_not_taken_for_the_end(tmp_path: Path) -> None:
    folder = write_four_step(tmp_path / "run", done=500)
    record = evaluation(folder)
    record.results["AP50"] = RESULTS["AP50"] - 10
    record.save(folder / "inference/shapes_test/evaluation.json")
    page = page_of(folder)
    assert "shapes_test, after stage 2 detector" in page.words("ap")
    assert "61.5 % AP50 shapes_test, after stage 2 detector" in page.words("head")


def test_joint_run_without_a_record(tmp_path: Path) -> None:
    """As an own trainer or an older version leaves it; only Detectron2's files."""
    solver = ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (80,), "SOLVER.BASE_LR", 0.01]
    text = config_text(JOINT, *solver, "SOLVER.IMS_PER_BATCH", 2, "MODEL.WEIGHTS", "/data/vgg.pth")
    (tmp_path / "config.yaml").write_text(text)
    lines = training_lines(60, lambda i: True)
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    page = page_of(tmp_path)
    assert "Faster R-CNN, VGG16, joint training" in page.words("head")
    assert "Without run.json" in page.words("head")
    assert page.table(
        "stage", "starts from", "iterations x images", "learning rate", "outcome"
    ) == [
        [
            "joint training",
            "vgg.pth",
            "100 x 2",
            "0.01 to 80, 0.001 to 100",
            "60 of 100 iterations\n0.2500 s each\n0.0500 s of it for data",
        ]
    ]
    assert "did not note its command line" in page.words("environment")


def test_rpn_alone(tmp_path: Path) -> None:
    text = config_text(JOINT, "MODEL.PAPER_RCNN.PHASE", "rpn", "SOLVER.MAX_ITER", 100)
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "model_final.pth").write_bytes(b"")
    curves = recall_curves(0.8)
    curves.save(tmp_path / "inference/shapes_test/recall.json")
    values = {f"proposals/{k}": v for k, v in curves.metrics().items()}
    lines = [*training_lines(100, lambda i: False), json.dumps({**values, "iteration": 100})]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    page = page_of(tmp_path)
    head = page.words("head")
    assert "Faster R-CNN, VGG16, RPN" in head and "finished" in head
    assert (
        f"{curves.metrics()['R@0.5@300']:.1f} % recall of 300 proposals at IoU .5 shapes_test"
        in head
    )
    assert "Evaluation: shapes_test: proposal recall" in page.words("proposals")


def test_average_precision_over_the_iterations(tmp_path: Path) -> None:
    """Measured three times in training; a single value makes no curve."""
    (tmp_path / "config.yaml").write_text(config_text(JOINT, "SOLVER.MAX_ITER", 100))
    lines = training_lines(100, lambda i: True)
    lines += [
        json.dumps({"bbox/AP50": value, "bbox/AP75": 1.0, "iteration": iteration})
        for iteration, value in ((40, 20.0), (80, 30.5), (100, 31.0))
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    page = page_of(tmp_path)
    plot = next(
        v["src"] for _, v in page.tags if v.get("alt") == "Average precision over the iterations"
    )
    svg = base64.b64decode(plot.partition(",")[2]).decode()
    assert ">AP50<" in svg and ">AP75<" not in svg
    (tmp_path / "metrics.json").write_text("\n".join([*lines[:-3], lines[-1]]))
    assert "Average precision over the iterations" not in str(page_of(tmp_path).tags)


def test_recall_of_dumped_proposals(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text(JOINT))
    curves = recall_curves(0.8)
    curves.save(tmp_path / "inference/shapes_test/proposals.recall.json")
    text = page_of(tmp_path).words("proposals")
    assert f"frcnn proposals dump: {' '.join(curves.table().split())}" in text


@pytest.mark.parametrize("names", [(), ("model_final.pth",), ("model_best.pth", "model_final.pth")])
def test_weights_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "config.yaml").write_text(config_text(JOINT))
    for name in names:
        (tmp_path / name).write_bytes(b"")
    head = page_of(tmp_path).words("head")
    assert (f"weights {', '.join(names)}" in head) if names else ("weights model" not in head)


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
    assert "run.json holds no record of a training" in head
    assert "evaluation.json holds no evaluation" in head
    assert "shapes_test.recall.json holds no recall curves" in head


def test_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"holds no run \(no config.yaml, run.json, metrics"):
            write_report(folder)


def test_cannot_write(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*report.html \(No such file.*--output"):
        write_report(finished_run, tmp_path / "no" / "report.html")
