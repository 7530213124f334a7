"""Four-step runs with FOUR_STEP.FEATURE_CACHE_GB end with the very weights of runs without."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from frcnn_plugin.four_step.feature_cache import FeatureCache
from frcnn_plugin.process import launch, unwrap_model
from tests.four_step.four_step_runs import final_weights, make_trainer
from tests.four_step.test_four_step_errors import Stop
from tests.four_step.test_four_step_resume import run as run_and_kill

pytestmark = pytest.mark.usefixtures("with_data")

# Five images with objects, and their mirror images: two epochs and a bit in steps 3 and 4.
ITERS = [2, 2, 26, 14]
IMAGES = 10
OPTS = [
    *("FOUR_STEP.ITERS", str(ITERS)),
    *("FOUR_STEP.DROPS", "[[1],[1],[20],[7]]"),
    *("MODEL.PAPER_RCNN.ONE_BY_ONE", "True"),
    *("SOLVER.CHECKPOINT_PERIOD", "4"),
]
CACHE = ["FOUR_STEP.FEATURE_CACHE_GB", "0.1"]


class Watch(HookBase):
    """Counts what the backbone computes in training, by step, and looks at the cache's folder."""

    def __init__(self, trainer: Any) -> None:
        self.computed: Counter[int] = Counter()
        self.files: dict[int, int] = {}
        self._root = Path(trainer.cfg.OUTPUT_DIR) / "features"
        unwrap_model(trainer.model).backbone.register_forward_hook(self._see)
        trainer.register_hooks([self])

    def before_step(self) -> None:
        self._step = int(self.trainer.storage.latest()["stage"][0])

    def _see(self, backbone: Any, args: Any, features: dict[str, torch.Tensor]) -> None:
        if backbone.training:
            self.computed[self._step] += len(args[0])

    def after_step(self) -> None:
        self.files[self._step] = len(list(self._root.glob("*/*.features")))


def train(folder: Path, *opts: str, resume: bool = False) -> Watch:
    trainer = make_trainer(folder, [*OPTS, *opts], resume=resume)
    watch = Watch(trainer)
    trainer.train()
    return watch


@pytest.fixture(scope="module")
def plain(with_data: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Counter[int]]:
    """Weights at the end of a run without the cache, and what it computed."""
    folder = tmp_path_factory.mktemp("plain")
    watch = train(folder)
    assert not (folder / "features").exists()
    return final_weights(folder), watch.computed


