"""Keys that were set, but that the planned run does not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY

from ..config import plugin_cfg
from ..data.loading.train_loader import ignored_keys
from ..four_step.stages import IGNORED_KEYS
from ..modeling.proposal_generator.rpn import PaperRPN
from ..modeling.roi_heads.cascade import is_cascade
from ..modeling.roi_heads.poolers import OPERATORS
from .finding import Finding, Subject
from .planned_run import PlannedRun
from .rules import usual, value_of
from .schedule import find_preset

_CONFIG = Subject("config")


def _four_steps(run: PlannedRun) -> bool:
    return bool(run.cfg.FOUR_STEP.ENABLED) and not run.eval_only


def _no_four_steps(run: PlannedRun) -> bool:
    return not (run.cfg.FOUR_STEP.ENABLED or run.eval_only)


def _own_proposals(run: PlannedRun) -> bool:
    named = run.cfg.MODEL.PROPOSAL_GENERATOR.NAME
    given = named == "PrecomputedProposals" or run.cfg.MODEL.PAPER_RCNN.PHASE == "fast_rcnn"
    return not (given or run.eval_only or run.cfg.FOUR_STEP.ENABLED)


def _is_paper_rpn(run: PlannedRun) -> bool:
    name = run.cfg.MODEL.PROPOSAL_GENERATOR.NAME
    given = name == "PrecomputedProposals"
    return not given and issubclass(PROPOSAL_GENERATOR_REGISTRY.get(name), PaperRPN)


def _samples_rois(run: PlannedRun) -> bool:
    """Tell whether the pooling of boxes reads how many samples a bin has."""
    model = run.cfg.MODEL
    if model.ROI_HEADS.NAME == "RFCNHeads":
        return bool(model.RFCN.POOLER == "align")
    return model.ROI_BOX_HEAD.POOLER_TYPE not in OPERATORS


_MODEL = plugin_cfg().MODEL


def _keys_of(node: str) -> list[str]:
    return [f"MODEL.{node}.{key}" for key in _MODEL[node]]


# When keys are ignored, why, and which, with what to use instead.
_Rule = tuple[Callable[[PlannedRun], bool], str, dict[str, str]]


def _unless(key: str, value: str, ignored: Iterable[str], *, training: bool = False) -> _Rule:
    """Ignore keys unless another has the value; with `training`, where something is trained."""

    def is_other(run: PlannedRun) -> bool:
        return not (training and run.eval_only) and value_of(run.cfg, key) != value

    return is_other, f"because {key} is not {value}", dict.fromkeys(ignored, f"{key} {value}")


_IGNORED: tuple[_Rule, ...] = (
    (
        _four_steps,
        "in four-step training",
        dict.fromkeys(IGNORED_KEYS, "")
        | {
            "SOLVER.MAX_ITER": "FOUR_STEP.ITERS",
            "SOLVER.STEPS": "FOUR_STEP.DROPS",
            "SOLVER.IMS_PER_BATCH": "FOUR_STEP.IMS_PER_BATCH",
            "SOLVER.LR_SCHEDULER_NAME": "FOUR_STEP.DROPS and SOLVER.GAMMA",
            "MODEL.PAPER_RCNN.PHASE": "FOUR_STEP.START_AT and FOUR_STEP.STOP_AFTER",
            "MODEL.LOAD_PROPOSALS": "",
            "MODEL.PAPER_RCNN.PROPOSAL_GRADIENT": "",
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "FOUR_STEP.PRE_NMS_TOPK",
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": "FOUR_STEP.POST_NMS_TOPK",
            "DATASETS.PROPOSAL_FILES_TRAIN": "",
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": "FOUR_STEP.POST_NMS_TOPK",
        },
    ),
    (
        _no_four_steps,
        "because FOUR_STEP.ENABLED is False",
        {
            "FOUR_STEP.ITERS": "SOLVER.MAX_ITER",
            "FOUR_STEP.DROPS": "SOLVER.STEPS",
            "FOUR_STEP.IMS_PER_BATCH": "SOLVER.IMS_PER_BATCH",
            "FOUR_STEP.START_AT": "",
            "FOUR_STEP.STOP_AFTER": "",
            "FOUR_STEP.INITIAL_WEIGHTS": "MODEL.WEIGHTS",
            "FOUR_STEP.PRE_NMS_TOPK": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
            "FOUR_STEP.POST_NMS_TOPK": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
        },
    ),
    (
        lambda run: run.cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler",
        "because DATALOADER.SAMPLER_TRAIN does not repeat images",
        {"DATALOADER.REPEAT_THRESHOLD": "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler"},
    ),
    (
        lambda run: _no_four_steps(run) and not run.cfg.MODEL.LOAD_PROPOSALS,
        "because MODEL.LOAD_PROPOSALS is False",
        {"DATASETS.PROPOSAL_FILES_TRAIN": "MODEL.LOAD_PROPOSALS True"},
    ),
    (
        lambda run: not (run.eval_only or run.cfg.SOLVER.CLIP_GRADIENTS.ENABLED),
        "because SOLVER.CLIP_GRADIENTS.ENABLED is False",
        dict.fromkeys(
            ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
            "SOLVER.CLIP_GRADIENTS.ENABLED True",
        ),
    ),
    (
        lambda run: _no_four_steps(run) and run.cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR",
        "because SOLVER.LR_SCHEDULER_NAME is WarmupCosineLR",
        {"SOLVER.STEPS": "", "SOLVER.GAMMA": ""},
    ),
    _unless(
        "MODEL.ROI_HEADS.SAMPLING",
        "hard",
        ["MODEL.ROI_HEADS.HARD_NMS_THRESH", "MODEL.ROI_HEADS.HARD_NMS_PER_LABEL"],
        training=True,
    ),
    _unless(
        "MODEL.ROI_HEADS.SAMPLING", "random", ["MODEL.ROI_HEADS.POSITIVE_FRACTION"], training=True
    ),
    (
        lambda run: run.cfg.MODEL.ROI_HEADS.NMS_METHOD_TEST == "hard",
        "because MODEL.ROI_HEADS.NMS_METHOD_TEST is hard",
        {
            "MODEL.ROI_HEADS.SOFT_NMS_SIGMA": "MODEL.ROI_HEADS.NMS_METHOD_TEST gaussian",
            "MODEL.ROI_HEADS.SOFT_NMS_MIN_SCORE": "MODEL.ROI_HEADS.NMS_METHOD_TEST linear",
        },
    ),
    (
        lambda run: run.cfg.MODEL.ROI_HEADS.NMS_METHOD_TEST == "gaussian",
        "because MODEL.ROI_HEADS.NMS_METHOD_TEST is gaussian",
        {"MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.ROI_HEADS.NMS_METHOD_TEST linear"},
    ),
    (
        lambda run: run.cfg.MODEL.PAPER_RCNN.PROPOSAL_GRADIENT == "none" and not run.eval_only,
        "because MODEL.PAPER_RCNN.PROPOSAL_GRADIENT is none",
        dict.fromkeys(
            ("MODEL.RPN.PROPOSAL_GRADIENT_CLIP", "MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER"),
            "MODEL.PAPER_RCNN.PROPOSAL_GRADIENT foreground",
        ),
    ),
    (
        lambda run: run.cfg.MODEL.PAPER_RCNN.PHASE != "joint" and _no_four_steps(run),
        "because MODEL.PAPER_RCNN.PHASE is not joint",
        {"MODEL.PAPER_RCNN.PROPOSAL_GRADIENT": "MODEL.PAPER_RCNN.PHASE joint"},
    ),
    (
        _own_proposals,
        "because MODEL.PROPOSAL_GENERATOR.NAME makes proposals",
        {"MODEL.LOAD_PROPOSALS": "MODEL.PAPER_RCNN.PHASE fast_rcnn"},
    ),
    (
        lambda run: not _is_paper_rpn(run),
        "because MODEL.PROPOSAL_GENERATOR.NAME is not PaperRPN",
        dict.fromkeys(
            ("MODEL.RPN.SCORES", "MODEL.RPN.REGRESS"), "MODEL.PROPOSAL_GENERATOR.NAME PaperRPN"
        ),
    ),
    (
        lambda run: run.cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork"),
        "because MODEL.META_ARCHITECTURE is not PaperRCNN",
        {"MODEL.PAPER_RCNN.MEAN_IMAGE": "MODEL.META_ARCHITECTURE PaperRCNN"},
    ),
    (
        lambda run: not _samples_rois(run),
        "by this pooling",
        {"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": ""},
    ),
    (
        lambda run: not run.cfg.DATASETS.TEST,
        "because DATASETS.TEST is empty",
        {"DATASETS.CLASS_MAP": "DATASETS.TEST"},
    ),
    (
        lambda run: run.cfg.MODEL.ROI_HEADS.NAME == "RFCNHeads",
        "by RFCNHeads",
        {
            "MODEL.ROI_BOX_HEAD.NAME": "",
            "MODEL.ROI_BOX_HEAD.FC_DIM": "MODEL.RFCN.CONV_DIM",
            "MODEL.ROI_BOX_HEAD.DROPOUT": "",
            "MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN": "",
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "MODEL.RFCN.POOLER",
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "MODEL.RFCN.GROUP_SIZE",
        },
    ),
    _unless("MODEL.ROI_HEADS.NAME", "RFCNHeads", _keys_of("RFCN")),
    (
        lambda run: not is_cascade(run.cfg),
        "because MODEL.ROI_HEADS.NAME is no cascade",
        dict.fromkeys(
            _keys_of("ROI_BOX_CASCADE_HEAD"), "MODEL.ROI_HEADS.NAME CaffeCascadeROIHeads"
        ),
    ),
    (
        lambda run: is_cascade(run.cfg),
        "by a cascade",
        {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"},
    ),
    _unless("MODEL.BACKBONE.NAME", "HyperVGG16", _keys_of("HYPER")),
    _unless("MODEL.PROPOSAL_GENERATOR.NAME", "HyperRPN", _keys_of("HYPER_RPN")),
    (
        lambda run: run.cfg.MODEL.PROPOSAL_GENERATOR.NAME == "HyperRPN",
        "because HyperRPN has its own head",
        {"MODEL.RPN.HEAD_NAME": "", "MODEL.RPN.CONV_DIMS": "MODEL.HYPER_RPN.CONV_DIM"},
    ),
    (
        lambda run: True,
        "by this package's commands",
        {"TEST.AUG.ENABLED": "", "TEST.PRECISE_BN.ENABLED": ""},
    ),
)


# Values that are as good as none.
_NEUTRAL = {"SOLVER.WARMUP_ITERS": 0, "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.STEPS": ()}
# What four-step training sets itself, which is then in the config that a run saves.
_FOLLOWING = ("SOLVER.MAX_ITER", "SOLVER.STEPS")


def check_ignored_keys(run: PlannedRun) -> Iterator[Finding]:
    """Name each key that the user has set and that will not be read.

    Set means: to another value than Detectron2's or the plugin's default, the paper's, and that of
    the preset the config is based on, which may hold for another kind of run.
    """
    if not run.eval_only:
        yield from (_CONFIG.warning(sentence) for sentence in ignored_keys(run.cfg))
    preset = find_preset(run.config_file)
    others = [plugin_cfg(), usual(), *([preset[1]] if preset else [])]
    for condition, reason, keys in _IGNORED:
        for key, instead in keys.items() if condition(run) else ():
            unset = [value_of(cfg, key) for cfg in others]
            if key in _NEUTRAL:
                unset.append(_NEUTRAL[key])
            if key in _FOLLOWING and _four_steps(run):
                unset.append(value_of(run.cfg, key))
            value = value_of(run.written, key)
            if _as_list(value) not in map(_as_list, unset):
                fix = f"Use {instead}" if instead else f"Leave {key} out"
                yield _CONFIG.warning(f"{key} {value} is ignored {reason}", fix)


def _as_list(value: Any) -> Any:
    return [_as_list(entry) for entry in value] if isinstance(value, (tuple, list)) else value
