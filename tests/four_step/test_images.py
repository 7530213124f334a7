"""Which images the four stages see: without mirror images, with empty ones, without bad ones."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.four_step.four_step_runs import make_trainer

OPTS = [
    *("DATALOADER.MIRRORED_COPIES", "False", "INPUT.RANDOM_FLIP", "horizontal"),
    *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "DATALOADER.ON_BAD_IMAGE", "skip"),
    *("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[115.0]", "MODEL.PIXEL_STD", "[1.0]"),
    *("FOUR_STEP.IMS_PER_BATCH", "[1,1,1,1]", "FOUR_STEP.ITERS", "[6,6,6,6]"),
    *("FOUR_STEP.RPN_TARGET_STATISTICS", "True", "FOUR_STEP.MIRRORED_PROPOSALS", "recompute"),
]


@pytest.fixture
def data(four_step_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Six images; the first has no objects left."""
    folder = tmp_path / "data" / "tiny"
    shutil.copytree(four_step_root / "data" / "tiny", folder)
    xml = folder / "Annotations" / "000001.xml"
    xml.write_text(re.sub(r"<object>.*</object>", "", xml.read_text(), flags=re.DOTALL))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    yield folder


def test_four_stages(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", OPTS)
    # After the checks, which would stop on it.
    bad = data / "JPEGImages" / "000003.jpg"
    bad.write_bytes(bad.read_bytes()[:-300])  # the header is whole
    seen: dict[int, list[str]] = defaultdict(list)

    def watch(_: Any, args: tuple[list[dict[str, Any]]]) -> None:
        if trainer.model.training:
            [entry] = args[0]
            assert len(entry["image"]) == 1 and "mirrored" not in entry
            seen[1 + trainer.iter // 6].append(entry["image_id"])

    trainer.model.register_forward_pre_hook(watch)
    trainer.train()
    # One pass per stage: each once, the empty one too, and 4 in the place of 3.
    for stage in (1, 2, 3, 4):
        assert sorted(seen[stage]) == [f"00000{n}" for n in (1, 2, 4, 4, 5, 6)]
    proposals = sorted(p.name for p in (tmp_path / "run" / "proposals" / "stage1").glob("*.pkl"))
    assert proposals == ["tiny_trainval.pkl"]  # none of mirror images
    assert (tmp_path / "run" / "model_final.pth").is_file()
