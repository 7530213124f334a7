"""`frcnn train` in two processes, whoever starts them: lost, stopped, restarted, and the bits.

Processes are forked from this one, with the variables that torchrun and srun set, so that PyTorch
is imported once. One test starts torchrun itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from frcnn_plugin import get_config_file
from frcnn_plugin.cli.__main__ import main, parse
from frcnn_plugin.cli.train import run_process
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, lock_output
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.process import launch
from frcnn_plugin.stopping import Stopped
from tests.four_step.four_step_runs import digest_of
from tests.small_demo import DEMO, SMALL

ROOT = Path(__file__).resolve().parents[2]
OPTS = [
    *SMALL,
    *("SEED", "3", "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(4,)"),
    *("SOLVER.CHECKPOINT_PERIOD", "100"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"),
]
LAUNCHERS = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
}


def send(rank: int, iteration: int, number: int, to: Callable[[], int] = os.getpid) -> None:
    """Let a rank of this process's run send a signal in an iteration."""
    run_step = PaperTrainer.run_step

    def step(trainer: PaperTrainer) -> None:
        if comm.get_rank() == rank and trainer.iter == iteration:
            os.kill(to(), number)
        run_step(trainer)

    PaperTrainer.run_step = step  # type: ignore[method-assign,assignment]


