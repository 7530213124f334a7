"""Train or evaluate a detector.

    python tools/train_net.py --config-file configs/faster_rcnn_vgg16_voc_joint.yaml
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    python tools/train_net.py --config-file ... --num-gpus 2

``KEY VALUE`` pairs at the end override the config. Without CUDA everything runs on the CPU, and
``--num-gpus`` is the number of processes. What tools/doctor.py checks is checked first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..engine import PaperTrainer, evaluate_checkpoint, forget_run, setup_cfg
from ..errors import UserError
from ..preflight import PlannedRun, stop_on_errors
from ..process import launch, tune_process
from ..report import RunRecorder


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Any:
    """What every process does: set up, then train or evaluate; returns the results."""
    tune_process()
    cfg: CfgNode = setup_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="frcnn_plugin")
    if args.eval_only:
        return evaluate_checkpoint(cfg)
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([RunRecorder(cfg, args.config_file)])
    return trainer.train()


def main(argv: Sequence[str] | None = None) -> Any:
    """Check the config, then run it in as many processes as asked for."""
    args = parse_args(argv)
    try:
        # In the parent, so that a mistake is one line and not a traceback per process.
        cfg = setup_cfg(args.config_file, args.opts)
        stop_on_errors(
            PlannedRun(
                cfg,
                eval_only=args.eval_only,
                resume=args.resume,
                overwrite=args.overwrite,
                num_processes=args.num_gpus * args.num_machines,
                num_machines=args.num_machines,
                config_file=args.config_file,
            )
        )
        if args.overwrite and not (args.eval_only or args.resume):
            forget_run(cfg)
        return launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
