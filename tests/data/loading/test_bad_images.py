"""Images that cannot be used: a run stops with the file's name, or goes on without them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from frcnn_plugin.data import register_coco
from frcnn_plugin.data.loading.bad_images import build_test_loader
from frcnn_plugin.data.loading.train_loader import build_train_loader
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.engine.guards import memory_errors_explained
from frcnn_plugin.engine.same_run import data_digest
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRCNN

SIZE = {"height": 40, "width": 51}
BOX = {"bbox": [2, 3, 30, 32], "bbox_mode": 0, "category_id": 0}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def remove(file: Path) -> None:
    file.unlink()


def turn(file: Path) -> None:
    """The annotation was made for the image as it lies in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(file).save(file, exif=exif)


def make_tiny(file: Path) -> None:
    Image.new("RGB", (2, 5000)).save(file)


def break_all(file: Path) -> None:
    for other in file.parent.iterdir():
        truncate(other)


@pytest.fixture
def cfg(tmp_path: Path, tiny_cfg: Callable[..., CfgNode]) -> CfgNode:
    """Six images, 0.png to 5.png."""
    records = []
    for n in range(6):
        file = tmp_path / f"{n}.png"
        Image.new("RGB", (SIZE["width"], SIZE["height"]), (n, n, n)).save(file)
        records.append({"file_name": str(file), "image_id": n, **SIZE, "annotations": [BOX]})
    DatasetCatalog.register("six", lambda: records)
    return tiny_cfg(
        *("DATASETS.TRAIN", ("six",), "DATASETS.TEST", ("six",), "INPUT.MIN_SIZE_TRAIN", (64,)),
        *("INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
    )


def set_options(cfg: CfgNode, *opts: Any) -> CfgNode:
    cfg.merge_from_list(list(opts))
    return cfg


def train_batches(cfg: CfgNode, number: int, start: int = 0) -> list[list[dict[str, Any]]]:
    loader = build_train_loader(cfg, images_per_process=2, seed=1, start_iter=start)
    return list(itertools.islice(loader, number))


def entries(batches: list[list[dict[str, Any]]]) -> list[tuple[int, bool]]:
    return [(x["image_id"], x["mirrored"]) for batch in batches for x in batch]


@pytest.mark.parametrize(
    ("harm", "loader", "workers", "reason"),
    [
        (truncate, "copies", 2, r"cannot be read as an image \(.*trunc"),
        (truncate, "detectron2", 0, r"cannot be read as an image \(.*trunc"),
        (truncate, "test", 0, r"cannot be read as an image \(.*trunc"),
        (remove, "copies", 0, r"^there is no file"),
        (turn, "copies", 0, r"image has 40 x 51 .*says 51 x 40: the file's EXIF or.* 6, turns"),
        (turn, "test", 0, r"image has 40 x 51 .*says 51 x 40: the file's EXIF or.* 6, turns"),
        (make_tiny, "copies", 0, r"2 x 5000 pixels cannot be resized as INPUT.MIN_SIZE_"),
        (make_tiny, "detectron2", 0, r"2 x 5000 pixels cannot be resized as INPUT.MIN_SIZE_"),
    ],
)
def test_a_run_stops_with_one_line(
    cfg: CfgNode, tmp_path: Path, harm: Callable, loader: str, workers: int, reason: str
) -> None:
    harm(tmp_path / "3.png")
    if harm is make_tiny:
        for record in DatasetCatalog.get("six"):
            record.pop("height"), record.pop("width")
    set_options(
        cfg, "DATALOADER.NUM_WORKERS", workers, "DATALOADER.MIRRORED_COPIES", loader == "copies"
    )
    build: Any = PaperTrainer.build_train_loader
    batches = iter(build_test_loader(cfg, "six") if loader == "test" else build(cfg))
    with pytest.raises(UserError, match=reason) as caught:
        list(itertools.islice(batches, 40))
    message = str(caught.value)
    assert str(tmp_path / "3.png") in message and "\n" not in message
    assert "`frcnn doctor --all`" in message and "DATALOADER.ON_BAD_IMAGE skip" in message


def test_another_image_takes_the_place(
    cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others come where they came, and a later start is the rest of the same stream."""
    caplog.set_level("WARNING", "frcnn_plugin")
    set_options(cfg, "DATALOADER.MIRRORED_COPIES", True)
    whole = entries(train_batches(cfg, 12))
    truncate(tmp_path / "3.png")
    remove(tmp_path / "4.png")
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "skip")
    skipping = entries(train_batches(cfg, 12))
    # After 3 and 4 comes 5, of the same half.
    assert skipping == [(5 if n in (3, 4) else n, mirrored) for n, mirrored in whole]
    assert entries(train_batches(cfg, 7, start=5)) == skipping[10:]
    set_options(cfg, "DATALOADER.NUM_WORKERS", 2)
    caplog.clear()
    assert entries(train_batches(cfg, 12)) == skipping
    messages = sorted(record.getMessage() for record in caplog.records)
    assert [m[16:24] for m in messages] == ["1 so far", "2 so far"]
    assert sum("3.png" in m for m in messages) == sum("4.png" in m for m in messages) == 1


@pytest.mark.parametrize("harm", [remove, lambda file: file.write_bytes(b"")])
def test_a_file_without_header(cfg: CfgNode, tmp_path: Path, harm: Callable) -> None:
    """The set is loaded with it, so the order of the others and the digest stay as they are."""
    images = [{"id": n, "file_name": f"{n}.png", **SIZE} for n in range(6)]
    objects = [{"id": n, "image_id": n, "bbox": [2, 3, 28, 29], "category_id": 1} for n in range(6)]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "six.json").write_text(json.dumps(content))
    register_coco("mine", str(tmp_path / "six.json"), str(tmp_path))
    set_options(cfg, "DATASETS.TRAIN", ("mine",), "DATALOADER.MIRRORED_COPIES", True)
    whole, digest = entries(train_batches(cfg, 12)), data_digest(cfg)
    harm(tmp_path / "3.png")
    with pytest.raises(UserError, match=r"mine: 1 of 6 images cannot be used: .*3\.png.* skip$"):
        train_batches(cfg, 1)
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "skip")
    skipping = [(4 if n == 3 else n, mirrored) for n, mirrored in whole]
    assert entries(train_batches(cfg, 12)) == skipping
    assert entries(train_batches(cfg, 7, start=5)) == skipping[10:]
    assert data_digest(cfg) == digest
    assert [x["image_id"] for batch in build_test_loader(cfg, "mine") for x in batch] == [*range(6)]


def test_the_loader_of_detectron2_goes_on(cfg: CfgNode, tmp_path: Path) -> None:
    truncate(tmp_path / "3.png")
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "skip", "DATALOADER.MIRRORED_COPIES", False)
    batches = list(itertools.islice(iter(PaperTrainer.build_train_loader(cfg)), 30))
    assert {x["image_id"] for batch in batches for x in batch} == {0, 1, 2, 4, 5}
    assert all(batches)


@pytest.mark.parametrize("phase", ["joint", "rpn", "fast_rcnn"])
def test_a_test_image_is_blank(cfg: CfgNode, tmp_path: Path, phase: str) -> None:
    """It appears, as evaluators ask for every image; the model can do with it what it does."""
    truncate(tmp_path / "3.png")
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "skip")
    loader = build_test_loader(cfg, "six")
    batches = list(loader)
    assert len(loader) == 6 and [x["image_id"] for batch in batches for x in batch] == [*range(6)]
    [blank] = batches[3]
    assert (blank["height"], blank["width"]) == (40, 51) and blank["image"].max() == 0
    assert next(iter(loader.reasons)).startswith(f"{tmp_path / '3.png'} cannot be read")
    model = PaperRCNN(**PaperRCNN.from_config(cfg)).eval()
    model.set_phase(phase)
    [output] = model([blank])
    assert next(iter(output.values())).image_size == (40, 51)


@pytest.mark.parametrize("copies", [True, False])
def test_nothing_but_bad_images(cfg: CfgNode, tmp_path: Path, copies: bool) -> None:
    break_all(tmp_path / "0.png")
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "skip", "DATALOADER.MIRRORED_COPIES", copies)
    with pytest.raises(UserError, match=r"images in a row cannot be used; the last: .*png"):
        next(iter(PaperTrainer.build_train_loader(cfg)))


def to_something_that_cannot_be_sent(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "image": lambda: None}  # cannot be pickled


@pytest.fixture
def hang_is_an_error() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("the main process waits for a batch that never comes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("hang_is_an_error")
def test_a_batch_that_cannot_be_sent_ends_the_run(cfg: CfgNode) -> None:
    """As when /dev/shm is full: Python's queue drops what it cannot send."""
    set_options(cfg, "DATALOADER.NUM_WORKERS", 1)
    loader = build_test_loader(cfg, "six", to_something_that_cannot_be_sent)
    with pytest.raises(UserError, match=r"process that loads images has ended .*NUM_WORKERS; 0"):
        next(iter(loader))


@pytest.mark.usefixtures("hang_is_an_error")
def test_a_killed_worker_ends_the_run(cfg: CfgNode) -> None:
    set_options(cfg, "DATALOADER.NUM_WORKERS", 1, "DATALOADER.MIRRORED_COPIES", True)
    others = set(multiprocessing.active_children())
    batches = iter(build_train_loader(cfg, images_per_process=1, seed=0))
    next(batches)
    [worker] = set(multiprocessing.active_children()) - others
    os.kill(worker.pid or 0, signal.SIGKILL)
    # torch notices wherever the main process is, which may be outside the loader.
    with pytest.raises(UserError, match=r"process that loads images has ended"):
        with memory_errors_explained(cfg):
            for _ in range(10000):
                next(batches)


def test_unknown_choice(cfg: CfgNode) -> None:
    set_options(cfg, "DATALOADER.ON_BAD_IMAGE", "ignore")
    with pytest.raises(UserError, match=r"ON_BAD_IMAGE is 'ignore': use one of stop, skip"):
        build_test_loader(cfg, "six")
