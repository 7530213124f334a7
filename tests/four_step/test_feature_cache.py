"""Features of images in a folder: what is kept, found again, counted."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.data.datasets.voc import load_voc_instances
from frcnn_plugin.data.loading.train_loader import MirroringMapper
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from frcnn_plugin.four_step.feature_cache import FeatureCache
from tests.four_step.four_step_runs import CLASSES

BYTES = 8 * 3 * 5 * 4  # of the features


def image(seed: int, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, *(size or (6, 10)))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class Compute:
    """Other features at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"conv5": torch.full((1, 8, 3, 5), float(self.calls))}


def ask(cache: FeatureCache, compute: Compute, *images: torch.Tensor) -> list[float]:
    """The numbers of the calls that made the features."""
    return [float(cache(x, compute)["conv5"][0, 0, 0, 0]) for x in images]


def test_computed_once(tmp_path: Path) -> None:
    cache, compute = FeatureCache(tmp_path, 1e6), Compute()
    assert ask(cache, compute, image(0), image(1), image(0), image(1)) == [1, 2, 1, 2]
    assert (cache.read, cache.computed, cache.kept) == (2, 2, 2)
    assert ask(FeatureCache(tmp_path, 0), compute, image(1), image(0)) == [2, 1]


def test_only_equal_pixels_are_equal(tmp_path: Path) -> None:
    """Another value, another shape or type of the same bytes; not another layout."""
    cache, compute = FeatureCache(tmp_path, 1e6), Compute()
    x = image(0)
    other = x.clone()
    other[2, 5, 9] ^= 1
    images = [x, other, x.view(3, 10, 6), x.flip(2), x.float(), x.view(torch.int8)]
    assert ask(cache, compute, *images) == [1, 2, 3, 4, 5, 6]
    assert ask(cache, compute, x.transpose(1, 2).contiguous().transpose(1, 2)) == [1]
    assert ask(cache, compute, *images) == [1, 2, 3, 4, 5, 6]


def test_mirrored_copies_sizes_and_equal_ids(tmp_path: Path, tiny_cfg: Any) -> None:
    """Two sets whose images have the same ids, each mirrored or not, at two sizes."""
    records = []
    for seed in (0, 1):
        root = write_synthetic_voc(tmp_path / str(seed), num_trainval=1, num_test=1, seed=seed)
        records += load_voc_instances(str(root), "trainval", CLASSES)
    assert records[0]["image_id"] == records[1]["image_id"]
    images = []
    for size in (96, 112):
        mapper = MirroringMapper(
            tiny_cfg("INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", 300), is_train=True
        )
        images += [mapper({**r, "mirrored": m})["image"] for r in records for m in (False, True)]
    (tmp_path / "features").mkdir()
    cache, compute = FeatureCache(tmp_path / "features", 1e6), Compute()
    assert ask(cache, compute, *images, *images) == [*range(1, 9)] * 2


def test_limit(tmp_path: Path) -> None:
    """Room for two files, and for their sizes without knowing them to the byte."""
    limit = 2 * BYTES + 1500
    cache, compute = FeatureCache(tmp_path, limit), Compute()
    first = ask(cache, compute, *map(image, range(4)))
    assert first == [1, 2, 3, 4]
    assert ask(cache, compute, *map(image, range(4))) == [1, 2, 5, 6]
    assert (cache.read, cache.computed, cache.kept) == (2, 6, 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= limit


def test_damaged_files_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = 2 * BYTES + 1500
    cache, compute = FeatureCache(tmp_path, limit), Compute()
    ask(cache, compute, image(0), image(1))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert ask(cache, compute, image(0), image(1), image(0), image(1)) == [3, 4, 3, 4]
    assert [r.getMessage().split(":")[0][-11:] for r in caplog.records] == [" is damaged"]


def test_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, compute = FeatureCache(tmp_path, 1e6), Compute()
    ask(cache, compute, image(0))
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert ask(cache, compute, image(1), image(1), image(2), image(0)) == [2, 3, 4, 1]
    assert len(calls) == 1  # it does not try again
    (record,) = caplog.records
    assert "cannot be written to (No space left on device)" in record.getMessage()
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, compute = FeatureCache(tmp_path, 1e6), Compute()
    ask(cache, compute, image(0))
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()  # permissions do not stop root
    assert ask(cache, compute, image(0)) == [2]
    assert "are computed again" in caplog.text


def test_features_with_gaps_are_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1e6)
    wide = torch.zeros(1, 8, 3, 10)
    assert cache(image(0), lambda: {"conv5": wide[..., ::2]})["conv5"].stride()[-1] == 2
    assert cache.kept == 0 and not list(tmp_path.iterdir())
