from __future__ import annotations

from pathlib import Path

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.report.config_diff import diff_config, parse_config

from .conftest import config_text

VOC = get_config_file("faster_rcnn_vgg16_voc.yaml")


def test_preset_is_the_nearest_base() -> None:
    """Base-Paper, though that is based on Base-PyAltOpt, and that on Base-PyEnd2End."""
    run = parse_config(config_text(VOC, "SOLVER.BASE_LR", 0.002, "SOLVER.MAX_ITER", 5))
    diff = diff_config(run, VOC)
    assert (diff.file, diff.preset) == ("faster_rcnn_vgg16_voc.yaml", "Base-Paper.yaml")
    assert diff.recorded and diff.num_own == 1
    assert diff.rows[0] == ("SOLVER.BASE_LR", "0.001", "0.001", "0.002")
    by_key = {row[0]: row[1:] for row in diff.rows}
    assert by_key["DATASETS.TEST"] == ("[]", "['voc07_test']", "['voc07_test']")
    preset = {row[0]: row[1:] for row in diff.preset_rows}
    assert preset["MODEL.PROPOSAL_GENERATOR.NAME"] == ("'RPN'", "'PaperRPN'")


def test_unchanged_values_do_not_count_as_different() -> None:
    """Tuples, infinities and dicts come back from YAML as lists, .inf and in another order."""
    file = get_config_file("demo/vgg16_shapes.yaml")
    assert diff_config(parse_config(config_text(file)), file).num_own == 0


def test_nearest_if_nothing_is_recorded() -> None:
    diff = diff_config(parse_config(config_text(VOC, "SOLVER.BASE_LR", 0.002)), None)
    assert diff.file == "faster_rcnn_vgg16_voc.yaml" and not diff.recorded and not diff.problem


def test_recorded_file_that_is_gone_or_broken(tmp_path: Path) -> None:
    run = parse_config(config_text(VOC))
    gone = diff_config(run, str(tmp_path / "mine.yaml"))
    assert gone.problem.startswith("FileNotFoundError") and not gone.recorded
    assert gone.file == "faster_rcnn_vgg16_voc.yaml"
    loop = tmp_path / "loop.yaml"
    loop.write_text('_BASE_: "loop.yaml"\n')
    assert "is based on itself" in diff_config(run, str(loop)).problem


def test_without_a_config_file() -> None:
    diff = diff_config(parse_config(config_text(VOC)), "")
    assert diff.recorded and diff.file == "" and diff.preset == ""
    assert "MODEL.META_ARCHITECTURE" in {row[0] for row in diff.rows}


def test_key_that_this_version_does_not_know() -> None:
    run = {**parse_config(config_text(VOC)), "MODEL.OLD_KEY": 1}
    assert ("MODEL.OLD_KEY", "–", "–", "1") in diff_config(run, VOC).rows


@pytest.mark.parametrize("text", ["MODEL: [1", "just words", "!!python/object/apply:os.getcwd []"])
def test_damaged_text(text: str) -> None:
    with pytest.raises(ValueError, match="Error"):
        parse_config(text)
