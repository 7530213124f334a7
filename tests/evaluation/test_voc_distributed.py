import json

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from frcnn_plugin.evaluation import VOCEvaluator
from frcnn_plugin.process import launch

NUM_IMAGES = 7


def box(index):
    return [float(index), 0.0, float(index + 10), 10.0]


def load():
    annotation = {"category_id": 0, "bbox_mode": BoxMode.XYXY_ABS}
    return [
        {"image_id": str(index), "annotations": [{**annotation, "bbox": box(index)}]}
        for index in range(NUM_IMAGES)
    ]


def evaluate(output_file):
    """Every process takes every second image; the last comes twice, as a padding sampler does."""
    if "two_processes" not in DatasetCatalog:
        DatasetCatalog.register("two_processes", load)
    MetadataCatalog.get("two_processes").thing_classes = ["cat"]
    evaluator = VOCEvaluator("two_processes")
    mine = [*range(comm.get_rank(), NUM_IMAGES, comm.get_world_size()), NUM_IMAGES - 1]
    for index in mine:
        instances = Instances((80, 100))
        # Image 0 is missed, and the best score of all is a false one.
        instances.pred_boxes = Boxes(torch.tensor([box(index + 50 * (index == 0))]))
        instances.scores = torch.tensor([0.9 - 0.1 * index])
        instances.pred_classes = torch.tensor([0])
        evaluator.process([{"image_id": str(index)}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert bool(results) == comm.is_main_process()
    if comm.is_main_process():
        output_file.write_text(json.dumps([comm.get_world_size(), results["bbox"]]))


def test_two_processes_give_what_one_gives(tmp_path):
    launch(evaluate, 2, args=(tmp_path / "two.json",))
    evaluate(tmp_path / "one.json")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert (two[0], one[0]) == (2, 1)
    assert two[1] == one[1]
    # By hand: FP, then 6 TP of 7 gt; precision 6/7 up to recall 6/7 = .857.
    assert abs(two[1]["AP50-11point"] - 100 * 9 / 11 * 6 / 7) < 1e-6
    assert abs(two[1]["AP50-area"] - 100 * 6 / 7 * 6 / 7) < 1e-6
