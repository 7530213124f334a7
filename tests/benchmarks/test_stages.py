"""What four-step training costs, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.stages import KINDS, Stages

from .tiny import SIZE, SMALL, spec_and_work


def test_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["stages", *SIZE, "--images", "2", "--output", str(tmp_path)]
    main([*argv, *SMALL])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(result["seconds"]) == [
        *("joint", "1 RPN", "2 detector", "3 RPN, conv frozen", "4 detector, conv frozen"),
    ]
    assert all(len(seconds) == 2 for seconds in result["seconds"].values())
    # An iteration of one network does not run the other.
    assert "region-wise" not in result["sections"]["1 RPN"]
    assert "proposal" not in result["sections"]["2 detector"]
    assert result["dump_speed"] > 0
    assert "of their speed" in capsys.readouterr().out


def test_frozen_convolutions_get_no_gradient() -> None:
    spec, work = spec_and_work(training=True)
    contender = Contender(spec, work, calibrated_weights(spec, work))
    stages = Stages(contender)
    trained: dict[str, set[str]] = {}
    contender.optimizer.zero_grad = lambda set_to_none: None  # keep them, to look at
    for kind in KINDS:
        for parameter in contender.model.parameters():
            parameter.grad = None
        stages.sample(kind)
        named = contender.model.named_parameters()
        trained[kind] = {n.split(".")[0] for n, p in named if p.grad is not None}
    assert trained == {kind: set(trains) for kind, (_, trains) in KINDS.items()}
