"""The commands of `frcnn proposals`: write a network's proposals, measure them, convert others."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_every_n_seconds, setup_logger
from tabulate import tabulate

from ..atomic_files import safe_file_name, sha256
from ..checkpoint.checkpointer import load_model, names_detector
from ..data import check_datasets
from ..data.loading.bad_images import build_test_loader, skips_bad_images
from ..data.proposals.converters import convert_npz, convert_selective_search_mat
from ..data.proposals.files import check_proposals, save_proposals
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_ground_truth
from ..evaluation.proposals.evaluator import ProposalShards, ShardWriter
from ..evaluation.proposals.recall import COUNTS, report_recall
from ..modeling import PaperRCNN, PaperRPN
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
# The paper's Table 1: width and height of an anchor -> its name, and the mean size it learnt.
LEARNT_SIZES = {
    (184, 96): ("128^2, 2:1", "188x111"), (368, 192): ("256^2, 2:1", "416x229"),
    (736, 384): ("512^2, 2:1", "768x437"), (128, 128): ("128^2, 1:1", "113x114"),
    (256, 256): ("256^2, 1:1", "261x284"), (512, 512): ("512^2, 1:1", "499x501"),
    (88, 176): ("128^2, 1:2", "70x92"), (176, 352): ("256^2, 1:2", "174x332"),
    (352, 704): ("512^2, 1:2", "355x715"),
}  # fmt: skip
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
        _check_network(cfg, args, args.num_gpus)
        # If shards are left, the run that wrote the file did not get to its end.
        if output.exists() and not args.overwrite and not shards.folder.exists():
            raise UserError(
                f"{output} exists already: add --overwrite, or --output with another name"
            )
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


class Sizes:
    r"""Print the mean size of the proposals that come from each anchor: the paper's Table 1.

        frcnn proposals sizes --config-file frcnn://ablations/zf_unshared.yaml \
            --dataset voc07_test MODEL.WEIGHTS output/ablations/zf_unshared/stage1_final.pth

    The proposals are those of the test, at most 300 per image, clipped to it; sizes are width x
    height in pixels of the network input. The paper's are of ZF with INPUT.MIN_SIZE_TEST 600.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_config_file(parser, "config of the trained network", required=True)
        _add_dataset(parser)
        add_overrides(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> list[list[float]]:
        """Print the table; return a row per anchor, see :func:`mean_sizes`."""
        _setup_logging()
        cfg = setup_cfg(args.config_file, [*args.opts, *AFTER_OVERRIDES])
        _check_network(cfg, args)
        tune_process()
        model: Any = load_model(cfg)
        if not isinstance(model.proposal_generator, PaperRPN):
            raise UserError(
                f"sizes are measured for PaperRPN; {args.config_file} has "
                f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME}"
            )
        rows = mean_sizes(model, build_test_loader(cfg, args.dataset))
        print(f"{args.dataset}: mean size of each anchor's proposals, network-input pixels\n")
        print(format_sizes(rows))
        return rows


@torch.no_grad()
def mean_sizes(model: Any, batches: Iterable[list[dict[str, Any]]]) -> list[list[float]]:
    """Measure the proposals that come from each anchor of a cell, by a model with a PaperRPN.

    Returns:
        per anchor, in the order of the generator: its width and height, the number of proposals,
        and their mean width and height (nan without any); all in network-input pixels.
    """
    rpn = model.proposal_generator
    of_cell = torch.cat(list(rpn.anchor_generator.cell_anchors)).double().cpu()
    kinds = torch.arange(len(of_cell)).split(list(rpn.anchor_generator.num_anchors))
    sums = torch.zeros(len(of_cell), 3, dtype=torch.float64)
    for number, batch in enumerate(batches, start=1):
        images, features = PaperRCNN.features(model, batch)
        maps = [features[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(maps)
        pairs = zip(kinds, maps, strict=True)
        kind_of = torch.cat([kind.repeat(m.shape[-2] * m.shape[-1]) for kind, m in pairs])
        predicted = rpn.predict_anchors(rpn.head_inputs(features), anchors)
        for found in rpn.selections(anchors, *predicted, images.image_sizes):
            boxes = found.boxes.double().cpu()
            values = torch.cat([torch.ones(len(boxes), 1), boxes[:, 2:] - boxes[:, :2]], dim=1)
            sums.index_add_(0, kind_of[found.indices.cpu()], values)
        log_every_n_seconds(logging.INFO, f"{number} batches are done", n=10)
    columns = of_cell[:, 2:] - of_cell[:, :2], sums[:, :1], sums[:, 1:] / sums[:, :1]
    table: list[list[float]] = torch.cat(columns, dim=1).tolist()
    return table


def format_sizes(rows: list[list[float]]) -> str:
    """Return the rows of :func:`mean_sizes` as a table in Markdown, beside the paper's sizes."""
    lines = []
    for width, height, count, *mean in rows:
        name, paper = LEARNT_SIZES.get((round(width), round(height)), ("", ""))
        size = "x".join(f"{side:.0f}" for side in mean) if count else ""
        lines.append([name, f"{width:.0f}x{height:.0f}", f"{count:.0f}", paper, size])
    headers = "anchor size proposals paper ours".split()
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


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


def _check_network(cfg: CfgNode, args: argparse.Namespace, num_processes: int = 1) -> None:
    if not names_detector(cfg):
        raise UserError("whose proposals? Add MODEL.WEIGHTS path/to/model_final.pth")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise UserError(f"{args.config_file} has no region proposal network to make proposals")
    check_datasets([args.dataset], None, skip_bad_images=skips_bad_images(cfg))
    stop_on_errors(PlannedRun(cfg, eval_only=True, num_processes=num_processes))


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
    model = load_model(cfg)
    loader = build_test_loader(cfg, pending)
    inference_on_dataset(model, loader, ShardWriter(shards, SHARD_SIZE, args.dataset))
