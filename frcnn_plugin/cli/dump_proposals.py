r"""Write the proposals of a trained network for a data set, and measure their recall.

    frcnn proposals dump --config-file configs/faster_rcnn_vgg16_voc_joint.yaml \
        --dataset voc07_trainval MODEL.WEIGHTS output/model_final.pth

The file is in Detectron2's proposal format, for DATASETS.PROPOSAL_FILES_TRAIN and _TEST. Beside it
go the recall curves (.recall.json) and their picture (.recall.png). By default it holds, per image,
the best 2000 boxes after non-maximum suppression of all anchors, on which the paper trains its
detector; MODEL.RPN.PRE_NMS_TOPK_TEST 6000 MODEL.RPN.POST_NMS_TOPK_TEST 300 gives those with which
it tests.

After an interruption the same command goes on where it stopped. Pairs of KEY VALUE at the end
override the config. Without CUDA everything runs on the CPU, and --num-gpus is the number of
processes.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..atomic_files import sha256
from ..checkpoint.checkpointer import AtomicCheckpointer, names_detector
from ..data import check_datasets
from ..data.loading.mappers import build_mapper
from ..data.proposals.files import check_proposals, save_proposals
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_ground_truth
from ..evaluation.proposals.evaluator import ProposalShards, ShardWriter
from ..evaluation.proposals.recall import COUNTS, report_recall
from ..preflight import PlannedRun, stop_on_errors
from ..process import launch, tune_process

logger = logging.getLogger("frcnn_plugin.cli.dump_proposals")

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config the network was trained with"
    )
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="registered name, such as voc07_trainval"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write; default: OUTPUT_DIR/inference/<dataset>/proposals.pkl",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes; default: %(default)s"
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=200,
        help="images per process after which work is saved; default: %(default)s",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


def make_cfg(args: argparse.Namespace) -> CfgNode:
    return setup_cfg(args.config_file, [*BEFORE_OVERRIDES, *args.opts, *AFTER_OVERRIDES])


def check(cfg: CfgNode, args: argparse.Namespace, output: Path, shards: ProposalShards) -> None:
    """Stop before the work on what would stop it."""
    if args.shard_size < 1 or args.num_gpus < 1:
        raise UserError("--shard-size and --num-gpus must be at least 1")
    if not names_detector(cfg):
        raise UserError("whose proposals? Add MODEL.WEIGHTS path/to/model_final.pth")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise UserError(f"{args.config_file} has no region proposal network to make proposals")
    check_datasets([args.dataset], None)
    stop_on_errors(PlannedRun(cfg, eval_only=True))
    # With shards left, the run that wrote the file did not get to its end.
    if output.exists() and not args.overwrite and not shards.folder.exists():
        raise UserError(
            f"{output} is there already: add --overwrite, or --output with another name"
        )


def fingerprint(cfg: CfgNode, dicts: list[dict[str, Any]]) -> dict[str, str]:
    """Hash all that the proposals depend on."""
    used = CfgNode({"MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT.clone()})
    used.MODEL.WEIGHTS = ""  # the contents count
    images = "\n".join(f"{item['image_id']} {item['file_name']}" for item in dicts)
    return {
        "config": hashlib.sha256(used.dump().encode()).hexdigest(),
        "weights": sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS)),
        "data set": hashlib.sha256(images.encode()).hexdigest(),
    }


def setup_logging() -> None:
    for name in ("detectron2", "fvcore", "frcnn_plugin"):
        setup_logger(distributed_rank=comm.get_rank(), name=name)


def run_process(
    args: argparse.Namespace, shards: ProposalShards, pending: list[dict[str, Any]]
) -> None:
    """Do a share of the images that are left: what every process does."""
    tune_process()
    setup_logging()
    cfg = make_cfg(args)
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    loader = build_detection_test_loader(
        pending,
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    inference_on_dataset(model, loader, ShardWriter(shards, args.shard_size, args.dataset))


def finish(
    cfg: CfgNode,
    dataset: str,
    dicts: list[dict[str, Any]],
    output: Path,
    shards: ProposalShards,
) -> dict[str, float]:
    """Put the shards together; return recall in percent, empty without ground truth."""
    proposals = shards.read().reordered([str(item["image_id"]) for item in dicts])
    save_proposals(output, proposals.ids, proposals.boxes, proposals.logits)
    proposals = check_proposals(output, dicts, dataset)
    most = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    counts = sorted({min(count, most) for count in COUNTS})
    stem = output.with_suffix(".recall")
    curves = report_recall(proposals, load_ground_truth(dataset), dataset, counts, stem)
    shards.remove()
    return {} if curves is None else curves.metrics()


def run(args: argparse.Namespace) -> dict[str, float]:
    """Make what is not done yet, write the file; return recall in percent."""
    setup_logging()
    cfg = make_cfg(args)
    output = args.output or Path(cfg.OUTPUT_DIR, "inference", args.dataset, "proposals.pkl")
    shards = ProposalShards(output.with_name(f"{output.name}.partial"))
    check(cfg, args, output, shards)
    dicts = DatasetCatalog.get(args.dataset)
    shards.open(fingerprint(cfg, dicts))
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
        launch(run_process, args.num_gpus, dist_url="auto", args=(args, shards, pending))
    return finish(cfg, args.dataset, dicts, output, shards)
