"""What the keys of a config may be: one table, this package's keys and Detectron2's that matter.

A value outside would end the run in a traceback, some only after the last iteration; or train
nothing, or make detections worthless, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from ..data.loading.bad_images import CHOICES as ON_BAD_IMAGE
from ..data.loading.mappers import BOX_SCALINGS, RESIZERS
from ..errors import UserError
from ..evaluation.voc import MATCHES, METRICS
from ..modeling.meta_arch import DTYPES, PHASES
from ..modeling.proposal_gradient import AT_BORDER, PROPOSAL_GRADIENTS
from ..modeling.roi_heads.cascade import SCORES_FROM
from ..modeling.roi_heads.detections import NMS_METHODS
from ..modeling.roi_heads.poolers import OPERATORS
from ..modeling.roi_heads.sampling import SAMPLINGS
from .combinations import contradictions
from .finding import Finding, Subject
from .rules import (
    Rule,
    any_of,
    device,
    distinct,
    each,
    exactly,
    expected_result,
    image_format,
    labels,
    number,
    one_of,
    output_folder,
    rising_thresholds,
    text,
    typed,
    usual,
    value_of,
    whole,
)

_CONFIG = Subject("config")

_BLOCKS = ("conv1", "conv2", "conv3", "conv4", "conv5")
# Beginnings of the keys that only training reads, beside those that end in _TRAIN.
_TRAINING = (
    "SOLVER.",
    "FOUR_STEP.",
    "DATALOADER.REPEAT",
    "DATALOADER.SAMPLER",
    "INPUT.CROP",
    "INPUT.RANDOM_FLIP",
)

_COUNT, _COUNT_OR_0 = whole(1), whole(0)
_COUNT_OR_ALL = any_of(exactly(-1), whole(1))
# Of one image that large, the features of conv1 alone are 64 GiB.
_SIDE = whole(0, 2**14)
_POSITIVE = number(0, over=True)
_SHARE = number(0, 1)
_FINITE = number(-math.inf, math.inf, over=True, under=True)
_WEIGHT = number(0, math.inf, under=True)
_FINITE_POSITIVE = number(0, math.inf, over=True, under=True)
_WEIGHTS_OF_BOX = each(_FINITE_POSITIVE, "four numbers more than 0", count=4)
_CHANNELS = whole(1, 2**14)
_WIDTHS = each(_CHANNELS, f"five whole numbers of channels, 1 or more, at most {2**14}", count=5)
_BLOCK_NAMES = distinct(each(one_of(*_BLOCKS), f"one or more of {', '.join(_BLOCKS)}"))
_FEATURES = distinct(each(lambda name: "", "one or more names of features"))
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_SIZES = any_of(
    each(_POSITIVE, ""),
    each(each(_POSITIVE, ""), "numbers more than 0, in one list or one per map"),
)

ALLOWED: dict[str, Rule] = {
    "VERSION": exactly(2),
    "OUTPUT_DIR": output_folder,
    "RESUME_MAY_DIFFER": each(text, "names of keys, as a message has them", or_none=True),
    "SEED": number(-math.inf, 4_000_000_000),
    "INPUT.FORMAT": image_format,
    "INPUT.RESIZE": one_of(*RESIZERS),
    "INPUT.BOX_SCALING": one_of(*BOX_SCALINGS),
    "INPUT.MIN_SIZE_TRAIN": each(
        _SIDE, f"one or more whole numbers of pixels, at most {2**14}, such as (600,)"
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MIN_SIZE_TEST": _SIDE,  # 0: not resized
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(_POSITIVE, "two numbers more than 0", count=2),
    "DATASETS.TRAIN": each(text, "names of data sets", or_none=True),
    "DATASETS.TEST": each(text, "names of data sets", or_none=True),
    "DATASETS.CLASS_MAP": each(
        each(text, "", count=2), "pairs of names, such as [[airplane, aeroplane]]", or_none=True
    ),
    "DATASETS.PROPOSAL_FILES_TRAIN": each(text, "names of files", or_none=True),
    "DATASETS.PROPOSAL_FILES_TEST": each(text, "names of files", or_none=True),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _COUNT,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _COUNT,
    "DATALOADER.ON_BAD_IMAGE": one_of(*ON_BAD_IMAGE),
    "DATALOADER.NUM_WORKERS": _COUNT_OR_0,
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "DATALOADER.SAMPLER_TRAIN": one_of(
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler", "WeightedCategoryTrainingSampler",
    ),
    "MODEL.DEVICE": device,
    "MODEL.META_ARCHITECTURE": one_of(registry=META_ARCH_REGISTRY),
    "MODEL.PIXEL_MEAN": each(_FINITE, "one number per channel"),
    "MODEL.PIXEL_STD": each(_FINITE_POSITIVE, "one number more than 0 per channel"),
    "MODEL.BACKBONE.NAME": one_of(registry=BACKBONE_REGISTRY),
    "MODEL.PAPER_VGG.CHANNELS": _WIDTHS,
    "MODEL.PAPER_VGG.OUT_FEATURES": _BLOCK_NAMES,
    "MODEL.PAPER_VGG.CONV5_DILATION": whole(1, 2),
    "MODEL.PAPER_VGG.NORM": one_of("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "FrozenBN"),
    "MODEL.PAPER_ZF.CHANNELS": _WIDTHS,
    "MODEL.PAPER_ZF.OUT_FEATURES": _BLOCK_NAMES,
    "MODEL.HYPER.IN_FEATURES": _BLOCK_NAMES,
    "MODEL.HYPER.CHANNELS": _CHANNELS,
    "MODEL.HYPER.KERNEL": any_of(*map(exactly, (1, 3, 5, 7))),
    "MODEL.HYPER.NORM": one_of("LRN", ""),
    "MODEL.HYPER.LRN": each(_FINITE_POSITIVE, "size, alpha and beta, each more than 0", count=3),
    "MODEL.HYPER.DECONV_KERNEL": any_of(*map(exactly, (4, 6, 8, 12, 16))),
    "MODEL.HYPER_RPN.POOLER_RESOLUTION": whole(1, 64),
    "MODEL.HYPER_RPN.CONV_DIM": _CHANNELS,
    "MODEL.HYPER_RPN.FC_DIM": _CHANNELS,
    "MODEL.PAPER_RCNN.INFERENCE_DTYPE": one_of(*DTYPES),
    "MODEL.PAPER_RCNN.PHASE": one_of(*PHASES),
    "MODEL.PAPER_RCNN.PYRAMID": distinct(
        each(number(0.01, 16), "numbers from 0.01 to 16, such as [0.5, 1.0, 2.0]", or_none=True)
    ),
    "MODEL.PAPER_RCNN.PROPOSAL_GRADIENT": one_of(*PROPOSAL_GRADIENTS),
    "MODEL.PROPOSAL_GENERATOR.NAME": one_of(
        "PrecomputedProposals", registry=PROPOSAL_GENERATOR_REGISTRY
    ),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _COUNT_OR_0,
    "MODEL.ANCHOR_GENERATOR.NAME": one_of(registry=ANCHOR_GENERATOR_REGISTRY),
    "MODEL.ANCHOR_GENERATOR.SIZES": _SIZES,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _SIZES,
    "MODEL.ANCHOR_GENERATOR.OFFSET": number(0, 1, under=True),
    "MODEL.RPN.HEAD_NAME": one_of(registry=RPN_HEAD_REGISTRY),
    "MODEL.RPN.IN_FEATURES": _FEATURES,
    "MODEL.RPN.CONV_DIMS": each(
        any_of(exactly(-1), _CHANNELS), "one or more whole numbers of channels, or -1"
    ),
    "MODEL.RPN.IOU_THRESHOLDS": rising_thresholds,
    "MODEL.RPN.IOU_LABELS": labels,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": number(0, 1, over=True),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _WEIGHTS_OF_BOX,
    "MODEL.RPN.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.RPN.LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.LOSS_NORM": one_of("samples", "locations"),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT_OR_ALL,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _COUNT_OR_ALL,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.MIN_SIZE_IMAGE": number(0, 1000),
    "MODEL.RPN.SCALE_CLAMP": _POSITIVE,
    "MODEL.RPN.DECODE_GROWTH": _WEIGHT,
    "MODEL.RPN.PROPOSAL_GRADIENT_CLIP": _WEIGHT,
    "MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER": one_of(*AT_BORDER),
    "MODEL.RPN.SCORES": one_of("learned", "random"),
    "MODEL.ROI_HEADS.NAME": one_of(registry=ROI_HEADS_REGISTRY),
    "MODEL.ROI_HEADS.IN_FEATURES": _FEATURES,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": rising_thresholds,
    "MODEL.ROI_HEADS.IOU_LABELS": labels,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": number(0, 1, over=True),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": number(-math.inf, 1, under=True),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.RFCN.CONV_DIM": _CHANNELS,
    "MODEL.RFCN.GROUP_SIZE": whole(1, 64),
    "MODEL.RFCN.BACKBONE_FC": one_of("none", "reduced"),
    "MODEL.RFCN.POOLER": one_of("caffe", "align"),
    "MODEL.ROI_HEADS.NMS_METHOD_TEST": one_of(*NMS_METHODS),
    "MODEL.ROI_HEADS.SOFT_NMS_SIGMA": _FINITE_POSITIVE,
    "MODEL.ROI_HEADS.SOFT_NMS_MIN_SCORE": number(0, 1, under=True),
    "MODEL.ROI_HEADS.SAMPLING": one_of(*SAMPLINGS),
    "MODEL.ROI_HEADS.HARD_NMS_THRESH": number(0, 1, over=True),
    "MODEL.ROI_HEADS.TOPK_PER_CLASS_TEST": _COUNT_OR_0,
    "MODEL.ROI_BOX_HEAD.NAME": one_of("", registry=ROI_BOX_HEAD_REGISTRY),
    "MODEL.ROI_BOX_HEAD.FC_DIM": number(1, 2**16),
    "MODEL.ROI_BOX_HEAD.DROPOUT": number(0, 1, under=True),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": one_of(
        *OPERATORS, "ROIAlign", "ROIAlignV2", "ROIAlignRotated"
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": number(1, 64),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": whole(0, 64),
    "MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING": whole(1, 8),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _WEIGHTS_OF_BOX,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.SCALE_CLAMP": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.DECODE_GROWTH": _WEIGHT,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": each(_SHARE, "one or more numbers from 0 to 1"),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": each(
        _WEIGHTS_OF_BOX, "lists of four numbers more than 0"
    ),
    "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS": each(_WEIGHT, "numbers of 0 or more"),
    "MODEL.ROI_BOX_CASCADE_HEAD.SCORES_FROM": one_of(*SCORES_FROM),
    "MODEL.ROI_BOX_CASCADE_HEAD.DROP_IOU": _SHARE,
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": _COUNT_OR_0,
    "SOLVER.STEPS": each(_COUNT, "whole numbers of iterations, 1 or more", or_none=True),
    "SOLVER.BASE_LR": number(0, math.inf, over=True, under=True),
    "SOLVER.MOMENTUM": number(0, 1, under=True),
    "SOLVER.GAMMA": number(0, 1, over=True),
    "SOLVER.WEIGHT_DECAY": _SHARE,
    "SOLVER.WEIGHT_DECAY_NORM": _SHARE,
    "SOLVER.WEIGHT_DECAY_BIAS": any_of(exactly(None), _SHARE),
    "SOLVER.BIAS_LR_FACTOR": number(0, 100),
    "SOLVER.BASE_LR_END": _WEIGHT,
    "SOLVER.NUM_DECAYS": _COUNT,
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _COUNT_OR_0,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.CHECKPOINTS_KEPT": _COUNT_OR_0,
    "FOUR_STEP.PRE_NMS_TOPK": _COUNT_OR_ALL,
    "FOUR_STEP.POST_NMS_TOPK": _COUNT,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT_OR_ALL,
    "TEST.EXPECTED_RESULTS": each(
        expected_result, "lists [task, metric, value, tolerance]", or_none=True
    ),
    "TEST.DETECTIONS_PER_CLASS": _COUNT_OR_0,
    "TEST.LOSS_PERIOD": _COUNT_OR_0,
    "TEST.VOC_MATCH": one_of(*MATCHES),
    "TEST.VOC_METRIC": one_of(*METRICS),
}  # fmt: skip


def check_values(cfg: CfgNode, *, trains: bool = True) -> Iterator[Finding]:
    """Compare a config with the table, and then, if all values are allowed, keys with each other.

    What only training reads is looked at if the config ``trains``.

    Yields:
        An error per wrong key, with its value and the override to type.
    """
    good = True
    for key, rule in ALLOWED.items():
        if not trains and (key.startswith(_TRAINING) or "_TRAIN" in key):
            continue
        value = value_of(cfg, key)
        if problem := rule(value):
            good = False
            shown = repr(value) if isinstance(value, str) else str(value)
            yield _CONFIG.error(f"{key} is {shown}: {problem}", _fix(key, value, rule))
    if good:
        for problem, fix in contradictions(cfg, trains=trains):
            yield _CONFIG.error(problem, fix)


def _fix(key: str, value: Any, rule: Rule) -> str:
    is_percent = rule(1.5) and isinstance(value, (int, float)) and 2 <= value <= 100
    if is_percent and not rule(value / 100):
        return f"Type for example {typed(key, value / 100)}"
    example = value_of(usual(), key)
    words = ("use one of", "give", "write")
    if rule(value).startswith(words) or rule(example) or example in ("", (), []):
        return ""
    return f"Type for example {typed(key, example)}"


def stop_on_bad_values(cfg: CfgNode, *, trains: bool = False) -> None:
    """Check a config that something is about to be computed with; as :func:`check_values`.

    Raises:
        UserError: all errors, one per line.
    """
    found = [finding.sentence for finding in check_values(cfg, trains=trains)]
    if found:
        raise UserError("\nerror: ".join(found))
