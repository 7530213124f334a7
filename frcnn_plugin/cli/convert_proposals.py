r"""Convert proposals of other programs for a data set, check them and measure their recall.

    frcnn proposals convert --dataset voc07_trainval \
        --input selective_search_data/voc_2007_trainval.mat --output ss_voc07_trainval.pkl

The command reads Fast R-CNN's selective search downloads (.mat; they need scipy: pip install
'frcnn-plugin[proposals]') and NumPy archives (.npz) that hold, under each image id, an (N, 4) array
x1, y1, x2, y2 in pixels of the original image, best first; or (N, 5) with a score. Coordinates are
continuous: x2 - x1 is the width.

A file that is already in Detectron2's format (.pkl) is only checked and needs no --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from ..data import check_datasets
from ..data.proposals.converters import convert_npz, convert_selective_search_mat
from ..data.proposals.files import check_proposals
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_ground_truth
from ..evaluation.proposals.recall import report_recall

CONVERTERS = {".mat": convert_selective_search_mat, ".npz": convert_npz}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="registered name, such as voc07_trainval"
    )
    parser.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help=".mat, .npz or .pkl file"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="proposal file to write (.pkl)")
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config whose DATASETS.REGISTER names the data set",
    )


def run(args: argparse.Namespace) -> dict[str, float]:
    """Convert, check and measure; return recall in percent, empty without ground truth."""
    setup_logger(name="frcnn_plugin")
    setup_cfg(args.config_file)  # registers data sets
    suffix = args.input.suffix.lower()
    if suffix not in (*CONVERTERS, ".pkl"):
        raise UserError(f"--input {args.input}: only .mat, .npz and .pkl files can be read")
    if suffix in CONVERTERS and args.output is None:
        raise UserError("--output is missing: the .pkl file to write")
    if suffix == ".pkl" and args.output is not None:
        raise UserError("--input is a .pkl file, which is only checked: leave --output away")
    check_datasets([args.dataset], None)
    dicts = DatasetCatalog.get(args.dataset)
    path = args.input
    if suffix in CONVERTERS:
        CONVERTERS[suffix](args.input, dicts, args.output, args.dataset)
        path = args.output
    proposals = check_proposals(path, dicts, args.dataset)
    stem = path.with_suffix(".recall")
    curves = report_recall(proposals, load_ground_truth(args.dataset), args.dataset, stem=stem)
    return {} if curves is None else curves.metrics()
