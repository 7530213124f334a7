"""Which images come, and in which order. Expected values by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.data.loading.train_loader import (
    MirroredDataset,
    OrientationBatchSampler,
    build_train_loader,
    ignored_keys,
    training_dicts,
)
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError

LANDSCAPE = [True, True, True, False, False, True, False]  # 4 and 3


def take(number: int, images: int = 2, **kwargs: int) -> list[int]:
    sampler = OrientationBatchSampler(LANDSCAPE, images, **{"seed": 0, **kwargs})
    return list(itertools.islice(sampler, number))


def test_batches_have_one_orientation() -> None:
    stream = take(400)
    for first, second in zip(stream[::2], stream[1::2], strict=True):
        assert LANDSCAPE[first] == LANDSCAPE[second]


def test_every_entry_is_used_equally_often() -> None:
    """An entry without a partner waits; it is not lost."""
    counts = Counter(take(7 * 20))
    assert set(counts) == set(range(7))
    assert max(counts.values()) - min(counts.values()) <= 2


def test_single_images_come_once_per_epoch() -> None:
    stream = take(21, images=1)
    for epoch in (stream[:7], stream[7:14], stream[14:]):
        assert sorted(epoch) == list(range(7))
    assert stream[:7] != stream[7:14]


def test_a_later_start_is_the_rest_of_the_same_stream() -> None:
    assert take(20, start_iter=13) == take(20 + 26)[26:]


def test_seed_changes_the_order() -> None:
    assert take(20) != take(20, seed=1)


def test_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = take(40)
    monkeypatch.setattr("frcnn_plugin.data.loading.train_loader.comm.get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(
            "frcnn_plugin.data.loading.train_loader.comm.get_rank", lambda rank=rank: rank
        )
        parts.append(take(20))
    batches = [whole[i : i + 2] for i in range(0, 40, 2)]
    assert [parts[0][i : i + 2] for i in range(0, 20, 2)] == batches[::2]
    assert [parts[1][i : i + 2] for i in range(0, 20, 2)] == batches[1::2]


def test_empty_data_set() -> None:
    with pytest.raises(ValueError, match="0 entries"):
        OrientationBatchSampler([], 1, seed=0)


def test_mirrored_half() -> None:
    dicts = [{"x": 1}, {"x": 2}]
    for mirrored, expected in ((None, [1, 2, 1, 2]), ([{"x": 3}, {"x": 4}], [1, 2, 3, 4])):
        data = MirroredDataset(dicts, mirrored)
        assert len(data) == 4 and [d["x"] for d in data] == expected
        assert [d["mirrored"] for d in data] == [False, False, True, True]
    assert dicts == [{"x": 1}, {"x": 2}]


@pytest.fixture
def shapes_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=12, num_test=2)
    config = get_config_file("demo/vgg16_shapes_joint.yaml")
    cfg = setup_cfg(config, ["DATALOADER.NUM_WORKERS", "0"])
    cfg.defrost()
    return cfg


def batches(cfg: CfgNode, number: int, **kwargs: int) -> list[list[tuple[str, bool]]]:
    loader = build_train_loader(cfg, images_per_process=2, **{"seed": 1, **kwargs})
    return [[(x["image_id"], x["mirrored"]) for x in b] for b in itertools.islice(loader, number)]


def test_loader_goes_on_where_it_was_told(shapes_cfg: CfgNode) -> None:
    assert batches(shapes_cfg, 6, start_iter=4) == batches(shapes_cfg, 10)[4:]


def test_worker_processes_change_nothing(shapes_cfg: CfgNode) -> None:
    workers = shapes_cfg.clone()
    workers.defrost()
    workers.DATALOADER.NUM_WORKERS = 2
    assert batches(workers, 8) == batches(shapes_cfg, 8)


def test_every_image_and_its_mirror_image_come(shapes_cfg: CfgNode) -> None:
    seen = {entry for batch in batches(shapes_cfg, 30) for entry in batch}
    images = {image_id for image_id, _ in seen}
    assert seen == {(i, m) for i in images for m in (False, True)}


def test_a_missing_size_is_read_from_the_file(
    shapes_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(
        "frcnn_plugin.data.loading.train_loader.get_detection_dataset_dicts",
        lambda *args, **kwargs: [{"file_name": str(tmp_path / "a.png"), "annotations": []}],
    )
    assert [(d["width"], d["height"]) for d in training_dicts(shapes_cfg)] == [(50, 40)]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"there is no file .*a.png"):
        training_dicts(shapes_cfg)


def test_repeated_entries() -> None:
    """Entry 0 never comes, 1 once, 2 twice; 3 once or twice, half the time each."""
    repeats = torch.tensor([0.0, 1.0, 2.0, 1.5])

    def stream(number: int, start: int = 0) -> list[int]:
        sampler = OrientationBatchSampler([True] * 4, 1, 3, start, repeats)
        return list(itertools.islice(sampler, number))

    counts = Counter(stream(4500))  # a thousand epochs
    assert counts[0] == 0 and counts[2] == pytest.approx(2000, abs=20)
    assert counts[1] == pytest.approx(1000, abs=10) and counts[3] == pytest.approx(1500, abs=60)
    assert stream(30, start=70) == stream(100)[70:]


def test_rare_classes_are_repeated(shapes_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 1 is in a quarter of the images: the root of the threshold by 1/4 (LVIS)."""
    classes = {"a": 0, "b": 0, "c": 0, "d": 1}
    records = [
        {"file_name": n, "width": 5, "height": 4, "annotations": [{"category_id": c}]}
        for n, c in classes.items()
    ]
    monkeypatch.setattr(
        "frcnn_plugin.data.loading.train_loader.get_detection_dataset_dicts",
        lambda *args, **kwargs: records,
    )
    shapes_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    shapes_cfg.DATALOADER.REPEAT_THRESHOLD = 0.75  # class 0: 1, class 1: root of 3
    sampler = {}
    monkeypatch.setattr(
        "frcnn_plugin.data.loading.train_loader.build_detection_train_loader",
        lambda entries, **kwargs: sampler.update(kwargs) or [],
    )
    build_train_loader(shapes_cfg, images_per_process=1, seed=0)
    counts = Counter(itertools.islice(sampler["sampler"], 20000))
    for half in (0, 4):
        times = [counts[half + n] / counts[half] for n in range(4)]
        assert times == pytest.approx([1, 1, 1, 3**0.5], abs=0.05)


