"""The commands of `frcnn proposals`: write a network's proposals, convert those of others."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..atomic_files import safe_file_name, sha256
from ..checkpoint.checkpointer import AtomicCheckpointer, names_detector
from ..data import check_datasets
from ..data.loading.bad_images import build_test_loader, skips_bad_images
from ..data.proposals.converters import convert_npz, convert_selective_search_mat
from ..data.proposals.files import check_proposals, save_proposals
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_ground_truth
from ..evaluation.proposals.evaluator import ProposalShards, ShardWriter
from ..evaluation.proposals.recall import COUNTS, report_recall
from ..preflight import PlannedRun, stop_on_errors
from ..process import launch, tune_process
from . import add_config_file, add_overrides, add_processes, check_file, check_numbers

SHARD_SIZE = 200  # images per process after which work is saved
BEFORE_OVERRIDES = [
    # More than there are. PaperRPN also takes -1 for "all", Detectron2's RPN does not.
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", str(10**9)),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "2000"),
]
AFTER_OVERRIDES = [
    *("MODEL.PAPER_RCNN.PHASE", "rpn"),
    *("MODEL.LOAD_PROPOSALS", "False"),
    *("DATASETS.TEST", "()"),  # --dataset counts
]
CONVERTERS = {".mat": convert_selective_search_mat, ".npz": convert_npz}

logger = logging.getLogger(__name__)


class Dump:
    r"""Write the proposals of a trained network for a data set, and measure their recall.

        frcnn proposals dump --config-file frcnn://faster_rcnn_vgg16_voc_joint.yaml \
            --dataset voc07_trainval MODEL.WEIGHTS output/model_final.pth

    The file is in Detectron2's proposal format, for DATASETS.PROPOSAL_FILES_TRAIN and _TEST. The
    recall curves (.recall.json) and their picture (.recall.png) are written next to it. By default
    it holds, per image, the best 2000 boxes after non-maximum suppression of all anchors, on which
    the paper trains its detector; MODEL.RPN.PRE_NMS_TOPK_TEST 6000 MODEL.RPN.POST_NMS_TOPK_TEST 300
    gives those with which it tests.

    After an interruption the same command continues where it stopped. Pairs of KEY VALUE at the end
    override the config. Without CUDA everything runs on the CPU, and --num-gpus is the number of
    processes.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_config_file(parser, "config of the trained network", required=True)
        _add_dataset(parser)
        parser.add_argument(
            "--output",
            type=Path,
            help="file to write; default: OUTPUT_DIR/inference/<dataset>/proposals.pkl",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
        add_processes(parser)
        add_overrides(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> dict[str, float]:
        """Compute what is missing, write the file; return recall in percent, if there is truth."""
        _setup_logging()
        check_numbers(args)
        if args.output:
            check_file("--output", args.output, makes_folders=True)
        cfg = _dump_cfg(args)
        folder = Path(cfg.OUTPUT_DIR, "inference", safe_file_name(args.dataset))
        output = args.output or folder / "proposals.pkl"
        shards = ProposalShards(output.with_name(f"{output.name}.partial"))
        _check_dump(cfg, args, output, shards)
        dicts = DatasetCatalog.get(args.dataset)
        shards.open(_fingerprint(cfg, dicts))
        done = set(shards.read().ids)
        if done:
            logger.info("%d of %d images are done already", len(done), len(dicts))
        # Decided here: processes that start late would see the shards of early ones.
        pending = [
            {key: value for key, value in item.items() if key != "annotations"}
            for item in dicts
            if str(item["image_id"]) not in done
        ]
        if pending:
            launch(_dump_process, args.num_gpus, dist_url="auto", args=(args, shards, pending))
        proposals = shards.read().reordered([str(item["image_id"]) for item in dicts])
        save_proposals(output, proposals.ids, proposals.boxes, proposals.logits)
        most = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        counts = sorted({min(count, most) for count in COUNTS})
        recall = _check_and_measure(output, dicts, args.dataset, counts)
        shards.remove()
        return recall


class Convert:
    r"""Convert proposals of other programs for a data set, check them and measure their recall.

        frcnn proposals convert --dataset voc07_trainval \
            --input selective_search_data/voc_2007_trainval.mat --output ss_voc07_trainval.pkl

    The command reads Fast R-CNN's selective search downloads (.mat; they need scipy: pip install
    'frcnn-plugin[proposals]') and NumPy archives (.npz) that hold, under each image id, an (N, 4)
    array x1, y1, x2, y2 in pixels of the original image, best first; or (N, 5) with a score.
    Coordinates are continuous: x2 - x1 is the width.

    A file that is already in Detectron2's format (.pkl) is only checked and needs no --output.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        _add_dataset(parser)
        parser.add_argument(
            "--input", required=True, type=Path, metavar="FILE", help=".mat, .npz or .pkl file"
        )
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="proposal file to write (.pkl)"
        )
        add_config_file(parser, "config whose DATASETS.REGISTER names the data set")

    @staticmethod
    def run(args: argparse.Namespace) -> dict[str, float]:
        """Convert, check and measure; return recall in percent, empty without ground truth."""
        _setup_logging()
        setup_cfg(args.config_file)  # registers data sets
        suffix = args.input.suffix.lower()
        if suffix not in (*CONVERTERS, ".pkl"):
            raise UserError(f"--input {args.input}: only .mat, .npz and .pkl files can be read")
        if suffix in CONVERTERS and args.output is None:
            raise UserError("--output is missing: the .pkl file to write")
        if suffix == ".pkl" and args.output is not None:
            raise UserError("--input is a .pkl file, which is only checked: leave --output away")
        if args.output is not None:
            if args.output.suffix != ".pkl":
                raise UserError(f"--output {args.output} must end in .pkl")
            check_file("--output", args.output, makes_folders=True)
        check_datasets([args.dataset], None)
        dicts = DatasetCatalog.get(args.dataset)
        if suffix in CONVERTERS:
            CONVERTERS[suffix](args.input, dicts, args.output, args.dataset)
        return _check_and_measure(args.output or args.input, dicts, args.dataset)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="registered name, such as voc07_trainval"
    )


def _setup_logging() -> None:
    for name in ("detectron2", "fvcore", "frcnn_plugin"):
        setup_logger(distributed_rank=comm.get_rank(), name=name)


def _check_and_measure(
    path: Path, dicts: list[dict[str, Any]], dataset: str, counts: Sequence[int] = COUNTS
) -> dict[str, float]:
    """Check a proposal file; return its recall in percent, empty without ground truth."""
    proposals = check_proposals(path, dicts, dataset)
    truth, stem = load_ground_truth(dataset), path.with_suffix(".recall")
    curves = report_recall(proposals, truth, dataset, counts, stem)
    return {} if curves is None else curves.metrics()


def _dump_cfg(args: argparse.Namespace) -> CfgNode:
    return setup_cfg(args.config_file, [*BEFORE_OVERRIDES, *args.opts, *AFTER_OVERRIDES])


def _check_dump(
    cfg: CfgNode, args: argparse.Namespace, output: Path, shards: ProposalShards
) -> None:
    """Stop before the work on what would stop it."""
    if not names_detector(cfg):
        raise UserError("whose proposals? Add MODEL.WEIGHTS path/to/model_final.pth")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise UserError(f"{args.config_file} has no region proposal network to make proposals")
    check_datasets([args.dataset], None, skip_bad_images=skips_bad_images(cfg))
    stop_on_errors(PlannedRun(cfg, eval_only=True, num_processes=args.num_gpus))
    # If shards are left, the run that wrote the file did not get to its end.
    if output.exists() and not args.overwrite and not shards.folder.exists():
        raise UserError(f"{output} exists already: add --overwrite, or --output with another name")


def _fingerprint(cfg: CfgNode, dicts: list[dict[str, Any]]) -> dict[str, str]:
    """Hash all that the proposals depend on."""
    used = CfgNode({"MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT.clone()})
    used.MODEL.WEIGHTS = ""  # the contents count
    images = "\n".join(f"{item['image_id']} {item['file_name']}" for item in dicts)
    return {
        "config": hashlib.sha256(used.dump().encode()).hexdigest(),
        "weights": sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS)),
        "data set": hashlib.sha256(images.encode()).hexdigest(),
    }


def _dump_process(
    args: argparse.Namespace, shards: ProposalShards, pending: list[dict[str, Any]]
) -> None:
    """Do a share of the images that are left; every process calls this."""
    tune_process()
    _setup_logging()
    cfg = _dump_cfg(args)
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    loader = build_test_loader(cfg, pending)
    inference_on_dataset(model, loader, ShardWriter(shards, SHARD_SIZE, args.dataset))
