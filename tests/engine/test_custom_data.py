"""From a folder to a detector by config alone: XML files in one folder, and COCO's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog

from frcnn_plugin import get_config_file
from frcnn_plugin.atomic_files import safe_file_name
from frcnn_plugin.data import SHAPE_CLASSES, load_voc_instances
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, evaluate_checkpoint, setup_cfg
from frcnn_plugin.preflight import PlannedRun, stop_on_errors

pytestmark = pytest.mark.usefixtures("restore_catalogs")

# What makes it quick; a user's file has the other half.
SMALL = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "300"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
    *("SOLVER.STEPS", "()", "SOLVER.MAX_ITER", "3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and XML in one folder, and the same as two COCO files."""
    root = tmp_path_factory.mktemp("custom")
    voc = write_synthetic_voc(root / "voc", num_trainval=8, num_test=4)
    (root / "mine").mkdir()
    for file in [*(voc / "JPEGImages").iterdir(), *(voc / "Annotations").iterdir()]:
        shutil.copy(file, root / "mine")
    for split in ("trainval", "test"):
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            # Not contiguous, as in COCO.
            "categories": [{"id": 5 + 2 * i, "name": n} for i, n in enumerate(SHAPE_CLASSES)],
        }
        for item in load_voc_instances(voc, split, SHAPE_CLASSES):
            number = int(item["image_id"])
            content["images"].append(
                {
                    "id": number,
                    "file_name": Path(item["file_name"]).name,
                    "width": item["width"],
                    "height": item["height"],
                }
            )
            for obj in item["annotations"]:
                x1, y1, x2, y2 = obj["bbox"]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]),  # from 0, as some exports count
                        "image_id": number,
                        "category_id": 5 + 2 * obj["category_id"],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "segmentation": [[]],
                    }
                )
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


CONFIG = """
_BASE_: "{base}"
MODEL: {{ROI_HEADS: {{NUM_CLASSES: 3}}}}
DATASETS:
  REGISTER:
    - {{name: my_train, %s{more}}}
    - {{name: my_test, %s{more}}}
  TRAIN: ("my_train",)
  TEST: ("my_test",)
"""
FOLDER = "xml: {root}/mine, classes: auto, train_fraction: 0.75, split: "
XML = CONFIG % (f"{FOLDER}train", f"{FOLDER}test")
COCO = CONFIG % (
    "json: {root}/trainval.json, images: {root}/mine",
    "json: {root}/test.json, images: {root}/mine",
)


def train(path: Path, opts: list[str]) -> Any:
    """Train as the command does; returns the metrics."""
    cfg = setup_cfg(str(path), opts)
    stop_on_errors(PlannedRun(cfg))
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=False)
    # So that something is found: an untrained predictor may call all of it background.
    torch.nn.init.constant_(trainer.model.roi_heads.box_predictor.cls_score.bias[-1:], -9.0)
    return trainer.train()


@pytest.mark.parametrize(
    ("text", "more", "metric"),
    [
        (XML, "", "AP50-11point"),
        (XML, ", evaluator: coco", "APs"),
        (COCO, "", "APs"),
        (COCO, ", evaluator: voc", "AP50-11point"),
    ],
    ids=["xml", "xml-coco", "coco", "coco-voc"],
)
def test_from_a_folder_to_a_detector(
    folder: Path, tmp_path: Path, text: str, more: str, metric: str
) -> None:
    path = tmp_path / "my.yaml"
    base = get_config_file("demo/vgg16_shapes_joint.yaml")
    path.write_text(text.format(base=base, root=folder, more=more))
    opts = [*SMALL, "OUTPUT_DIR", str(tmp_path / "run")]
    results = train(path, opts)
    assert results is not None and metric in results["bbox"]
    assert MetadataCatalog.get("my_test").thing_classes == list(SHAPE_CLASSES)

    weights = str(tmp_path / "run" / "model_final.pth")
    cfg = setup_cfg(str(path), [*opts, "MODEL.WEIGHTS", weights])
    stop_on_errors(PlannedRun(cfg, eval_only=True))
    again = evaluate_checkpoint(cfg)
    assert again["bbox"]["AP50"] == pytest.approx(results["bbox"]["AP50"], abs=1e-6)


@pytest.mark.parametrize("text", [XML, COCO], ids=["xml", "coco"])
def test_in_four_steps(folder: Path, tmp_path: Path, text: str) -> None:
    """With names that no file can have."""
    path = tmp_path / "my.yaml"
    base = get_config_file("demo/vgg16_shapes.yaml")
    path.write_text(text.format(base=base, root=folder, more="").replace("my_t", "a/../my_t"))
    opts = [
        *SMALL[:-4],
        *("FOUR_STEP.ITERS", "[1,1,1,1]", "FOUR_STEP.DROPS", "[[],[],[],[]]"),
        *("FOUR_STEP.EVALUATE_STEPS", "False", "FOUR_STEP.PRE_NMS_TOPK", "300"),
        *("FOUR_STEP.POST_NMS_TOPK", "20", "OUTPUT_DIR", str(tmp_path / "run")),
    ]
    results = train(path, opts)
    assert results is not None and "AP50" in results["bbox"]
    file = f"{safe_file_name('a/../my_train')}.pkl"
    assert (tmp_path / "run" / "proposals" / "stage3" / file).is_file()
    folders = list((tmp_path / "run" / "inference").iterdir())
    assert [f.name for f in folders] == [safe_file_name("a/../my_test")]
    assert (folders[0] / "evaluation.json").is_file()
