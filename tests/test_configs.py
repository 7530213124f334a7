"""Every YAML is loaded and built; the joint one is compared with py-faster-rcnn."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.config_files import base_chain, flat_keys
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling.roi_heads.box_head import each_head
from tests.conftest import CONFIGS

ALL = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))


def load(name: str):
    cfg = plugin_cfg()
    cfg.merge_from_file(get_config_file(name))
    return cfg


@pytest.mark.parametrize("name", ALL)
def test_config_loads_and_builds(name: str) -> None:
    cfg = load(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = min(cfg.MODEL.ROI_BOX_HEAD.FC_DIM, 64)  # seconds, not minutes
    model = build_model(cfg)
    assert type(model).__name__ == "PaperRCNN"
    assert set(cfg.SOLVER.STEPS) == {s for s in cfg.SOLVER.STEPS if s < cfg.SOLVER.MAX_ITER}
    agnostic = cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
    boxes = 1 if agnostic else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    maps = cfg.MODEL.RFCN.GROUP_SIZE**2 if cfg.MODEL.ROI_HEADS.NAME == "RFCNHeads" else 1
    for predictor in each_head(model.roi_heads.box_predictor):
        assert len(predictor.bbox_pred.bias) == 4 * boxes * maps
    rpn, sizes = model.proposal_generator, cfg.MODEL.ANCHOR_GENERATOR
    number = len(sizes.SIZES[0]) * len(sizes.ASPECT_RATIOS[0])
    assert rpn.anchor_generator.num_anchors == [number] * len(rpn.in_features)
    if hasattr(rpn, "rpn_head"):
        per_box = type(rpn).__name__ == "HyperRPN"  # its head knows nothing of other anchors
        assert len(rpn.rpn_head.rpn_cls_score.weight) == 2 * (1 if per_box else number)


def test_there_are_configs() -> None:
    assert "faster_rcnn_vgg16_voc_joint.yaml" in ALL


def test_readme_has_a_line_for_every_config() -> None:
    """In a table, `` | `name.yaml` | what it is | ``, each once and no others."""
    lines = (CONFIGS / "README.md").read_text().splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `")]
    lazy = [f"lazy/{path.name}" for path in (CONFIGS / "lazy").glob("*.py")]
    assert sorted(row[1].strip(" `") for row in rows) == sorted(ALL + lazy)
    assert all(row[2].strip() for row in rows)


def test_presets_are_siblings() -> None:
    """A preset can be read as a whole: below it is only what all three have in common."""
    for name in ("Base-Paper.yaml", "Base-PyAltOpt.yaml", "Base-PyEnd2End.yaml"):
        text = (CONFIGS / name).read_text()
        assert '_BASE_: "Base-Common.yaml"' in text
    assert "_BASE_" not in (CONFIGS / "Base-Common.yaml").read_text()


# py-faster-rcnn end2end: its solver.prototxt, train.prototxt, config.py, faster_rcnn_end2end.yml.
END2END = {
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.PAPER_RCNN.ONE_BY_ONE": True,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
    "MODEL.RPN.LOSS_NORM": "samples",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.MIN_SIZE_IMAGE": 16.0,
    "MODEL.RPN.DECODE_GROWTH": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.IOU_LABELS": [0, 1],
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 4096,
    "MODEL.ROI_BOX_HEAD.DROPOUT": 0.5,
    "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN": True,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.DECODE_GROWTH": 1.0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (50000,),
    "SOLVER.MAX_ITER": 70000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "DATASETS.TRAIN": ("voc07_trainval",),
    "DATASETS.TEST": ("voc07_test",),
}


def value(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("key", END2END)
def test_joint_config_is_end2end(key: str) -> None:
    assert value(load("faster_rcnn_vgg16_voc_joint.yaml"), key) == END2END[key]


def test_what_zf_changes() -> None:
    cfg = load("faster_rcnn_zf_voc_joint.yaml")
    changed = {
        **END2END,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 6,
        "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN": False,
    }
    assert {k: value(cfg, k) for k in changed} == changed
    assert cfg.MODEL.BACKBONE.NAME == "ZF"


def test_what_coco_changes() -> None:
    cfg = load("faster_rcnn_vgg16_coco_joint.yaml")
    changed = {
        **END2END,
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "MODEL.ROI_BOX_HEAD.DROPOUT": 0.0,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
        "SOLVER.STEPS": (350000,),
        "SOLVER.MAX_ITER": 490000,
        "DATASETS.TRAIN": ("coco_2014_train", "coco_2014_valminusminival"),
        "DATASETS.TEST": ("coco_2014_minival",),
    }
    assert {k: value(cfg, k) for k in changed} == changed


SIZES, RATIOS = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
TRAIN, TEST = "DATASETS.TRAIN", "DATASETS.TEST"
FILES_TRAIN, FILES_TEST = "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"
SCHEDULE = {"SOLVER.STEPS", "SOLVER.MAX_ITER"}
STAGES = {"FOUR_STEP.ITERS", "FOUR_STEP.DROPS"}
# Config of a table's row -> the keys in which it differs from the one it is based on.
ROWS = {
    "anchors_128": {SIZES},
    "anchors_128_square": {SIZES, RATIOS},
    "anchors_256": {SIZES},
    "anchors_256_square": {SIZES, RATIOS},
    "anchors_square": {RATIOS},
    "coco_on_voc": {TEST, "DATASETS.CLASS_MAP"},
    "lambda_0.1": {"MODEL.RPN.BBOX_REG_LOSS_WEIGHT"},
    "lambda_1": {"MODEL.RPN.BBOX_REG_LOSS_WEIGHT"},
    "lambda_100": {"MODEL.RPN.BBOX_REG_LOSS_WEIGHT"},
    "vgg16_ss_voc0712": {TRAIN, FILES_TRAIN, "SOLVER.MAX_ITER"},
    "vgg16_ss_voc12": {TRAIN, TEST, FILES_TRAIN, FILES_TEST},
    "vgg16_ss_voc07pp12": {TRAIN, FILES_TRAIN, *SCHEDULE},
    "vgg16_voc12": {TRAIN, TEST},
    "vgg16_voc07pp12": {TRAIN, *STAGES},
    "vgg16_voc07pp12_coco": {"MODEL.WEIGHTS", SIZES},
    "zf_dense_windows": {"MODEL.PROPOSAL_GENERATOR.NAME", "FOUR_STEP.ENABLED", *SCHEDULE},
    "zf_dense_windows_pyramid": {"MODEL.PAPER_RCNN.PYRAMID"},
    "zf_eb": {FILES_TRAIN, FILES_TEST},
    "zf_ss": {
        "MODEL.WEIGHTS", "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN",
    },
    "zf_unshared": {"FOUR_STEP.STOP_AFTER"},
}  # fmt: skip


def test_every_row_of_a_table_is_known() -> None:
    assert {f"ablations/{name}.yaml" for name in ROWS} == {n for n in ALL if "ablations/" in n}


@pytest.mark.parametrize("name", ROWS)
def test_rows_differ_from_their_base_in_what_they_are_about(name: str) -> None:
    row = get_config_file(f"ablations/{name}.yaml")
    base = plugin_cfg()
    base.merge_from_file(str(base_chain(row)[1]))
    theirs, ours = flat_keys(base), flat_keys(load(f"ablations/{name}.yaml"))
    assert {key for key in ours if ours[key] != theirs[key]} == ROWS[name] | {"OUTPUT_DIR"}
    assert ours["OUTPUT_DIR"] == f"output/ablations/{name}"


def test_config_by_a_wrong_name() -> None:
    with pytest.raises(UserError, match=r"did you mean faster_rcnn_vgg16_voc_joint.yaml"):
        get_config_file("faster_rcnn_vgg16_voc_joint.yml")


def test_paths_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(get_config_file("demo/vgg16_shapes_joint.yaml")).is_file()


def test_plugin_cfg_is_detectron2s_with_our_keys() -> None:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    assert plugin_cfg() == cfg and not plugin_cfg().is_frozen()


def test_base_chain(tmp_path: Path) -> None:
    ours = Path(get_config_file("faster_rcnn_vgg16_voc_joint.yaml")).resolve()
    middle, mine = tmp_path / "middle.yaml", tmp_path / "mine.yaml"
    middle.write_text(f'_BASE_: "{ours}"\n')
    mine.write_text('_BASE_: "middle.yaml"\n')
    assert base_chain(str(mine))[:3] == [mine, middle, ours]
    assert base_chain(mine)[3:] == base_chain(ours)[1:] != []


def test_base_chain_of_files_that_are_none(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text('_BASE_: "mine.yaml"\n')
    with pytest.raises(
        UserError, match=r"mine.yaml, line 1: _BASE_ mine.yaml is itself based on this file"
    ):
        base_chain(mine)
    mine.write_text('_BASE_: "gone.yaml"\n')
    with pytest.raises(UserError, match=r"mine.yaml, line 1: _BASE_: no config file '.*gone.yaml'"):
        base_chain(mine)
    mine.write_text("MODEL: [1")
    with pytest.raises(UserError, match=r"mine.yaml, line 1 is not YAML"):
        base_chain(mine)
