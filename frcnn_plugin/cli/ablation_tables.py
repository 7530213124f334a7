"""The paper's tables as rows that can be run: which config, tested how, and the paper's mAP.

The numbers are those of arXiv 1506.01497v3; a config of ``configs/`` says what a row trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    cells: tuple[str, ...]  # as in the paper
    paper: float  # the paper's mAP, percent
    config: str  # of the run, below ``configs/``
    test: str = ""  # name of the row if it is only a test of the detector that `config` trains
    keys: tuple[str, ...] = ()  # overrides of such a test, and of the network of `rpn`
    # Config of a run whose first RPN makes the proposals of the test; "": the config's own.
    rpn: str = ""

    @property
    def name(self) -> str:
        """Name of its folder; runs of one config are the same in all tables."""
        return self.test or PurePosixPath(self.config).stem


@dataclass(frozen=True)
class Table:
    """One table: what it is about, its columns, its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


_ZF_SS, _ZF_UNSHARED = "ablations/zf_ss.yaml", "ablations/zf_unshared.yaml"
_ZF, _ZF_DENSE = "faster_rcnn_zf_voc.yaml", "ablations/zf_dense_windows.yaml"
_ZF_PYRAMID = "ablations/zf_dense_windows_pyramid.yaml"
_VGG16, _VGG16_UNSHARED = "faster_rcnn_vgg16_voc.yaml", "faster_rcnn_vgg16_voc_unshared.yaml"
_COCO = "ablations/coco_on_voc.yaml"
_TEST_RULES = ("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST")
_NO_NMS = ("MODEL.RPN.NMS_THRESH", "1.0")


def _on_rpn(
    number: int,
    paper: float,
    what: str = "",
    *keys: str,
    rpn: str = _ZF_UNSHARED,
    before: int = 6000,
) -> Row:
    """Return a row of Table 2 in which the detector of the first row is tested on an RPN."""
    shown = "RPN+VGG" if rpn == _VGG16_UNSHARED else "RPN+ZF"
    name = f"zf_ss_on_{shown.lower().replace('+', '_')}{what.replace(' ', '_')}_{number}"
    limits = (_TEST_RULES[0], str(before), _TEST_RULES[1], str(number))
    cells = ("SS", "2000", f"{shown}{f' ({what.strip()})' if what else ''}", str(number))
    return Row(cells, paper, _ZF_SS, name, (*limits, *keys), rpn)


_RANDOM = ("MODEL.RPN.SCORES", "random", *_NO_NMS)
_ANCHORS = ("MODEL.RPN.REGRESS", "False")

