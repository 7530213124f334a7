"""Train or evaluate a detector.

    frcnn train --config-file frcnn://faster_rcnn_vgg16_voc.yaml
    frcnn train --config-file my.yaml SOLVER.BASE_LR 0.0005 OUTPUT_DIR output/slow
    frcnn train --config-file my.yaml --resume
    frcnn train --config-file my.yaml --num-gpus 2
    frcnn train --config-file my.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

Pairs of KEY VALUE override the config. frcnn://NAME is a config that comes with the plugin; another
may start from it: _BASE_: frcnn://faster_rcnn_vgg16_voc.yaml. The checks of `frcnn doctor` come
before anything else. Without CUDA everything runs on the CPU, and --num-gpus is the number of
processes. Where torchrun or srun starts the processes, leave it out (docs/four_step.md). SIGTERM or
Ctrl-C saves a checkpoint at the end of the iteration and ends the run with status 75; a second one
ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from contextlib import ExitStack
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm

from .. import stopping
from ..config_files import find_config_file
from ..engine import PaperTrainer, evaluate_checkpoint, forget_run, lock_output, setup_cfg
from ..engine.run_folder import check_shared
from ..errors import UserError
from ..four_step.statistics import on_main_process
from ..preflight import PlannedRun, stop_on_errors
from ..process import join_launcher, launch, run_rank, set_up_logs, tune_process
from ..report import RunRecorder
from . import add_config_file, add_overrides, add_processes, check_numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Offer what Detectron2's own training scripts take, and --overwrite."""
    add_config_file(parser, "config of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train"
    )
    add_processes(parser)
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="K", help="number of this one, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default=default_argument_parser().get_default("dist_url"),
        metavar="URL",
        help="where the processes meet; default: %(default)s",
    )
    add_overrides(parser)


def _check_options(args: argparse.Namespace) -> None:
    """Stop at options that contradict each other, or that only fail when the processes meet."""
    if args.eval_only and args.resume:
        raise UserError(
            "--eval-only evaluates MODEL.WEIGHTS and resumes nothing: leave out --resume, and give "
            "MODEL.WEIGHTS path/to/model_final.pth"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}: with --num-machines {args.num_machines} it "
            f"must be from 0 to {args.num_machines - 1}"
        )
    if args.dist_url != "auto" and "://" not in args.dist_url:
        raise UserError(f"--dist-url {args.dist_url}: give auto, or tcp://ADDRESS:PORT")
    if args.dist_url.startswith("tcp:") and not re.fullmatch(r"tcp://.+:\d{1,5}", args.dist_url):
        raise UserError(f"--dist-url {args.dist_url} has no port: give tcp://ADDRESS:PORT")
    if args.dist_url == "auto" and args.num_machines > 1:
        raise UserError(
            "--dist-url auto is for one machine: give tcp://ADDRESS:PORT of the one with "
            "--machine-rank 0"
        )


def run_process(args: argparse.Namespace) -> Any:
    """Set up, then train or evaluate; return the results. Every process calls this."""
    tune_process()
    logging.raiseExceptions = False  # a log on a full disk is no reason for a traceback per line
    if args.config_file:  # Detectron2 prints its content
        args.config_file = find_config_file(args.config_file)
    cfg: CfgNode = setup_cfg(args.config_file, args.opts)
    if comm.get_world_size() > 1 and not args.eval_only:
        check_shared(cfg.OUTPUT_DIR)
    set_up_logs(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    if args.eval_only:
        return evaluate_checkpoint(cfg)
    trainer = PaperTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([RunRecorder(cfg)])
    with stopping.listening():
        return trainer.train()


def run(args: argparse.Namespace) -> Any:
    """Check the config, then run it in as many processes as asked for, or as there are."""
    joined = join_launcher() if args.num_machines == 1 else 0
    # How often torchrun has lost a process of this run.
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0"):
        args.resume, args.overwrite = not args.eval_only, False
    if joined:
        return run_rank(_run_joined, (args, comm.get_world_size() // joined))
    tasks, here = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"))
    if tasks.isdecimal() and int(tasks) > 1 == args.num_gpus * args.num_machines and here == "1":
        print(f"warning: this SLURM job has {tasks} tasks; without srun one runs", file=sys.stderr)
    with ExitStack() as stack:
        args.opts = _prepare(args, stack, args.num_gpus * args.num_machines, args.num_machines)
        return launch(
            run_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


def _run_joined(args: argparse.Namespace, machines: int) -> Any:
    with ExitStack() as stack:
        try:
            args.opts = on_main_process(
                lambda: _prepare(args, stack, comm.get_world_size(), machines)
            )
        except RuntimeError as error:  # in the others: the main process says why
            raise (error if comm.is_main_process() else stopping.Stopped("", 1)) from None
        return run_process(args)


def _prepare(
    args: argparse.Namespace, stack: ExitStack, processes: int, machines: int
) -> list[str]:
    """Check everything, and lock the folder until the stack is closed; return the overrides."""
    check_numbers(args)
    _check_options(args)
    if args.num_gpus > 1 and comm.get_world_size() > 1:
        raise UserError(
            f"--num-gpus {args.num_gpus}, but torchrun or srun has started {processes} processes: "
            "leave it out"
        )
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
    # Checked in one process, so that a mistake is one line and not one per process.
    cfg = setup_cfg(args.config_file, args.opts)
    stop_on_errors(
        PlannedRun(
            cfg,
            eval_only=args.eval_only,
            resume=args.resume,
            overwrite=args.overwrite,
            num_processes=processes,
            num_machines=machines,
            config_file=args.config_file,
            opts=args.opts,
        )
    )
    # The first machine of several writes, for all of them.
    if not args.eval_only and args.machine_rank == 0:
        stack.enter_context(lock_output(cfg.OUTPUT_DIR))
        if args.overwrite:
            forget_run(cfg)
    # There may be no CUDA: a warning that the processes need not repeat.
    return [*args.opts, "MODEL.DEVICE", cfg.MODEL.DEVICE]