def test_a_sampler_that_does_not_fit(shapes_cfg: CfgNode) -> None:
    shapes_cfg.merge_from_list(["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"])
    with pytest.raises(
        UserError, match=r"SAMPLER_TRAIN RandomSubset.*: use TrainingSampler or Rep"
    ):
        build_train_loader(shapes_cfg, images_per_process=1, seed=0)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ([], []),
        (["INPUT.RANDOM_FLIP", "vertical", "INPUT.CROP.ENABLED", True], []),
        (["INPUT.RANDOM_FLIP", "horizontal"], ["INPUT.RANDOM_FLIP horizontal does nothing"]),
        (["DATALOADER.ASPECT_RATIO_GROUPING", False], ["ASPECT_RATIO_GROUPING False does nothing"]),
        (["FOUR_STEP.ENABLED", True, "INPUT.CROP.ENABLED", True], ["INPUT.CROP does not count"]),
        (["DATALOADER.MIRRORED_COPIES", False, "INPUT.RANDOM_FLIP", "horizontal"], []),
    ],
)
def test_ignored_keys(shapes_cfg: CfgNode, opts: list[Any], words: list[str]) -> None:
    shapes_cfg.merge_from_list(opts)
    found = ignored_keys(shapes_cfg)
    assert len(found) == len(words) and all(w in f for w, f in zip(words, found, strict=True))


def test_without_copies(shapes_cfg: CfgNode) -> None:
    """Four-step training asks for the same loader, in the same kind of order."""
    shapes_cfg.merge_from_list(["DATALOADER.MIRRORED_COPIES", False])

    def names(number: int, start: int = 0) -> list[str]:
        loader = build_train_loader(shapes_cfg, images_per_process=1, seed=1, start_iter=start)
        return [batch[0]["image_id"] for batch in itertools.islice(loader, number)]

    images = {d["image_id"] for d in training_dicts(shapes_cfg)}
    stream = names(2 * len(images))
    assert set(stream[: len(images)]) == images and set(stream[len(images) :]) == images
    assert names(5, start=7) == stream[7:12]
