"""Write a report of a training: one HTML file that needs nothing else, not even a network.

    python tools/report.py output/faster_rcnn_vgg16_voc
    python tools/report.py output/faster_rcnn_vgg16_voc --output report.html

Finished or not: what is missing is said in the page. docs/report.md describes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..report import write_report


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the training")
    parser.add_argument("--output", type=Path, help="file to write; default: report.html there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    args = parse_args(argv)
    try:
        path = write_report(args.output_dir, args.output)
    except UserError as e:
        sys.exit(f"error: {e}")
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    main()
