"""Write the synthetic VOC-format data set: circles, squares and triangles.

    python tools/make_synthetic_voc.py datasets/shapes

Train on it by naming it in a config:

    DATASETS:
      REGISTER:
        - {name: my_train, root: shapes, split: trainval, classes: [circle, square, triangle]}
      TRAIN: [my_train]
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from ..data.synthetic.generator import write_synthetic_voc
from ..errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="folder to create")
    parser.add_argument("--num-trainval", type=int, default=200, help="default: %(default)s images")
    parser.add_argument("--num-test", type=int, default=50, help="default: %(default)s images")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the set; returns the exit status."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_synthetic_voc(args.root, args.num_trainval, args.num_test, args.seed)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
