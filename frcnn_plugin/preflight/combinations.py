"""Keys of a config that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from inspect import signature

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY

from ..config_files import flat_keys
from ..engine.same_run import NOT_KEYS
from ..modeling.image_pyramid import pyramid_problems
from ..modeling.meta_arch import PaperRCNN, scaling_problems
from ..modeling.proposal_generator.rpn import PaperRPN
from ..modeling.roi_heads.cascade import cascade_problems, is_cascade
from ..modeling.roi_heads.poolers import OPERATORS, with_box_gradient
from ..modeling.roi_heads.roi_heads import CaffeROIHeads
from .rules import BACKBONES, channels_of, typed, usual, value_of

Problems = Iterator[tuple[str, str]]  # each with its fix


def _short_and_long(cfg: CfgNode, which: str) -> Problems:
    least, most = f"INPUT.MIN_SIZE_{which}", f"INPUT.MAX_SIZE_{which}"
    short, long = value_of(cfg, least), value_of(cfg, most)
    shortest = min(short) if which == "TRAIN" else short
    if shortest > long:
        yield (
            f"{most} {long} is smaller than {least} {shortest}: no image would have that size",
            f"Type for example {most} {shortest * 5 // 3}",
        )


def _channel_values(cfg: CfgNode, key: str) -> Problems:
    number, channels = len(value_of(cfg, key)), channels_of(cfg.INPUT.FORMAT)
    if number != channels:
        example = list(value_of(usual(), key))
        yield (
            f"{key} has {number} values, but images in INPUT.FORMAT {cfg.INPUT.FORMAT} have "
            f"{channels}",
            f"Type for example {typed(key, example if channels == 3 else example[:1] * channels)}",
        )


def _ranges(cfg: CfgNode, node: str) -> Problems:
    keys = (f"MODEL.{node}.IOU_THRESHOLDS", f"MODEL.{node}.IOU_LABELS")
    thresholds, labels = (list(value_of(cfg, key)) for key in keys)
    if len(labels) != len(thresholds) + 1:
        yield (
            f"{keys[0]} {thresholds} make {len(thresholds) + 1} ranges, but {keys[1]} {labels} has "
            f"{len(labels)} entries",
            " ".join(["Type for example", *(typed(k, value_of(usual(), k)) for k in keys)]),
        )


def _positives(cfg: CfgNode, node: str) -> Problems:
    if cfg.MODEL[node].get("SAMPLING", "random") != "random":
        return
    size, share = cfg.MODEL[node].BATCH_SIZE_PER_IMAGE, cfg.MODEL[node].POSITIVE_FRACTION
    if int(size * share) < 1:
        keys = (f"MODEL.{node}.BATCH_SIZE_PER_IMAGE", f"MODEL.{node}.POSITIVE_FRACTION")
        yield (
            f"{keys[0]} {size} times {keys[1]} {share} is less than 1: no object would be learnt",
            " ".join(["Type for example", *(typed(k, value_of(usual(), k)) for k in keys)]),
        )


def _anchor_lists(cfg: CfgNode, key: str) -> Problems:
    value, maps = list(value_of(cfg, key)), list(cfg.MODEL.RPN.IN_FEATURES)
    uses_rpn = cfg.MODEL.META_ARCHITECTURE in ("PaperRCNN", "GeneralizedRCNN", "ProposalNetwork")
    if uses_rpn and isinstance(value[0], (list, tuple)) and len(value) not in (1, len(maps)):
        yield (
            f"{key} {value} is for {len(value)} feature maps, but MODEL.RPN.IN_FEATURES names "
            f"{len(maps)}",
            f"Type for example {typed(key, [sorted(x for entry in value for x in entry)])}",
        )


_ROTATED = {
    "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RRPN",
    "MODEL.ROI_HEADS.NAME": "RROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignRotated",
}


def _rotated(cfg: CfgNode) -> Problems:
    rotated = [key for key, name in _ROTATED.items() if value_of(cfg, key) == name]
    if rotated and len(rotated) < len(_ROTATED):
        others = " ".join(f"{k} {name}" for k, name in _ROTATED.items() if k not in rotated)
        first = rotated[0]
        yield (
            f"{first} is {_ROTATED[first]!r}, which is for rotated boxes",
            f"Type {first} {value_of(usual(), first)}; rotated boxes need {others}",
        )


def _parts(cfg: CfgNode) -> Problems:
    """Compare the parts of the model."""
    model = cfg.MODEL
    phased = issubclass(META_ARCH_REGISTRY.get(model.META_ARCHITECTURE), PaperRCNN)
    if model.PAPER_RCNN.PHASE != "joint" and not phased:
        yield (
            f"MODEL.PAPER_RCNN.PHASE is {model.PAPER_RCNN.PHASE!r}, which "
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} does not know",
            "Type MODEL.META_ARCHITECTURE PaperRCNN, or MODEL.PAPER_RCNN.PHASE joint",
        )
    if model.ROI_HEADS.NAME == "Res5ROIHeads" and model.BACKBONE.NAME in BACKBONES:
        yield (
            f"MODEL.ROI_HEADS.NAME is 'Res5ROIHeads', the last block of a ResNet, but "
            f"MODEL.BACKBONE.NAME is {model.BACKBONE.NAME}",
            "Type MODEL.ROI_HEADS.NAME CaffeROIHeads",
        )
    if is_cascade(cfg):
        yield from cascade_problems(cfg)
    yield from pyramid_problems(cfg)
    if model.PROPOSAL_GENERATOR.MIN_SIZE > cfg.INPUT.MIN_SIZE_TEST > 0:
        yield (
            f"MODEL.PROPOSAL_GENERATOR.MIN_SIZE {model.PROPOSAL_GENERATOR.MIN_SIZE} is larger than "
            f"INPUT.MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST}: there would be no proposals",
            "Type MODEL.PROPOSAL_GENERATOR.MIN_SIZE 0",
        )
    yield from scaling_problems(cfg, ours=phased)


def _unknown_to_heads(cfg: CfgNode, *, trains: bool) -> Problems:
    heads = cfg.MODEL.ROI_HEADS
    kind = ROI_HEADS_REGISTRY.get(heads.NAME)
    ours = any(c.__module__.startswith("frcnn_plugin.") for c in kind.__mro__)
    samples = any("sampling" in signature(c.__init__).parameters for c in kind.__mro__)
    for key, neutral, known in (
        ("NMS_METHOD_TEST", "hard", ours),
        ("INTEGER_ROIS", False, issubclass(kind, CaffeROIHeads)),
        ("SAMPLING", "random", samples or not trains),
    ):
        if heads[key] != neutral and not known:
            yield (
                f"MODEL.ROI_HEADS.{key} is {heads[key]!r}, which MODEL.ROI_HEADS.NAME {heads.NAME} "
                "does not know",
                f"Type MODEL.ROI_HEADS.{key} {neutral}, or MODEL.ROI_HEADS.NAME CaffeROIHeads",
            )


def _sampling(cfg: CfgNode) -> Problems:
    heads, box_head = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    if heads.SAMPLING == "hard" and -1 in heads.IOU_LABELS:
        yield (
            f"MODEL.ROI_HEADS.IOU_LABELS is {list(heads.IOU_LABELS)}: with "
            "MODEL.ROI_HEADS.SAMPLING hard no RoI is ignored, as hard background has small IoUs",
            'Type MODEL.ROI_HEADS.IOU_THRESHOLDS "[0.5]" MODEL.ROI_HEADS.IOU_LABELS "[0, 1]"',
        )
    if heads.SAMPLING == "hard" and box_head.USE_SIGMOID_CE:
        yield (
            "MODEL.ROI_HEADS.SAMPLING is 'hard', which chooses by the softmax loss",
            "Type MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, or MODEL.ROI_HEADS.SAMPLING random",
        )


def _proposal_gradient(cfg: CfgNode) -> Problems:
    model, key = cfg.MODEL, "MODEL.PAPER_RCNN.PROPOSAL_GRADIENT"
    value, pooler = model.PAPER_RCNN.PROPOSAL_GRADIENT, "MODEL.ROI_BOX_HEAD.POOLER_TYPE"
    kind, finer = model.ROI_BOX_HEAD.POOLER_TYPE, "MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING"
    has_gradient = kind in OPERATORS and OPERATORS[kind].box_gradient
    others = f"{pooler} {with_box_gradient()[0]}"
    if model.ROI_BOX_HEAD.POOLER_SUPERSAMPLING > 1 and not has_gradient:
        yield (
            f"{finer} is {model.ROI_BOX_HEAD.POOLER_SUPERSAMPLING}, which {pooler} {kind} does not "
            "know",
            f"Type {finer} 1, or for example {others}",
        )
    if value == "none":
        return
    fix = f"or {key} none"
    if not has_gradient:
        yield (
            f"{key} is {value!r}, but {pooler} {kind} has no gradient for boxes",
            f"Type for example {others}, {fix}",
        )
    for name, registry, usable in (
        ("PROPOSAL_GENERATOR", PROPOSAL_GENERATOR_REGISTRY, PaperRPN),
        ("ROI_HEADS", ROI_HEADS_REGISTRY, CaffeROIHeads),
    ):
        part = registry.get(model[name].NAME) if model[name].NAME in registry else None
        if not getattr(part, "box_gradient", False):
            yield (
                f"{key} is {value!r}, but MODEL.{name}.NAME {model[name].NAME} hands no gradient "
                "back",
                f"Type MODEL.{name}.NAME {usable.__name__}, {fix}",
            )
    if not model.RPN.REGRESS:
        yield (
            f"{key} is {value!r}, but with MODEL.RPN.REGRESS False proposals are anchors, which "
            "do not depend on the network",
            f"Type MODEL.RPN.REGRESS True, {fix}",
        )
    if model.RPN.PROPOSAL_GRADIENT_CLIP and cfg.SOLVER.AMP.ENABLED:
        yield (
            "MODEL.RPN.PROPOSAL_GRADIENT_CLIP is on, but with SOLVER.AMP.ENABLED gradients are "
            "scaled",
            "Type MODEL.RPN.PROPOSAL_GRADIENT_CLIP 0.0, or SOLVER.AMP.ENABLED False",
        )


def _training(cfg: CfgNode) -> Problems:
    """Compare what only training reads."""
    size = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not (len(size) == 2 and size[0] <= size[1]):
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {size}: with INPUT.MIN_SIZE_TRAIN_SAMPLING range it is the "
            "smallest and the largest size",
            'Type for example INPUT.MIN_SIZE_TRAIN "(480, 600)"',
        )
    kind, crop = cfg.INPUT.CROP.TYPE, list(cfg.INPUT.CROP.SIZE)
    if cfg.INPUT.CROP.ENABLED and kind == "absolute_range" and crop != sorted(crop):
        yield (
            f"INPUT.CROP.SIZE is {crop}: with INPUT.CROP.TYPE {kind} it is the smallest and the "
            "largest side",
            f'Type INPUT.CROP.SIZE "{sorted(crop)}"',
        )
    whole = all(isinstance(side, int) for side in crop)
    if cfg.INPUT.CROP.ENABLED and kind.startswith("absolute") and not whole:
        yield (
            f"INPUT.CROP.SIZE is {crop}: with INPUT.CROP.TYPE {kind} it is in whole pixels",
            'Type for example INPUT.CROP.SIZE "[300, 300]", or INPUT.CROP.TYPE relative',
        )
    if cfg.INPUT.CROP.ENABLED and kind.startswith("relative") and max(crop) > 1:
        yield (
            f"INPUT.CROP.SIZE is {crop}: with INPUT.CROP.TYPE {kind} it is a share, at most 1",
            'Type for example INPUT.CROP.SIZE "[0.9, 0.9]"',
        )
    weights = list(cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS)
    if weights and not any(weights):
        yield (
            f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is {weights}: no class would be learnt",
            'Type MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS "[]", which counts all the same',
        )
    ours = cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("PaperRPN", "HyperRPN")
    if ours and cfg.MODEL.RPN.SCORES == "random" and cfg.MODEL.PAPER_RCNN.PHASE == "joint":
        yield (
            "MODEL.RPN.SCORES is 'random', which is for tests: the detector would learn on "
            "proposals that are drawn at random",
            "Type MODEL.RPN.SCORES learned",
        )
    norm, frozen = cfg.MODEL.PAPER_VGG.NORM, list(cfg.MODEL.PAPER_RCNN.FREEZE)
    fixed = cfg.FOUR_STEP.ENABLED or any(part.startswith("backbone") for part in frozen)
    if norm not in ("", "FrozenBN") and fixed:
        yield (
            f"MODEL.PAPER_VGG.NORM is {norm!r}, whose running statistics change in each iteration, "
            "but FOUR_STEP.ENABLED or MODEL.PAPER_RCNN.FREEZE keeps the backbone as it is",
            "Type MODEL.PAPER_VGG.NORM FrozenBN",
        )
    solver = cfg.SOLVER
    if solver.NESTEROV and solver.MOMENTUM == 0:
        yield (
            "SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0",
            "Type SOLVER.NESTEROV False, or for example SOLVER.MOMENTUM 0.9",
        )
    if solver.BASE_LR_END > solver.BASE_LR:
        yield (
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END} is above SOLVER.BASE_LR {solver.BASE_LR}",
            "Type SOLVER.BASE_LR_END 0.0",
        )
    if cfg.DATASETS.CLASS_MAP and cfg.TEST.LOSS_PERIOD:
        yield (
            f"TEST.LOSS_PERIOD is {cfg.TEST.LOSS_PERIOD}, but with DATASETS.CLASS_MAP the classes "
            "of DATASETS.TEST are not those that are trained",
            "Type TEST.LOSS_PERIOD 0",
        )
    ours = cfg.DATALOADER.MIRRORED_COPIES or cfg.FOUR_STEP.ENABLED
    known, name = ("TrainingSampler", "RepeatFactorTrainingSampler"), cfg.DATALOADER.SAMPLER_TRAIN
    if ours and name not in known:
        yield (
            f"DATALOADER.SAMPLER_TRAIN is '{name}': with DATALOADER.MIRRORED_COPIES, and in "
            f"four-step training, use one of {', '.join(known)}",
            "Or type DATALOADER.MIRRORED_COPIES False FOUR_STEP.ENABLED False",
        )
    alone = cfg.MODEL.PAPER_RCNN.PHASE == "fast_rcnn" and not cfg.FOUR_STEP.ENABLED
    if alone and not cfg.MODEL.LOAD_PROPOSALS:
        yield (
            "MODEL.PAPER_RCNN.PHASE is 'fast_rcnn', a detector on given proposals, but "
            "MODEL.LOAD_PROPOSALS is False",
            "Type MODEL.LOAD_PROPOSALS True and name files in DATASETS.PROPOSAL_FILES_TRAIN and "
            "DATASETS.PROPOSAL_FILES_TEST, or type MODEL.PAPER_RCNN.PHASE joint",
        )


def _may_differ(cfg: CfgNode) -> Problems:
    known = {name.lower(): name for name in (*flat_keys(cfg), *NOT_KEYS)}
    for name in cfg.RESUME_MAY_DIFFER:
        if name not in known.values():
            close = get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
            hint = " or ".join(known[c] for c in close) or "a key in full, such as SOLVER.BASE_LR"
            yield f"RESUME_MAY_DIFFER: there is no key {name!r}; did you mean {hint}?", ""


def contradictions(cfg: CfgNode, *, trains: bool) -> Problems:
    """Yield what is wrong between keys whose values are allowed one by one."""
    yield from _short_and_long(cfg, "TEST")
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        yield from _channel_values(cfg, key)
    for node in ("RPN", "ROI_HEADS"):
        yield from _ranges(cfg, node)
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        yield from _anchor_lists(cfg, key)
    yield from _rotated(cfg)
    yield from _parts(cfg)
    yield from _unknown_to_heads(cfg, trains=trains)
    if trains:
        yield from _sampling(cfg)
        yield from _short_and_long(cfg, "TRAIN")
        for node in ("RPN", "ROI_HEADS"):
            yield from _positives(cfg, node)
        yield from _training(cfg)
        yield from _proposal_gradient(cfg)
        yield from _may_differ(cfg)
