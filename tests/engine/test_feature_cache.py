"""Features in files: what is kept, found again, counted, and what happens to damaged files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.data.voc import load_voc_instances
from frcnn_plugin.engine.feature_cache import FeatureCache
from frcnn_plugin.engine.feature_files import DamagedFile, is_dense, read_features, write_features
from frcnn_plugin.engine.stage_features import StageFeatures, features_digest
from frcnn_plugin.engine.train_loader import MirroringMapper
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRCNN
from tests.conftest import make_input
from tests.engine.four_step_runs import CLASSES

FEATURES = {"conv5": torch.rand(1, 8, 3, 5)}
BYTES = 8 * 3 * 5 * 4


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


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[1:],  # a part of something larger
        lambda x: x.contiguous(memory_format=torch.channels_last)[..., :1, :1].contiguous(),
        lambda x: x[:0],
    ],
    ids=["plain", "channels_last", "transposed", "part", "one_cell", "empty"],
)
def test_files_keep_bits_and_layout(
    tmp_path: Path, dtype: torch.dtype, make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    features = {"a": make(torch.randn(2, 8, 3, 5).to(dtype)), "b": torch.tensor([float("nan"), -0])}
    assert all(map(is_dense, features.values()))
    size = write_features(tmp_path / "x", features)
    assert size == (tmp_path / "x").stat().st_size
    found = read_features(tmp_path / "x")
    assert list(found) == ["a", "b"]
    for name, tensor in found.items():
        before = features[name]
        assert (tensor.dtype, tensor.shape) == (before.dtype, before.shape)
        assert tensor.stride() == before.stride()
        for layout in (torch.contiguous_format, torch.channels_last):
            if tensor.dim() == 4:
                agree = [t.is_contiguous(memory_format=layout) for t in (tensor, before)]
                assert agree[0] == agree[1]
        bits = [t.contiguous().view(torch.uint8) for t in (tensor, before)]
        assert torch.equal(*bits)
        assert tensor.data_ptr() % 64 == 0  # as PyTorch's own; products may depend on it


def test_gaps_are_noticed() -> None:
    x = torch.zeros(2, 8, 3, 5)
    assert not is_dense(x[:, ::2])
    assert not is_dense(x[:, :1].expand(2, 8, 3, 5))


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        found = bytearray(data)
        found[position] ^= 1
        return bytes(found)

    return change


DAMAGES = [cut, lambda data: b"", lambda data: b"\n" * 9, flip(-1), flip(-BYTES), flip(3), flip(20)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x"
    write_features(path, FEATURES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match="x is damaged"):
        read_features(path)


# ---- the cache ------------------------------------------------------------------------------


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


# ---- which passes of the model use it -------------------------------------------------------


@pytest.fixture
def model(tiny_cfg: Any) -> PaperRCNN:
    torch.manual_seed(0)
    cfg = tiny_cfg("MODEL.WEIGHTS", "", "MODEL.PAPER_RCNN.ONE_BY_ONE", True)
    built = PaperRCNN(**PaperRCNN.from_config(cfg))
    return built.train()


def asked(model: PaperRCNN, batch: list[dict[str, Any]]) -> int:
    """How many images go through the store."""
    calls = []

    def store(image: torch.Tensor, compute: Any) -> Any:
        calls.append(image)
        return compute()

    model.feature_store = store
    for x in batch:
        x["proposals"] = Instances(x["image"].shape[-2:])
        x["proposals"].proposal_boxes = x["instances"].gt_boxes
        x["proposals"].objectness_logits = torch.zeros(len(x["instances"]))
    with EventStorage():
        model(batch)
    return len(calls)


@pytest.mark.parametrize(
    ("phase", "frozen", "one_by_one", "images", "expected"),
    [
        ("rpn", True, False, 1, 1),
        ("fast_rcnn", True, False, 1, 1),
        ("rpn", True, True, 2, 2),
        ("fast_rcnn", True, False, 2, 0),  # padded together
        ("rpn", False, False, 1, 0),
        ("joint", True, False, 1, 0),
    ],
)
def test_when_the_store_is_asked(
    model: PaperRCNN, phase: str, frozen: bool, one_by_one: bool, images: int, expected: int
) -> None:
    model.set_phase(phase)
    model.one_by_one = one_by_one
    model.backbone.requires_grad_(not frozen)
    batch = [make_input(96, 128 - 16 * i, [[10, 10, 60, 60]], seed=i) for i in range(images)]
    assert asked(model, batch) == expected


def test_running_the_model_asks_no_store(model: PaperRCNN) -> None:
    model.set_phase("rpn")
    model.backbone.requires_grad_(False)
    assert asked(model.eval(), [make_input(96, 128, [[10, 10, 60, 60]])]) == 0


# ---- folders --------------------------------------------------------------------------------


@pytest.fixture
def cfg(tiny_cfg: Any, tmp_path: Path) -> CfgNode:
    opts = [
        *("FOUR_STEP.ENABLED", True, "FOUR_STEP.FEATURE_CACHE_GB", 1e-5),
        *("MODEL.PAPER_RCNN.ONE_BY_ONE", True),
    ]
    return tiny_cfg(*opts, "OUTPUT_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize(("step", "uses"), [(1, False), (2, False), (3, True), (4, True)])
def test_steps(cfg: CfgNode, model: PaperRCNN, step: int, uses: bool) -> None:
    StageFeatures(cfg).start(step, model)
    assert (model.feature_store is not None) is uses


def test_off(cfg: CfgNode, model: PaperRCNN, tmp_path: Path) -> None:
    cfg.FOUR_STEP.FEATURE_CACHE_GB = 0.0
    features = StageFeatures(cfg)
    features.start(3, model)
    features.stop(model)
    features.forget()
    assert model.feature_store is None and not (tmp_path / "run").exists()


def test_files_from_before(
    cfg: CfgNode, model: PaperRCNN, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They count, and step 4 reads those of step 3; a killed process's remains are removed."""
    root = tmp_path / "run" / "features"
    folder = root / features_digest(cfg, model)
    for other in (root / ("0" * 64), root / "mine", folder):
        other.mkdir(parents=True)
        (other / "x.features").write_bytes(b"1" * 5000)
    (folder / ".y.features.1a.partial").write_bytes(b"1" * 9000)
    compute = Compute()
    for step, expected in ((3, [1, 2, 3, 4, 5, 6, 7, 8]), (4, [1, 2, 3, 4, 5, 6, 7, 9])):
        features = StageFeatures(cfg)
        features.start(step, model)
        assert isinstance(model.feature_store, FeatureCache)
        assert ask(model.feature_store, compute, *map(image, range(8))) == expected
        with caplog.at_level(logging.INFO):
            features.stop(model)
        assert model.feature_store is None
    assert "features of 7 images were read, of 1 computed and of 0 of these kept" in caplog.text
    assert {p.name for p in root.iterdir()} == {folder.name, "mine"}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 10_000
    features.forget()
    assert [p.name for p in root.iterdir()] == ["mine"]


