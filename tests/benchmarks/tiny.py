"""A network and images that take milliseconds."""

from __future__ import annotations

from benchmarks.work import Spec, Work
from frcnn_plugin import get_config_file

CONFIG = get_config_file("faster_rcnn_vgg16_voc_joint.yaml")
SIZE = ["--image", "96x160", "--repeats", "2", "--device", "cpu"]
SMALL = [
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32,64]]"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    *("INPUT.MAX_SIZE_TRAIN", "160"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "160"),
    *("TEST.DETECTIONS_PER_IMAGE", "10"),
    *("DATALOADER.NUM_WORKERS", "0"),
]


def spec_and_work(training: bool = False, kind: str = "config") -> tuple[Spec, Work]:
    return Spec(kind, kind, CONFIG, (*SMALL, "MODEL.DEVICE", "cpu")), Work(training, 96, 160)
