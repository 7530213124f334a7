#!/usr/bin/env python
"""Train or evaluate a detector.

    python tools/train_net.py --config-file configs/faster_rcnn_vgg16_voc_joint.yaml
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    python tools/train_net.py --config-file ... --num-gpus 2 SOLVER.IMS_PER_BATCH 4

``KEY VALUE`` pairs at the end override the config. Without CUDA everything runs on the CPU, and
``--num-gpus`` is the number of processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils.logger import setup_logger

from frcnn_plugin.engine import PaperTrainer, check_cfg, launch, setup_cfg
from frcnn_plugin.errors import UserError


def run(args: argparse.Namespace) -> Any:
    """What every process does: set up, then train or evaluate; returns the results."""
    cfg: CfgNode = setup_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="frcnn_plugin")
    if args.eval_only:
        model = PaperTrainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        return PaperTrainer.test(cfg, model)
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(argv: Sequence[str] | None = None) -> Any:
    """Check the config, then run it in as many processes as asked for."""
    args = default_argument_parser(epilog=__doc__).parse_args(argv)
    try:
        # In the parent, so that a mistake is one line and not a traceback per process.
        check_cfg(setup_cfg(args.config_file, args.opts), eval_only=args.eval_only)
    except UserError as e:
        sys.exit(f"error: {e}")
    return launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main()
