"""What several files look at: a finished four-step run; a detector and its predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.four_step.four_step_recorder import Recorder
from tests.four_step.four_step_runs import make_trainer
from tests.four_step.four_step_runs import tiny_cfg as four_step_cfg
from tests.predict.saved_detectors import CLASSES, SMALL
from tests.random_detector import random_detector


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        root: folder for further runs; the data are below it.
        folder: ``OUTPUT_DIR``.
        opts: its overrides beyond ``TINY``.
        recorder: what was seen of it.
    """

    root: Path
    folder: Path
    opts: list[str]
    recorder: Recorder

    def later(self, stage: int, *opts: str) -> list[str]:
        """Overrides of a run that starts with ``stage`` from the files of this one."""
        result = [
            *self.opts,
            *("FOUR_STEP.START_AT", str(stage)),
            *("MODEL.WEIGHTS", str(self.folder / f"stage{stage - 1}_final.pth")),
        ]
        if stage == 2:
            result += ["FOUR_STEP.INITIAL_WEIGHTS", str(self.folder / "initial_weights.pth")]
        return [*result, *opts]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Weights in one of its files."""
        return torch.load(self.folder / name, weights_only=True)["model"]


@pytest.fixture(scope="session")
def four_step_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in it."""
    root = tmp_path_factory.mktemp("four_step")
    write_synthetic_voc(root / "data" / "tiny", num_trainval=6, num_test=2)
    return root


@pytest.fixture(scope="module")
def with_data(four_step_root: Path) -> Iterator[None]:
    """Configs find that data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(four_step_root / "data"))
        yield


@pytest.fixture(scope="session")
def finished(four_step_root: Path) -> Run:
    """All four stages as in the paper's code: from given weights, conv1 and conv2 frozen."""
    root = four_step_root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root / "data"))
        torch.manual_seed(0)
        model = PaperTrainer.build_model(four_step_cfg(root / "none"))
        kept = ("backbone.", "roi_heads.box_head.")
        weights = {k: v for k, v in model.state_dict().items() if k.startswith(kept)}
        torch.save({"model": weights}, root / "imagenet.pth")
        opts = [
            *("MODEL.WEIGHTS", str(root / "imagenet.pth")),
            *("MODEL.BACKBONE.FREEZE_AT", "2"),
            *("FOUR_STEP.RPN_TARGET_STATISTICS", "True"),
            *("FOUR_STEP.EVALUATE_STEPS", "True"),
        ]
        recorder = Recorder()
        recorder.watch(make_trainer(root / "finished", opts))
        return Run(root, root / "finished", opts, recorder)


@pytest.fixture(scope="module")
def named_set() -> str:
    MetadataCatalog.get("predictor_test").thing_classes = list(CLASSES)
    return "predictor_test"


@pytest.fixture
def save_detector(tiny_cfg: Callable, tmp_path: Path, named_set: str) -> Callable[..., str]:
    """A function that writes a checkpoint of random weights; overrides of its config."""

    def write(*opts: object, name: str = "model_final", **content: object) -> str:
        cfg = tiny_cfg(*SMALL, *opts)
        if "DATASETS.TRAIN" not in opts:
            cfg.DATASETS.TRAIN = (named_set,)
        AtomicCheckpointer(random_detector(cfg), str(tmp_path), cfg=cfg).save(name, **content)
        return str(tmp_path / f"{name}.pth")

    return write


@pytest.fixture
def predictor(save_detector: Callable) -> FasterRCNNPredictor:
    return FasterRCNNPredictor(save_detector(), device="cpu")
