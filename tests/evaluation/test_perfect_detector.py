"""A detector that finds each object and nothing else scores 100, by both metrics, on any file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances

from frcnn_plugin.data import check_datasets, register_coco, register_voc
from frcnn_plugin.evaluation import RecordingCOCOEvaluator, VOCEvaluator

from ..data.datasets.voc_folder import add_image, obj, write_image

NAMES = ["cat", "dog", "cow"]
WIDTH, HEIGHT = 100, 80
CELLS = [(x, y) for x in range(0, WIDTH, 25) for y in range(0, HEIGHT, 20)]


def boxes_of_an_image(rng: random.Random) -> list[list[float]]:
    """XYWH, one per cell of a grid, so that none is another's twin; some leave the image."""
    boxes = []
    for x, y in rng.sample(CELLS, rng.randrange(8)):
        box = [x + rng.uniform(0, 4), y + rng.uniform(0, 4), rng.uniform(4, 20), rng.uniform(4, 15)]
        if rng.random() < 0.3:
            box = [round(value) for value in box]
        if x == 0 and rng.random() < 0.4:
            box[0] -= 7  # what is clipped
        if y == 60 and rng.random() < 0.4:
            box[3] += 30
        boxes.append(box)
    if boxes and rng.random() < 0.2:
        boxes.append(rng.choice([[5, 5, 0, 7], [300, 5, 7, 7], [-50, -50, 20, 20]]))  # dropped
    return boxes


def optional_fields(rng: random.Random) -> dict[str, Any]:
    """Fields of an annotation as exports have them, or have not."""
    fields = {
        "iscrowd": [0, 0, None, False, 1],
        "ignore": [0, 0, 1],
        "area": [1, 0, None, -3.5, 1e12, 250.25],
        "segmentation": [[], [[]], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], {}, [[1, 1, 9, 1, 9, 9]]],
    }
    return {key: rng.choice(values) for key, values in fields.items() if rng.random() < 0.6}


def write_json(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A file whose ids count from any number, have gaps, and may be texts."""
    kind = rng.choice([int, int, str])
    first = rng.choice([0, 0, 1, 7])
    images, categories = (rng.sample(range(first, first + 9), count) for count in (6, 3))
    annotations = rng.sample(range(first, 100), 90)
    annotations[-1:] = [first] if first not in annotations else []
    content: dict[str, Any] = {
        "images": [
            {"id": kind(i), "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
            for i in images
        ],
        "categories": [{"id": kind(i), "name": n} for i, n in zip(categories, NAMES, strict=True)],
        "annotations": [
            {
                "id": kind(annotations.pop()), "image_id": kind(image), "bbox": box,
                "category_id": kind(rng.choice(categories)), **optional_fields(rng),
            }
            for image in images for box in boxes_of_an_image(rng)
        ],
    }  # fmt: skip
    for i in images:
        write_image(folder / f"{i}.png")
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json"), str(folder)


def write_xml(folder: Path, rng: random.Random) -> None:
    for i in rng.sample(range(1000), 6):
        objects = []
        for x, y, w, h in boxes_of_an_image(rng):
            flag = rng.choice(["", "<difficult>0</difficult>", "<difficult>1</difficult>"])
            objects.append(obj(rng.choice(NAMES), (x + 1, y + 1, x + w, y + h), flag))
        add_image(folder, f"{i:06d}", *objects, split="val")


def detect_all(evaluator: Any, name: str) -> dict[str, float]:
    """Every object, crowds and difficult ones too, in one detection."""
    evaluator.reset()
    for item in DatasetCatalog.get(name):
        objects = item["annotations"]
        boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
        found = Instances((HEIGHT, WIDTH))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.rand(len(objects), generator=torch.Generator().manual_seed(7))
        found.pred_classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
        evaluator.process([{"image_id": item["image_id"]}], [{"instances": found}])
    results: dict[str, float] = evaluator.evaluate().get("bbox", {})
    return results


def counted(name: str) -> int:
    return sum(not o["iscrowd"] for d in DatasetCatalog.get(name) for o in d["annotations"])


def assert_perfect(name: str, folder: Path) -> None:
    check_datasets([name], len(NAMES))
    assert counted(name) > 0
    voc = detect_all(VOCEvaluator(name, str(folder / "out")), name)
    assert [voc[key] for key in ("AP", "AP50-11point", "AP50-area")] == pytest.approx([100] * 3)
    for fast in (False, True):
        evaluator = RecordingCOCOEvaluator(name, str(folder / "out"), use_fast_impl=fast)
        coco = detect_all(evaluator, name)
        assert [coco[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([100] * 3)
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"coco_instances_results.json", "evaluation.json"} < names


@pytest.mark.parametrize("seed", range(12))
def test_json(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    paths = write_json(tmp_path, rng)
    register_coco("perfect", *paths, evaluator=rng.choice(["coco", "voc"]))
    assert_perfect("perfect", tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_xml(tmp_path: Path, seed: int) -> None:
    write_xml(tmp_path, random.Random(seed))
    register_voc("perfect", tmp_path, "val", NAMES, evaluator="coco")
    assert_perfect("perfect", tmp_path)


def test_several_sets(tmp_path: Path) -> None:
    """One after another in a process: none leaves anything for the next."""
    rng = random.Random(99)
    for number in range(3):
        register_coco(f"json{number}", *write_json(tmp_path / str(number), rng))
        write_xml(tmp_path / f"xml{number}", rng)
        register_voc(f"xml{number}", tmp_path / f"xml{number}", "val", NAMES, evaluator="coco")
    for name in [f"{kind}{number}" for number in range(3) for kind in ("json", "xml")]:
        assert_perfect(name, tmp_path / name)


def test_a_set_that_detectron2_registered(tmp_path: Path) -> None:
    """Its loader reads; annotation 0, and what the file lacks, still count."""
    annotations = [
        {"id": i, "image_id": 0, "category_id": 5, "bbox": [20 * i, 0, 15, 15]} for i in range(3)
    ]
    image = {"id": 0, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}
    write_image(tmp_path / "0.png")
    category = {"id": 5, "name": "cat"}
    content = {"images": [image], "annotations": annotations, "categories": [category]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    register_coco_instances("theirs", {}, str(tmp_path / "set.json"), str(tmp_path))
    evaluator = RecordingCOCOEvaluator("theirs", str(tmp_path / "out"))
    assert detect_all(evaluator, "theirs")["AP"] == pytest.approx(100)
