"""A finished four-step run that several files look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer
from tests.engine.four_step_recorder import Recorder
from tests.engine.four_step_runs import make_trainer, tiny_cfg


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

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Weights in one of its files."""
        return torch.load(self.folder / name, weights_only=True)["model"]


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def finished(four_step_root: Path) -> Run:
    """All four steps as in the paper's code: from given weights, conv1 and conv2 frozen."""
    root = four_step_root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root / "data"))
        torch.manual_seed(0)
        model = PaperTrainer.build_model(tiny_cfg(root / "none"))
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
