"""Four stages in two processes that talk over gloo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from frcnn_plugin.data.proposals.files import load_proposals
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step import weights as stage_weights
from frcnn_plugin.four_step.statistics import on_main_process
from frcnn_plugin.process import launch, unwrap_model
from tests.four_step.four_step_oracle import check_same, four_trainings
from tests.four_step.four_step_runs import Stop, final_weights, make_trainer

pytestmark = pytest.mark.usefixtures("with_data")


class Digests(HookBase):
    """The weights of this process after every iteration."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def after_step(self) -> None:
        self.values.append(stage_weights.digest(unwrap_model(self.trainer.model)))


def broadcast() -> tuple[list[float], str]:
    """Numbers that each process would draw otherwise, and how an error comes through."""
    torch.manual_seed(comm.get_rank())
    drawn = on_main_process(lambda: torch.rand(20).tolist())

    def fail() -> None:
        raise UserError("no such thing")

    with pytest.raises((UserError, RuntimeError)) as caught:
        on_main_process(fail)
    return drawn, f"{caught.typename}: {caught.value}"


def run(folder: Path, opts: list[str]) -> None:
    """What each process does: a whole run, then one that is interrupted and resumed."""
    torch.set_num_threads(1)
    numbers = broadcast()
    seed_all_rng(3 + comm.get_rank())  # as in Detectron2's default_setup: another seed in each
    whole = make_trainer(folder / "whole", opts)
    digests = Digests()
    whole.register_hooks([digests])
    whole.train()
    interrupted = make_trainer(folder / "resumed", opts)
    interrupted.register_hooks([Stop(5)])
    with pytest.raises(InterruptedError):
        interrupted.train()
    comm.synchronize()
    make_trainer(folder / "resumed", opts, resume=True).train()
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps([digests.values, numbers]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order, as more threads make them, differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same weights all the time: those of batches twice as large."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    four_trainings(tmp_path, whiten=True, restart=False, world=2)
    opts = [
        *("MODEL.WEIGHTS", str(tmp_path / "start.pth")),
        *("FOUR_STEP.RPN_TARGET_STATISTICS", "True"),
        *("FOUR_STEP.PREDICTOR_START", "continue"),
        *("FOUR_STEP.EVALUATE_STEPS", "True"),
    ]
    launch(run, 2, args=(tmp_path, opts))
    main_process = torch.Generator().manual_seed(0)
    (first, (drawn, failure)), (second, (drawn_by_second, failure_of_second)) = (
        json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)
    )
    # What the main process computes, all have; its error comes through as itself.
    assert drawn == drawn_by_second == torch.rand(20, generator=main_process).tolist()
    assert failure == "UserError: no such thing"
    assert failure_of_second.startswith("RuntimeError: the main process could not")
    assert "such" in failure_of_second
    assert len(first) == 16 and len(set(first)) == 16
    assert first == second
    check_same(tmp_path, tmp_path / "whole")
    assert final_weights(tmp_path / "resumed") == final_weights(tmp_path / "whole")
    for stage in (1, 3):
        ours = load_proposals(tmp_path / f"whole/proposals/stage{stage}/tiny_trainval.pkl")
        expected = load_proposals(tmp_path / f"{stage}.pkl")
        assert ours.ids == expected.ids  # complete, in the order of the data set
        for a, b in zip(ours.boxes, expected.boxes, strict=True):
            assert a.tolist() == b.tolist()