def forked(
    folder: Path, env: dict[str, str], work: Callable[[], int]
) -> Callable[[], tuple[int, str]]:
    """Work in a forked process; returns what waits for it: its status, and what it printed."""
    log = folder / f"{len(list(folder.glob('*.err')))}.err"
    log.touch()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            os.dup2(sys.stderr.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
            os.environ.update(env)
            torch.set_num_threads(1)
            setup_logger.cache_clear()
            status = work()
        except Stopped as stopped:
            status = int(str(stopped.code))
        finally:
            os._exit(status)

    def wait() -> tuple[int, str]:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, log.read_text()

    return wait


class Cluster:
    """Starts runs in a folder."""

    def __init__(self, root: Path) -> None:
        write_synthetic_voc(root / "demo_shapes", num_trainval=6, num_test=3)
        self.root = root

    def words(self, run: str, *words: str) -> list[str]:
        output = str(self.root / run)
        return ["train", "--config-file", DEMO, *OPTS, "OUTPUT_DIR", output, *words]

    def tasks(
        self, how: str, run: str, *words: str, arm: Callable[[], object] = int, **env: str
    ) -> list[tuple[int, list[str], str]]:
        """Train in two processes that a launcher has started: status, lines for the user, all."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

        def work() -> int:
            arm()
            return main(self.words(run, *words))

        waits = [
            forked(self.root, env | dict(zip(LAUNCHERS[how], (r, r, "2"), strict=True)), work)
            for r in "01"
        ]
        return [(status, lines(text), text) for status, text in (wait() for wait in waits)]

    def weights(self, run: str) -> str:
        path = self.root / run / "model_final.pth"
        return digest_of(torch.load(path, weights_only=True)["model"])


def lines(text: str) -> list[str]:
    """What is for the user: not the log."""
    signs = ("error:", "stopped by", "another process", "Traceback", "terminate called")
    return [line for line in text.splitlines() if line.startswith(signs)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*(n for names in LAUNCHERS.values() for n in names), "MASTER_ADDR"):
            patch.delenv(name, raising=False)
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield Cluster(root)


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> str:
    """The weights of a run in two processes that the command starts itself."""
    status, text = forked(cluster.root, {}, lambda: main(cluster.words("own", "--num-gpus", "2")))()
    assert status == 0, text
    return cluster.weights("own")


def test_a_lost_process_ends_the_other_and_a_restart_resumes(cluster: Cluster, whole: str) -> None:
    def arm() -> None:
        send(1, 4, signal.SIGKILL)

    first, second = cluster.tasks("torchrun", "lost", arm=arm, TORCHELASTIC_RESTART_COUNT="0")
    assert (first[0], second[0]) == (1, -signal.SIGKILL), first
    assert first[1] == [
        "another process of this run has ended, after iteration 4 of 6; --resume goes on in "
        f"{cluster.root / 'lost'} (model_0000003.pth)"
    ]
    for status, _, text in cluster.tasks("torchrun", "lost", TORCHELASTIC_RESTART_COUNT="1"):
        assert status == 0, text
    assert "Starting training from iteration 4" in (cluster.root / "lost/log.txt").read_text()
    assert cluster.weights("lost") == whole


def test_a_signal_for_one_task_stops_both(cluster: Cluster, whole: str) -> None:
    def arm() -> None:
        send(1, 2, signal.SIGTERM)

    first, second = cluster.tasks("srun", "stopped", arm=arm)
    assert (first[0], second[0]) == (75, 75), first
    assert (len(first[1]), second[1]) == (1, []), first
    assert first[1][0].startswith("stopped by SIGTERM, after iteration 3 of 6; --resume goes on in")
    for status, shown, text in cluster.tasks("srun", "stopped", "--resume"):
        assert (status, shown) == (0, []), text
    assert cluster.weights("stopped") == whole


STAGES = [
    *("--config-file", get_config_file("demo/vgg16_shapes.yaml"), "FOUR_STEP.ITERS", "[2,2,2,2]"),
    *("FOUR_STEP.DROPS", "[[1],[1],[1],[1]]", "FOUR_STEP.POST_NMS_TOPK", "20"),
]


def test_proposals_are_left_and_made_again(cluster: Cluster) -> None:
    """The first process leaves at once; the other when it misses that one."""

    def arm() -> None:
        process, calls = ProposalCollector.process, [0]

        def and_ask(self: ProposalCollector, *args: Any) -> None:
            process(self, *args)
            calls[0] += 1
            if calls[0] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        ProposalCollector.process = and_ask  # type: ignore[method-assign,assignment]

    for status, _, text in cluster.tasks("torchrun", "stages", *STAGES):
        assert status == 0, text
    first, second = cluster.tasks("torchrun", "left", *STAGES, arm=arm)
    assert (first[0], second[0]) == (75, 75), second
    assert (len(first[1]), second[1]) == (1, []), first
    assert "after iteration 2 of 8" in first[1][0] and "(stage1_final.pth)" in first[1][0]
    for status, _, text in cluster.tasks("torchrun", "left", *STAGES, "--resume"):
        assert status == 0, text
    assert cluster.weights("left") == cluster.weights("stages")


def stops_its_parent(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    send(0, 2, signal.SIGTERM, os.getppid)
    run_process(args)


def test_the_process_that_starts_others_passes_signals_on(cluster: Cluster) -> None:
    _, args = parse(cluster.words("passed"))
    status, text = forked(cluster.root, {}, lambda: launch(stops_its_parent, 2, args=(args,)))()
    assert status == 75, text
    assert [line.partition(";")[0] for line in lines(text)] == [
        "stopped by SIGTERM, after iteration 3 of 6"
    ]
    assert (cluster.root / "passed/model_0000002.pth").is_file()


def test_mistakes_are_one_line_of_one_task(cluster: Cluster) -> None:
    with lock_output(cluster.root / "used"):
        first, second = cluster.tasks("srun", "used")
    assert (first[0], second[0], len(first[1]), second[1]) == (1, 1, 1, []), first
    assert f"used is in use by process {os.getpid()} on" in first[1][0]
    first, second = cluster.tasks("torchrun", "used", "--num-gpus", "2")
    assert (first[0], second[0], len(first[1]), second[1]) == (1, 1, 1, []), first
    assert "--num-gpus 2, but torchrun or srun has started 2 processes" in first[1][0]


def test_machines_must_share_the_folder(cluster: Cluster) -> None:
    """As on two machines, each with a disk of its own where the config's relative path leads."""

    def arm() -> None:
        local = cluster.root / f"machine{os.environ['RANK']}"
        local.mkdir()
        os.chdir(local)

    words = [*STAGES, "OUTPUT_DIR", "output"]
    first, second = cluster.tasks("torchrun", "", *words, arm=arm)
    assert (first[0], second[0], len(first[1]), second[1]) == (1, 1, 1, []), first
    assert "OUTPUT_DIR output on" in first[1][0] and "all machines share" in first[1][0]
    left = sorted(path.name for n in "01" for path in cluster.root.glob(f"machine{n}/**/*"))
    assert left == ["output"]


def test_torchrun(cluster: Cluster, whole: str) -> None:
    words = cluster.words("torchrun", "MODEL.DEVICE", "cuda")[1:]
    script = [str(ROOT / "tools/train_net.py"), *words]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *script],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert cluster.weights("torchrun") == whole
    assert (done.stdout + done.stderr).count("there is no CUDA") == 1  # not once per process
