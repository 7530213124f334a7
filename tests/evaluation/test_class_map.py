"""Detectors of one set of classes tested on another (paper, Table 12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances

from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.config_files import load_config_file
from frcnn_plugin.data.datasets.voc import VOC_CLASSES
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.class_map import ClassMapEvaluator, class_numbers


def test_coco_on_voc(tmp_path: Path) -> None:
    """The map of the config gives each of VOC's 20 classes one of COCO's 80."""
    cfg = plugin_cfg()
    load_config_file(cfg, "frcnn://ablations/coco_on_voc.yaml")
    coco = MetadataCatalog.get("coco_2014_train").thing_classes
    numbers = class_numbers(coco, VOC_CLASSES, cfg.DATASETS.CLASS_MAP)
    assert sorted(n for n in numbers if n >= 0) == list(range(20))
    assert numbers.count(-1) == 60
    assert numbers[coco.index("airplane")] == VOC_CLASSES.index("aeroplane")
    assert numbers[coco.index("person")] == VOC_CLASSES.index("person")
    cfg.OUTPUT_DIR = str(tmp_path)
    assert isinstance(PaperTrainer.build_evaluator(cfg, "voc07_test"), ClassMapEvaluator)
    cfg.DATASETS.CLASS_MAP = []
    assert not isinstance(PaperTrainer.build_evaluator(cfg, "voc07_test"), ClassMapEvaluator)


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([], "no class of DATASETS.TRAIN is called feline"),
        ([["kat", "feline"]], "DATASETS.TRAIN has no class kat"),
        ([["kat", "feline"], ["kat", "dog"], ["kau", "dog"]], "no class kat, kau$"),
        ([["cat", "felin"]], "DATASETS.TEST has no class felin"),
        ([["cat", "feline"], ["cat", "dog"]], "a class of DATASETS.TRAIN twice"),
    ],
)
def test_names_without_counterpart(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_numbers(["cat", "dog", "cow"], ["dog", "feline"], pairs)


@pytest.mark.parametrize(
    "detector, test_set, pairs, fix",
    [
        (["dog", "cat", "cow"], ["dog", "feline", "bovine"], [], "cat, feline"),
        (["dog", "cat", "cow"], ["dog", "feline", "bovine"], [["cat", "feline"]], "cow, bovine"),
        (["dog", "cat"], ["canine", "feline"], [["dog", "canine"]], "cat, feline"),
    ],
)
def test_a_proposed_pair_can_be_added(
    detector: list[str], test_set: list[str], pairs: list[list[str]], fix: str
) -> None:
    """Its class has no counterpart yet, by a pair or by its own name."""
    with pytest.raises(UserError, match=rf"add pairs such as \[{fix}\]"):
        class_numbers(detector, test_set, pairs)


def test_no_class_is_left_for_a_pair() -> None:
    with pytest.raises(UserError, match=r"called feline, as in .* none is left for a pair"):
        class_numbers(["dog"], ["dog", "feline"], [])


class Kept(DatasetEvaluator):
    """Keeps what it is given."""

    def reset(self) -> None:
        self.outputs: list[Any] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.outputs += outputs

    def evaluate(self) -> int:
        return len(self.outputs)


def detections(classes: list[int]) -> Instances:
    found = Instances((10, 10), pred_boxes=Boxes(torch.rand(len(classes), 4)))
    found.scores = torch.rand(len(classes))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return found


def test_detections_get_the_numbers_of_the_test_set() -> None:
    numbers = class_numbers(["cat", "dog", "cow"], ["dog", "feline"], [["cat", "feline"]])
    assert numbers == [1, 0, -1]
    kept = Kept()
    evaluator = ClassMapEvaluator(kept, numbers)
    evaluator.reset()
    outputs = [{"instances": detections([2, 0, 1])}, {"instances": detections([])}]
    evaluator.process([{"image_id": "a"}, {"image_id": "b"}], outputs)
    first, second = (output["instances"] for output in kept.outputs)
    assert first.pred_classes.tolist() == [1, 0]
    assert torch.equal(first.scores, outputs[0]["instances"].scores[1:])
    assert outputs[0]["instances"].pred_classes.tolist() == [2, 0, 1]  # not changed
    assert len(second) == 0
    assert evaluator.evaluate() == 2