def test_what_the_folder_depends_on(tiny_cfg: Any, model: PaperRCNN) -> None:
    digest = features_digest(tiny_cfg(), model)
    assert features_digest(tiny_cfg("MODEL.WEIGHTS", "other.pth", "SEED", 9), model) == digest
    found = {digest}
    for key, value in (
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("MODEL.PAPER_RCNN.WINOGRAD", False),
        ("MODEL.PAPER_RCNN.CHANNELS_LAST", False),
        ("MODEL.DEVICE", "cuda"),
        ("SOLVER.AMP.ENABLED", True),
    ):
        found.add(features_digest(tiny_cfg(key, value), model))
    torch.set_float32_matmul_precision("medium")
    found.add(features_digest(tiny_cfg(), model))
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        next(model.backbone.parameters()).view(-1)[0] += 1e-3
    found.add(features_digest(tiny_cfg(), model))
    assert len(found) == 8


def test_a_backbone_that_is_no_function_of_the_image(
    cfg: CfgNode, model: PaperRCNN, caplog: pytest.LogCaptureFixture
) -> None:
    model.backbone.norm = nn.BatchNorm2d(8)
    StageFeatures(cfg).start(3, model)
    assert model.feature_store is None
    assert "features are not kept: backbone.norm gives others" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["FOUR_STEP.FEATURE_CACHE_GB", -1.0], "FEATURE_CACHE_GB is -1: it must be 0.0 .off. or m"),
        (["FOUR_STEP.FEATURE_CACHE_GB", float("nan")], "is nan: it must be"),
        (["FOUR_STEP.ENABLED", False], "ENABLED is False: .*Add FOUR_STEP.FEATURE_CACHE_GB 0.0"),
        (["INPUT.CROP.ENABLED", True], "at random .*Add INPUT.CROP.ENABLED False, or FOUR_STEP.F"),
        (
            ["INPUT.MIN_SIZE_TRAIN", (90, 99), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
            'at random .*Add INPUT.MIN_SIZE_TRAIN_SAMPLING "choice", or FOUR_STEP',
        ),
    ],
)
def test_refused(cfg: CfgNode, opts: list[Any], message: str) -> None:
    StageFeatures(cfg)
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match=message):
        StageFeatures(cfg)
