"""Runs four-step trainings in processes of their own, and kills some of them.

    python -m tests.four_step.four_step_runs FOLDER < scenarios.json

A scenario is ``{"name": ..., "kill": point or null, "opts": [...]}``. With a kill point the run is
started, kills itself with SIGKILL there, and is resumed in a new process. Processes are forked from
this one, so that PyTorch is imported once. Prints, as JSON, per scenario whether it was killed and
the SHA-256 of its final weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from frcnn_plugin import get_config_file
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.four_step import weights as stage_weights
from frcnn_plugin.preflight import PlannedRun, stop_on_errors

SETS = [
    {"name": f"tiny_{s}", "root": "tiny", "split": s, "classes": ["circle", "square", "triangle"]}
    for s in ("trainval", "test")
]
# On top of Base-PyEnd2End.yaml; nothing here depends on the demo's configs.
TINY = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RPN.MIN_SIZE_IMAGE", "8.0"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("DATASETS.REGISTER", str(SETS)),
    *("DATASETS.TRAIN", "('tiny_trainval',)"),
    *("DATASETS.TEST", "('tiny_test',)"),
    *("INPUT.MAX_SIZE_TRAIN", "160"),
    *("INPUT.MAX_SIZE_TEST", "160"),
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_BOX_HEAD.DROPOUT", "0.5"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32,64]]"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("DATALOADER.MIRRORED_COPIES", "True"),
    *("INPUT.RANDOM_FLIP", "none"),
    *("MODEL.PAPER_RCNN.ONE_BY_ONE", "False"),
    *("SOLVER.BASE_LR", "0.003"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
    *("SOLVER.CHECKPOINTS_KEPT", "0"),
    *("FOUR_STEP.ENABLED", "True"),
    *("FOUR_STEP.ITERS", "[4,4,4,4]"),
    *("FOUR_STEP.DROPS", "[[2],[2],[2],[2]]"),
    *("FOUR_STEP.EVALUATE_STEPS", "False"),
    *("FOUR_STEP.POST_NMS_TOPK", "100"),
    *("TEST.EVAL_PERIOD", "-1"),
]


class Stop(HookBase):
    """Ends a run after an iteration: by an error, or however it is told to."""

    def __init__(self, iteration: int, end: Callable[[], None] | None = None) -> None:
        self._iteration, self._end = iteration, end

    def after_step(self) -> None:
        if self.trainer.iter == self._iteration:
            if self._end is None:
                raise InterruptedError
            self._end()


def kill() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Kill this process after a call of a function whose arguments meet a condition."""
    function = getattr(owner, name)

    def call_and_die(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if when(*args):
            kill()
        return result

    setattr(owner, name, call_and_die)


def arm(point: str, trainer: PaperTrainer) -> None:
    """Prepare to be killed at ``kind:number``."""
    kind, text = point.split(":")
    number, calls = int(text), [0]

    def is_half_saved(data: Any, file: Any, *args: Any) -> bool:
        if hasattr(file, "truncate") != (kind == "checkpoint"):
            return False
        calls[0] += 1
        if calls[0] == number and kind == "checkpoint":
            file.flush()
            file.truncate(file.tell() // 2)
        elif calls[0] == number:
            os.truncate(file, os.path.getsize(file) // 2)
        return calls[0] == number

    tag = AtomicCheckpointer.tag_last_checkpoint

    def tag_half(self: AtomicCheckpointer, name: str) -> None:
        calls[0] += 1
        if calls[0] < number:
            tag(self, name)
            return
        with self.path_manager.open(os.path.join(self.save_dir, "last_checkpoint"), "w") as f:
            f.write(name[: len(name) // 2])
            f.flush()
            kill()

    def is_collecting(collector: ProposalCollector, *args: Any) -> bool:
        return f"stage{number}" in str(collector._output_path) and len(collector._entries) == 2

    if kind == "iteration":
        # Last: after the checkpoint of that iteration; "before" comes before it.
        trainer.register_hooks([Stop(number, kill)])
    elif kind == "before_checkpoint":
        killer = Stop(number, kill)
        trainer._hooks.insert(1, killer)
        killer.trainer = trainer._hooks[0].trainer
    elif kind == "proposals":  # while the proposals of that stage are collected
        die_after(ProposalCollector, "process", is_collecting)
    elif kind == "surgery":  # at the start of that stage, with the weights changed
        die_after(stage_weights, "begin_stage", lambda model, stage, *_: stage.number == number)
    elif kind in ("checkpoint", "initial"):  # while the number-th of these files is written
        die_after(torch, "save", is_half_saved)
    elif kind == "last_checkpoint":  # the number-th checkpoint is complete, its name is not
        AtomicCheckpointer.tag_last_checkpoint = tag_half  # type: ignore[method-assign]
    else:
        raise ValueError(point)


def tiny_cfg(folder: Path, opts: Sequence[str] = ()) -> CfgNode:
    """A checked config; the data lie below ``DETECTRON2_DATASETS``."""
    return setup_cfg(
        get_config_file("Base-PyEnd2End.yaml"), [*TINY, "OUTPUT_DIR", str(folder), *opts]
    )


def make_trainer(folder: Path, opts: Sequence[str] = (), *, resume: bool = False) -> PaperTrainer:
    """A trainer as the command has it before ``train()``."""
    cfg = tiny_cfg(folder, opts)
    stop_on_errors(PlannedRun(cfg, resume=resume, num_processes=comm.get_world_size()))
    torch.manual_seed(max(cfg.SEED, 0))
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def train(folder: Path, point: str | None, opts: list[str], resume: bool) -> bool:
    """Train in a forked process; returns whether it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ["DETECTRON2_DATASETS"] = str(folder.parent / "data")
            trainer = make_trainer(folder, opts, resume=resume)
            if point:
                arm(point, trainer)
            trainer.train()
            status = 0
        except Exception:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"{folder.name}: exit status {os.WEXITSTATUS(status)}")
    return False


def final_weights(folder: Path) -> str:
    """SHA-256 of the weights at the end."""
    return digest_of(torch.load(folder / "model_final.pth", weights_only=True)["model"])


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict."""
    module = torch.nn.Module()
    module.state_dict = lambda: weights  # type: ignore[method-assign, assignment]
    return stage_weights.digest(module)


def play(root: Path, scenario: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario to its end."""
    folder = root / scenario["name"]
    opts = scenario.get("opts", [])
    killed = train(folder, scenario["kill"], opts, resume=False)
    if killed:
        train(folder, None, opts, resume=True)
    return {"killed": killed, "weights": final_weights(folder)}


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    scenarios = json.load(sys.stdin)
    with get_context("fork").Pool(2) as pool:  # as they train in one thread
        played = pool.starmap(play, [(root, s) for s in scenarios], chunksize=1)
    results = {s["name"]: result for s, result in zip(scenarios, played, strict=True)}
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main()
