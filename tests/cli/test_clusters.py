"""`frcnn train` in two processes, whoever starts them: lost, stopped, restarted, and the bits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import lock_output
from tests.four_step.four_step_runs import digest_of
from tests.small_demo import DEMO, SMALL

OPTS = [
    *SMALL,
    *("SEED", "3", "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(4,)"),
    *("SOLVER.CHECKPOINT_PERIOD", "100"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "1"),
]  # fmt: skip
# A signal for a process of a run, or for that which started it, in an iteration.
SCRIPT = """
import os, signal, sys
from detectron2.utils import comm
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.engine import PaperTrainer

run_step = PaperTrainer.run_step

def step(trainer):
    rank, iteration, number, target = os.environ.get("SEND", "9 9 9 9").split()
    if int(rank) == comm.get_rank() and int(iteration) == trainer.iter:
        os.environ["SEND"] = "9 9 9 9"
        if "0" == os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"):
            os.kill(os.getpid() if target == "self" else os.getppid(), int(number))
    run_step(trainer)

PaperTrainer.run_step = step
if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
"""


class Cluster:
    """Starts runs in a folder."""

    def __init__(self, root: Path) -> None:
        write_synthetic_voc(root / "demo_shapes", num_trainval=6, num_test=3)
        (root / "script.py").write_text(SCRIPT)
        self.root = root
        known = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        self._env = {k: v for k, v in os.environ.items() if k not in known and "SLURM" not in k}
        self._env |= {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
        self._env["PYTHONWARNINGS"] = "ignore"

    def start(self, run: str, *words: str, send: str = "", **env: str) -> subprocess.Popen[str]:
        """One process; `words` come before the script."""
        script = [str(self.root / "script.py"), "--config-file", DEMO, *OPTS]
        before = [w for w in words if w.startswith("-m") or "." in w or "=" in w]
        after = [w for w in words if w not in before]
        return subprocess.Popen(
            [sys.executable, *before, *script, "OUTPUT_DIR", str(self.root / run), *after],
            env=self._env | env | ({"SEND": send} if send else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def torchrun(self, run: str, *words: str, send: str = "") -> subprocess.Popen[str]:
        options = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1")
        return self.start(run, *options, *words, send=send)

    def srun(self, run: str, *words: str, send: str = "") -> list[subprocess.Popen[str]]:
        """Two tasks with the variables that srun sets."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = {"SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(run, *words, send=send, **env, SLURM_PROCID=rank, SLURM_LOCALID=rank)
            for rank in "01"
        ]  # fmt: skip

    def weights(self, run: str) -> str:
        path = self.root / run / "model_final.pth"
        return digest_of(torch.load(path, weights_only=True)["model"])


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def lines(err: str) -> list[str]:
    """What is for the user: not the warnings of libraries, nor what torchrun says itself."""
    return [line for line in err.splitlines() if "error:" in line or "--resume goes on" in line]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> str:
    """The weights of a run in two processes that the command starts itself."""
    status, _, err = finish(cluster.start("whole", "--num-gpus", "2"))
    assert status == 0, err
    return cluster.weights("whole")


def test_torchrun_restarts_a_lost_process(cluster: Cluster, whole: str) -> None:
    status, out, err = finish(cluster.torchrun("torchrun", send="1 5 9 self"))
    assert status == 0, err
    saved = "after iteration 5 of 6; --resume goes on"
    assert [
        line for line in lines(err) if f"another process of this run has ended, {saved}" in line
    ]
    assert "Starting training from iteration 5" in out
    assert cluster.weights("torchrun") == whole


def test_the_launching_process_passes_signals_on(cluster: Cluster, whole: str) -> None:
    status, _, err = finish(cluster.start("parent", "--num-gpus", "2", send="0 2 15 parent"))
    assert status == 75, err
    assert len(lines(err)) == 1 and "stopped by SIGTERM, after iteration 3 of 6;" in err
    assert "Traceback" not in err
    status, _, err = finish(cluster.start("parent", "--num-gpus", "2", "--resume"))
    assert status == 0, err
    assert cluster.weights("parent") == whole


def test_a_signal_for_one_task_stops_both(cluster: Cluster, whole: str) -> None:
    ends = [finish(task) for task in cluster.srun("srun", send="1 2 15 self")]
    assert [status for status, *_ in ends] == [75, 75], ends
    assert [len(lines(err)) for *_, err in ends] == [1, 0]
    assert "after iteration 3 of 6" in ends[0][2]
    ends = [finish(task) for task in cluster.srun("srun", "--resume")]
    assert [status for status, *_ in ends] == [0, 0], ends
    assert cluster.weights("srun") == whole


def test_mistakes_are_one_line_of_one_task(cluster: Cluster) -> None:
    with lock_output(cluster.root / "used"):
        ends = [finish(task) for task in cluster.srun("used")]
    assert [status for status, *_ in ends] == [1, 1], ends
    assert [len(lines(err)) for *_, err in ends] == [1, 0]
    assert f"used is in use by process {os.getpid()} on" in ends[0][2]
    ends = [finish(task) for task in cluster.srun("used", "--num-gpus", "2")]
    assert [len(lines(err)) for *_, err in ends] == [1, 0]
    assert "--num-gpus 2, but torchrun or srun has started 2 processes: leave it out" in ends[0][2]
