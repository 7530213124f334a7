"""Write a report of a training: one HTML file that needs nothing else, not even a network.

    frcnn report output/faster_rcnn_vgg16_voc
    frcnn report output/faster_rcnn_vgg16_voc --output report.html

The training need not be finished: the page says what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the training")
    parser.add_argument("--output", type=Path, help="file to write; default: report.html there")


def run(args: argparse.Namespace) -> Path:
    path = write_report(args.output_dir, args.output)
    print(f"report: {path}")
    return path