def test_same_weights(
    plain: tuple[str, Counter[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        watch = train(tmp_path, *CACHE)
    weights, computed = plain
    assert computed == {1: 2, 2: 4, 3: 26, 4: 28}
    assert watch.computed == {1: 2, 2: 4, 3: IMAGES}  # each image once, and in step 4 none
    assert watch.files == {1: 0, 2: 0, 3: IMAGES, 4: IMAGES}
    assert final_weights(tmp_path) == weights
    assert not (tmp_path / "features").exists()
    for line in (
        "0.0 of 0.1 GB, those of 0 images are there from before",
        "features of 16 images were read, of 10 computed and of 10 of these kept",
        "0.0 of 0.1 GB, those of 10 images are there from before",
        "features of 28 images were read, of 0 computed and of 0 of these kept",
    ):
        assert line in caplog.text, line


def test_the_comparison_can_fail(
    plain: tuple[str, Counter[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the features of the image, but not of the mirrored one."""
    monkeypatch.setattr(
        FeatureCache, "_path", lambda cache, x: cache._folder / f"{int(x.long().sum())}.features"
    )
    watch = train(tmp_path, *CACHE)
    assert watch.files[3] == IMAGES // 2
    assert final_weights(tmp_path) != plain[0]


def test_two_sizes_and_a_limit(tmp_path: Path) -> None:
    """A few files fit; images come in two sizes, each computed or read."""
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(80,96)"]
    without = train(tmp_path / "without", *sizes)
    limited = train(tmp_path / "limited", *sizes, "FOUR_STEP.FEATURE_CACHE_GB", "1.0e-5")
    cached = train(tmp_path / "cached", *sizes, *CACHE)
    assert IMAGES < cached.files[4] <= 2 * IMAGES
    assert 2 < limited.files[4] < IMAGES
    runs = [without, limited, cached]
    assert runs == sorted(runs, key=lambda w: -w.computed[4])
    assert len({w.computed[4] for w in runs}) == 3
    assert len({final_weights(tmp_path / n) for n in ("without", "limited", "cached")}) == 1


def test_bfloat16(tmp_path: Path) -> None:
    half = ["SOLVER.AMP.ENABLED", "True"]
    train(tmp_path / "plain", *half)
    assert train(tmp_path / "cached", *half, *CACHE).computed[4] == 0
    assert final_weights(tmp_path / "cached") == final_weights(tmp_path / "plain")


def test_padded_pairs_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = ["MODEL.PAPER_RCNN.ONE_BY_ONE", "False"]
    with caplog.at_level(logging.INFO):
        watch = train(tmp_path / "cached", *pairs, *CACHE)
    assert "features are not kept: 2 images per batch are padded to one size" in caplog.text
    assert watch.computed[3] == IMAGES and watch.computed[4] == 2 * ITERS[3]
    train(tmp_path / "plain", *pairs)
    assert final_weights(tmp_path / "cached") == final_weights(tmp_path / "plain")


def test_other_weights_other_folder(tmp_path: Path) -> None:
    """What an older run left is removed when step 3 begins."""
    stale = tmp_path / "features" / ("a" * 64)
    stale.mkdir(parents=True)
    (stale / f"{'b' * 64}.features").write_bytes(b"1" * 100)
    watch = train(tmp_path, *CACHE, "FOUR_STEP.STOP_AFTER", "3")
    assert watch.files == {1: 1, 2: 1, 3: IMAGES}
    assert len(list((tmp_path / "features").iterdir())) == 1  # for step 4


@pytest.mark.parametrize("iteration", [12, 36])
def test_an_error_leaves_the_files_for_resuming(
    plain: tuple[str, Counter[int]], tmp_path: Path, iteration: int
) -> None:
    """In steps 3 and 4; checkpoints are those of iterations 11 and 35."""
    trainer = make_trainer(tmp_path, [*OPTS, *CACHE])
    trainer.register_hooks([Stop(iteration)])
    with pytest.raises(InterruptedError):
        trainer.train()
    assert trainer.model.feature_store is None
    kept = len(list(tmp_path.glob("features/*/*.features")))
    assert kept == min(iteration - 3, IMAGES)
    watch = train(tmp_path, *CACHE, resume=True)
    assert watch.computed[3] == (IMAGES - kept if iteration < 30 else 0)
    assert final_weights(tmp_path) == plain[0]
    assert not (tmp_path / "features").exists()


def test_killed_runs(tmp_path: Path) -> None:
    kills = [None, "iteration:9", "before_checkpoint:29", "proposals:3", "iteration:40"]
    scenarios: list[dict[str, object]] = [
        {
            "name": str(kill).replace(":", "_"),
            "kill": kill,
            "opts": [*OPTS, *(CACHE if kill else [])],
        }
        for kill in kills
    ]
    results = run_and_kill(tmp_path, scenarios)
    assert [r["killed"] for r in results.values()] == [k is not None for k in kills]
    assert len({r["weights"] for r in results.values()}) == 1, results
    assert not list(tmp_path.glob("*/features"))


def two_runs(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    for name, opts in (("plain", []), ("cached", CACHE), ("limited", [*CACHE[:1], "1.0e-5"])):
        seed_all_rng(3 + comm.get_rank())
        watch = train(folder / name, *opts)
        (folder / f"{name}{comm.get_rank()}").write_text(f"{watch.computed[4]} {watch.files[4]}")


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the files and the limit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(two_runs, 2, args=(tmp_path,))

    def seen(name: str) -> list[list[int]]:
        return [[*map(int, (tmp_path / f"{name}{r}").read_text().split())] for r in range(2)]

    assert seen("plain") == [[2 * ITERS[3], 0]] * 2
    assert seen("cached") == [[0, IMAGES]] * 2
    (computed, files), _ = seen("limited")
    assert computed and 2 < files < IMAGES
    assert len({final_weights(tmp_path / n) for n in ("plain", "cached", "limited")}) == 1
    assert not list(tmp_path.glob("*/features"))
