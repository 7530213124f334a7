"""Write the synthetic data set, circles, squares and triangles, in the formats of VOC and COCO.

    frcnn make-data datasets/shapes

Train on it by naming it in a config:

    DATASETS:
      REGISTER:
        - {name: my_train, root: shapes, split: trainval, classes: [circle, square, triangle]}
      TRAIN: [my_train]
"""

import argparse
import logging

from ..data.synthetic import write_synthetic_voc
from ..errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="folder to create")
    parser.add_argument("--num-trainval", type=int, default=200, help="default: %(default)s images")
    parser.add_argument("--num-test", type=int, default=50, help="default: %(default)s images")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_synthetic_voc(args.root, args.num_trainval, args.num_test, args.seed)
    except OSError as error:
        raise UserError(f"{args.root} cannot be written: {error.strerror or error}") from error