TABLES = {
    "2": Table(
        "Table 2: proposals in training and testing. ZF, VOC 2007",
        ("training proposals", "number", "test proposals", "number"),
        (
            Row(("SS", "2000", "SS", "2000"), 58.7, _ZF_SS),
            Row(("EB", "2000", "EB", "2000"), 58.6, "ablations/zf_eb.yaml"),
            Row(("RPN+ZF, shared", "2000", "RPN+ZF, shared", "300"), 59.9, _ZF),
            Row(("RPN+ZF, unshared", "2000", "RPN+ZF, unshared", "300"), 58.7, _ZF_UNSHARED),
            _on_rpn(100, 55.1),
            _on_rpn(300, 56.8),
            _on_rpn(1000, 56.3),
            _on_rpn(6000, 55.2, " no NMS", *_NO_NMS),
            _on_rpn(100, 44.6, " no cls", *_RANDOM, before=-1),
            _on_rpn(300, 51.4, " no cls", *_RANDOM, before=-1),
            _on_rpn(1000, 55.8, " no cls", *_RANDOM, before=-1),
            _on_rpn(300, 52.1, " no reg", *_ANCHORS),
            _on_rpn(1000, 51.3, " no reg", *_ANCHORS),
            _on_rpn(300, 59.2, rpn=_VGG16_UNSHARED),
        ),
    ),
    "3": Table(
        "Table 3: VGG16 on VOC 2007 test",
        ("proposals", "number", "training data"),
        (
            Row(("SS", "2000", "07"), 68.1, "fast_rcnn_vgg16_voc.yaml"),
            Row(("SS", "2000", "07+12"), 70.0, "ablations/vgg16_ss_voc0712.yaml"),
            Row(("RPN+VGG, unshared", "300", "07"), 68.5, _VGG16_UNSHARED),
            Row(("RPN+VGG, shared", "300", "07"), 69.9, _VGG16),
            Row(("RPN+VGG, shared", "300", "07+12"), 73.2, "faster_rcnn_vgg16_voc0712.yaml"),
            Row(
                ("RPN+VGG, shared", "300", "COCO+07+12"), 78.8,
                "faster_rcnn_vgg16_voc0712_coco.yaml",
            ),
        ),
    ),
    "4": Table(
        "Table 4: VGG16 on VOC 2012 test",
        ("proposals", "number", "training data"),
        (
            Row(("SS", "2000", "12"), 65.7, "ablations/vgg16_ss_voc12.yaml"),
            Row(("SS", "2000", "07++12"), 68.4, "ablations/vgg16_ss_voc07pp12.yaml"),
            Row(("RPN+VGG, shared", "300", "12"), 67.0, "ablations/vgg16_voc12.yaml"),
            Row(("RPN+VGG, shared", "300", "07++12"), 70.4, "ablations/vgg16_voc07pp12.yaml"),
            Row(
                ("RPN+VGG, shared", "300", "COCO+07++12"), 75.9,
                "ablations/vgg16_voc07pp12_coco.yaml",
            ),
        ),
    ),
    "8": Table(
        "Table 8: anchors. VGG16, VOC 2007",
        ("scales", "ratios"),
        (
            Row(("128", "1:1"), 65.8, "ablations/anchors_128_square.yaml"),
            Row(("256", "1:1"), 66.7, "ablations/anchors_256_square.yaml"),
            Row(("128", "2:1, 1:1, 1:2"), 68.8, "ablations/anchors_128.yaml"),
            Row(("256", "2:1, 1:1, 1:2"), 67.9, "ablations/anchors_256.yaml"),
            Row(("128, 256, 512", "1:1"), 69.8, "ablations/anchors_square.yaml"),
            Row(("128, 256, 512", "2:1, 1:1, 1:2"), 69.9, _VGG16),
        ),
    ),
    "9": Table(
        "Table 9: lambda, the weight of the RPN's box loss. VGG16, VOC 2007",
        ("lambda",),
        (
            Row(("0.1",), 67.2, "ablations/lambda_0.1.yaml"),
            Row(("1",), 68.9, "ablations/lambda_1.yaml"),
            Row(("10",), 69.9, _VGG16),
            Row(("100",), 69.1, "ablations/lambda_100.yaml"),
        ),
    ),
    "10": Table(
        "Table 10: two stages and one. ZF, VOC 2007",
        ("stages", "proposals", "number"),
        (
            Row(("two", "RPN+ZF, unshared", "300"), 58.7, _ZF_UNSHARED),
            Row(("one", "dense windows, one scale", "20000"), 53.8, _ZF_DENSE),
            Row(("one", "dense windows, five scales", "20000"), 53.9, _ZF_PYRAMID),
        ),
    ),
    "12": Table(
        "Table 12: training data. VGG16",
        ("training data", "test data"),
        (
            Row(("07", "VOC 2007 test"), 69.9, _VGG16),
            Row(("07+12", "VOC 2007 test"), 73.2, "faster_rcnn_vgg16_voc0712.yaml"),
            Row(("COCO, no VOC", "VOC 2007 test"), 76.1, _COCO),
            Row(
                ("COCO+07+12", "VOC 2007 test"), 78.8, "faster_rcnn_vgg16_voc0712_coco.yaml"
            ),
            Row(("12", "VOC 2012 test"), 67.0, "ablations/vgg16_voc12.yaml"),
            Row(("07++12", "VOC 2012 test"), 70.4, "ablations/vgg16_voc07pp12.yaml"),
            Row(
                ("COCO, no VOC", "VOC 2012 test"), 73.0, _COCO, "coco_on_voc12",
                ("DATASETS.TEST", "('voc12_test',)"),
            ),
            Row(
                ("COCO+07++12", "VOC 2012 test"), 75.9, "ablations/vgg16_voc07pp12_coco.yaml"
            ),
        ),
    ),
}  # fmt: skip
