"""Which images come, and in which order. Expected values by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from frcnn_plugin import get_config_file
from frcnn_plugin.data.loading.train_loader import (
    MirroredDataset,
    OrientationBatchSampler,
    build_train_loader,
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
    dicts = [{"image_id": "a"}, {"image_id": "b"}]
    data = MirroredDataset(dicts)
    assert len(data) == 4
    assert [(d["image_id"], d["mirrored"]) for d in data] == [
        ("a", False), ("b", False), ("a", True), ("b", True),
    ]  # fmt: skip
    assert dicts == [{"image_id": "a"}, {"image_id": "b"}]


def test_mirrored_half_with_records_of_its_own() -> None:
    data = MirroredDataset([{"x": 1}], [{"x": 2}])
    assert [(d["x"], d["mirrored"]) for d in data] == [(1, False), (2, True)]


@pytest.fixture
def shapes_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=12, num_test=2)
    config = get_config_file("demo/vgg16_shapes_joint.yaml")
    return setup_cfg(config, ["DATALOADER.NUM_WORKERS", "0"])


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


def test_size_must_be_known(shapes_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "frcnn_plugin.data.loading.train_loader.get_detection_dataset_dicts",
        lambda *args, **kwargs: [{"file_name": "a.jpg", "annotations": []}],
    )
    with pytest.raises(UserError, match=r"a.jpg: .* DATALOADER.MIRRORED_COPIES False"):
        batches(shapes_cfg, 1)
