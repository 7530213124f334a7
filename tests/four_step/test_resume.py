"""A four-step run killed anywhere ends with the very weights of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frcnn_plugin.data.synthetic import write_synthetic_voc

ROOT = Path(__file__).resolve().parents[2]

# Stages of 4 iterations: 0-3, 4-7, 8-11, 12-15; checkpoints at 2, 3, 5, 7, 8, 11, 14, 15.
KILLS = [
    "iteration:1",  # before the first checkpoint
    "iteration:2",
    "iteration:3",  # boundary 1 -> 2, stage 1 saved
    "before_checkpoint:3",  # boundary, stage 1 finished but not saved
    "proposals:1",
    "surgery:2",
    "iteration:5",
    "iteration:6",
    "before_checkpoint:7",
    "surgery:3",
    "iteration:8",
    "iteration:10",
    "iteration:11",  # boundary 3 -> 4
    "proposals:3",
    "iteration:13",
    "iteration:14",
    "checkpoint:2",  # stage1_final is half written
    "checkpoint:4",
    "initial:1",  # initial_weights.pth is half written
    "last_checkpoint:1",
    "last_checkpoint:3",  # stage1_final is complete, but last_checkpoint names the one before
]


def run(tmp_path: Path, scenarios: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    write_synthetic_voc(tmp_path / "data" / "tiny", num_trainval=6, num_test=2)
    done = subprocess.run(
        [sys.executable, "-m", "tests.four_step.four_step_runs", str(tmp_path)],
        input=json.dumps(scenarios),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULTS ")), None)
    assert line is not None, (done.stdout + done.stderr)[-5000:]
    return json.loads(line.removeprefix("RESULTS "))


@pytest.mark.slow
def test_killed_and_resumed_runs_end_with_the_same_weights(tmp_path: Path) -> None:
    scenarios: list[dict[str, object]] = [
        {"name": "whole", "kill": None},
        {"name": "whole_again", "kill": None},
        # The negative control: the comparison notices another order of images.
        {"name": "other_seed", "kill": None, "opts": ["SEED", "4"]},
    ]
    scenarios += [{"name": kill.replace(":", "_"), "kill": kill} for kill in KILLS]
    results = run(tmp_path, scenarios)
    whole = results["whole"]["weights"]
    assert results["whole_again"]["weights"] == whole
    assert results["other_seed"]["weights"] != whole
    different = {}
    for kill in KILLS:
        result = results[kill.replace(":", "_")]
        assert result["killed"], kill
        if result["weights"] != whole:
            different[kill] = result["weights"]
    assert not different


def test_statistics_and_recomputed_proposals_resume_as_well(tmp_path: Path) -> None:
    """With everything on that the MATLAB code does."""
    opts = [
        *("FOUR_STEP.RPN_TARGET_STATISTICS", "True"),
        *("FOUR_STEP.MIRRORED_PROPOSALS", "recompute"),
        *("FOUR_STEP.PREDICTOR_START", "continue"),
    ]
    kills = [None, "iteration:1", "iteration:5", "proposals:3", "iteration:10", "iteration:13"]
    results = run(
        tmp_path,
        [{"name": str(k).replace(":", "_"), "kill": k, "opts": opts} for k in kills],
    )
    assert [r["killed"] for r in results.values()] == [k is not None for k in kills]
    assert len({r["weights"] for r in results.values()}) == 1, results
