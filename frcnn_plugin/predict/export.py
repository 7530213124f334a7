"""Write a detector to a file of what one example image went through: TorchScript, or ONNX."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.export.torchscript_patch import patch_builtin_len
from torch import nn

from .. import __version__
from ..errors import UserError
from ..modeling import PaperRCNN
from ..modeling.image_size import ScaledImageSize
from ..modeling.roi_heads.detections import to_original_size
from .predictor import FasterRCNNPredictor

# Format -> suffix of its files.
FORMATS = {"torchscript": ".torchscript", "onnx": ".onnx"}
# From 16 on ONNX has Detectron2's RoIAlign; PyTorch's exporter of traces ends with 20.
OPSETS, OPSET = range(16, 21), 17
# How far a file may be from its detector: pixels of the original image, and score.
TOLERANCES = (0.1, 0.001)
_TRIES = 3  # generated images of a size, of which one is to agree

INPUTS = {
    "image": "float32 (C, height, width): resized, values from 0 to 255, no mean subtracted",
    "original_size": "float32 (2,): height and width of the image before it was resized",
}
OUTPUTS = {
    "boxes": "float32 (n, 4): x1, y1, x2, y2 in pixels of the original image, from 0 to its width "
    "or height",
    "scores": "float32 (n,): descending",
    "classes": "int64 (n,): index in the list of classes",
}
MASKS = {"masks": "float32 (n, M, M): probabilities on a grid over the box"}


class ExportedDetector(nn.Module):
    """A detector of the R-CNN family as a function from tensors to tensors, for tracing."""

    def __init__(self, model: nn.Module) -> None:
        """Take the model, in evaluation mode."""
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, original_size: Any) -> tuple[torch.Tensor, ...]:
        """Map :data:`INPUTS` to :data:`OUTPUTS`, with :data:`MASKS` if the model has any."""
        model: Any = self.model
        images, features = PaperRCNN.features(model, [{"image": image}])
        size, original = images.image_sizes[0], original_size.unbind()
        if isinstance(model, PaperRCNN):  # Detectron2's own model has no scale
            scale = traced_scale(size, original_size, model.short_sides)
            images.image_sizes = [ScaledImageSize(tuple(size), scale, original)]
        proposals = PaperRCNN.propose(model, images, features)
        [found] = PaperRCNN.detect(model, images, features, proposals)
        masks = found.get_fields().pop("pred_masks", None)
        if masks is not None:  # under this name they would be pasted into the image
            found.masks = masks[:, 0]
        corners = getattr(model, "corner_boxes", False)
        fields = to_original_size(found, *original, corners=corners).get_fields()
        return (fields.pop("pred_boxes").tensor, *fields.values())


def traced_scale(size: Any, original: Any, short_sides: Collection[int]) -> Any:
    """Compute ``resize_scale`` of modeling/image_size.py by operators; sizes are (2,) tensors."""
    size, original = size.double(), original.double()
    scale = size.min() / original.min()
    known = torch.stack([size.min() == side for side in (*short_sides, -1)]).any()
    fits = known & ((scale * original.max() - size.max()).abs() <= 0.5)
    return torch.where(fits, scale, size.max() / original.max()).float()


def check_exports(cfg: CfgNode, form: str) -> None:
    """Raise a UserError if a file of one of the :data:`FORMATS` could not do as the config says."""
    wanted: dict[str, Any] = {
        "PAPER_RCNN.INFERENCE_DTYPE": "float32",
        "PAPER_RCNN.PYRAMID": [],
        "ROI_HEADS.NMS_METHOD_TEST": "hard",
        "ROI_HEADS.TOPK_PER_CLASS_TEST": 0,
        "RPN.SCORES": "learned",
        "PROPOSAL_GENERATOR.MIN_SIZE": 0,
        "KEYPOINT_ON": False,
    }
    if form == "onnx" and cfg.MODEL.ROI_HEADS.NAME == "RFCNHeads":
        wanted["RFCN.POOLER"] = "caffe"
    for key, usable in wanted.items():
        value = reduce(getattr, key.split("."), cfg.MODEL)
        if value != usable:
            key = f"MODEL.{key}"
            raise UserError(f"{key} is {value}, which {form} cannot do: type {key} '{usable}'")


def export(cfg: CfgNode, model: nn.Module, form: str, opset: int = OPSET) -> bytes:
    """Trace a detector that is on the CPU; return the content of a file. It can train no more.

    Raises:
        UserError: a part of the detector, perhaps another project's, cannot be exported.
    """
    buffer = io.BytesIO()
    detector = ExportedDetector(model).eval().requires_grad_(False)  # nor can the file
    example = inputs_of(generated(cfg, 225, 289))
    names = [*OUTPUTS, *(MASKS if cfg.MODEL.MASK_ON else ())]
    options: dict[str, Any] = {"f": buffer, "opset_version": opset, "output_names": names}
    options["input_names"] = list(INPUTS)
    options["dynamic_axes"] = {"image": {1: "height", 2: "width"}} | {k: {0: "n"} for k in names}
    trunc = lambda g, x: g.op("Mul", g.op("Sign", x), g.op("Floor", g.op("Abs", x)))  # noqa: E731
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # from PyTorch 2.5 on
        options["dynamo"] = False
    try:
        # The warnings name numbers that become constants; `compare` tells whether that matters.
        with torch.no_grad(), patch_builtin_len(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form == "torchscript":
                torch.jit.save(torch.jit.trace(detector, example, check_trace=False), buffer)
            else:
                torch.onnx.register_custom_op_symbolic("aten::trunc", trunc, OPSETS[0])
                torch.onnx.export(detector, example, **options)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"this detector cannot be exported to {form}: {reason}") from error
    return buffer.getvalue()


def description(predictor: FasterRCNNPredictor, form: str, opset: int = OPSET) -> dict[str, Any]:
    """Return what users of the file have to know, for a JSON file beside it."""
    cfg, model = predictor.cfg, predictor.cfg.MODEL
    return {
        "format": form,
        "opset": opset if form == "onnx" else None,
        "classes": predictor.class_names,
        "inputs": INPUTS,
        "outputs": OUTPUTS | (MASKS if model.MASK_ON else {}),
        "preprocessing": {
            "channel_order": cfg.INPUT.FORMAT,
            "resize": cfg.INPUT.RESIZE if cfg.INPUT.MIN_SIZE_TEST else "none",
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "longest_side": cfg.INPUT.MAX_SIZE_TEST,
            "mean_used_inside": model.PAPER_RCNN.MEAN_IMAGE or model.PIXEL_MEAN,
            "std_used_inside": model.PIXEL_STD,
        },
        "thresholds": {
            "score": model.ROI_HEADS.SCORE_THRESH_TEST,
            "nms": model.ROI_HEADS.NMS_THRESH_TEST,
            "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        },
        "versions": {"frcnn_plugin": __version__, "torch": torch.__version__},
    }


def load(content: bytes, form: str) -> Callable[..., Sequence[Any]]:
    """Return an exported detector as a function of :data:`INPUTS` that returns arrays of NumPy."""
    if form == "torchscript":
        module = torch.jit.load(io.BytesIO(content))
        return lambda *inputs: [output.numpy() for output in module(*inputs)]
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda *x: session.run(None, dict(zip(INPUTS, map(np.asarray, x), strict=True)))


def generated(
    cfg: CfgNode, height: float, width: float, scale: float = 1.0, *, number: int = 0
) -> dict[str, Any]:
    """Make an image of coloured squares, resized by ``scale``, as an entry of a batch.

    Each ``number`` is another one.
    """
    height, width = round(height), round(width)
    shape = (len(cfg.MODEL.PIXEL_MEAN), height // 8 + 1, width // 8 + 1)
    coarse = torch.rand(shape, generator=torch.Generator().manual_seed(height + number)) * 255
    fine = coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)[:, :height, :width]
    return {"image": fine, "height": round(height / scale), "width": round(width / scale)}


def inputs_of(entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :data:`INPUTS` for an entry of a batch."""
    return entry["image"], torch.tensor([entry["height"], entry["width"]], dtype=torch.float32)


def compare(
    predictor: FasterRCNNPredictor, content: bytes, form: str, paths: Sequence[Path] = ()
) -> Iterator[str]:
    """Compare an exported detector with its original in images; say of each how far they differ.

    By default two images are generated, of other sizes than the example's. Two small ones follow,
    in which there are few proposals, or none.

    Raises:
        UserError: a difference exceeds the :data:`TOLERANCES`.
    """
    exported, cfg = load(content, form), predictor.cfg
    short = cfg.INPUT.MIN_SIZE_TEST or 600
    sizes: dict[str, tuple[float, ...]] = {
        "generated, upright": (1.4 * short + 1, short, 1.6),
        "generated, wide": (short, 1.6 * short + 1, 0.75),
        "generated, small": (47, 61),
        "generated, smallest": (47, 61, 8),
    }
    # Up to three of each size: where two RoIs read the same cells, rounding decides which one
    # suppresses the other, and then detections differ though nothing is wrong.
    images: dict[str, list[Callable[[], Any]]] = {
        str(path): [partial(predictor._input, path, "BGR", 0)] for path in paths
    }
    for name, size in list(sizes.items())[2 if paths else 0 :]:
        images[name] = [partial(generated, cfg, *size, number=n) for n in range(_TRIES)]
    limits = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    for name, makers in images.items():
        for make in makers:
            entry = make()
            with torch.no_grad():
                found = predictor.model([entry])[0]["instances"]
            ours = [x.numpy() for x in (found.pred_boxes.tensor, found.scores, found.pred_classes)]
            try:
                gaps = _largest(ours, exported(*inputs_of(entry))[:3], *limits)
            except Exception as error:  # ONNX Runtime has its own
                reason = str(error).strip().rpartition("\n")[2]
                raise UserError(f"not written: {name}: the file does not run: {reason}") from error
            text = "{:.2g} px at most, scores by {:.2g}".format(*gaps)
            text = f"{name}: {len(found)} detections; boxes differ by {text}"
            if all(gap <= most for gap, most in zip(gaps, TOLERANCES, strict=True)):
                break
        else:
            raise UserError(f"not written: {text}; the limits are {TOLERANCES}")
        yield text


def _largest(ours: Any, theirs: Any, threshold: float, limit: int) -> list[float]:
    """Return the largest differences of boxes (n, 4) and scores (n,), by pairs of one class (n,).

    Left out are detections so close to the threshold, or to the last of a full list, that rounding
    decides on them.
    """
    worst = np.zeros(2)
    for one, other in ((ours, theirs), (theirs, ours)):
        last = one[1].min() if 0 < limit <= len(one[1]) else 0
        sure = one[1] >= max(threshold, last) + TOLERANCES[1]
        boxes, scores, classes = (field[sure, None] for field in one)
        gaps = np.stack([np.abs(boxes - other[0]).max(axis=2), np.abs(scores - other[1])])
        gaps[:, classes != other[2]] = np.inf
        # The last column is for detections that have no counterpart.
        gaps = np.pad(gaps, ((0, 0), (0, 0), (0, 1)), constant_values=np.inf)
        nearest = (gaps / np.reshape(TOLERANCES, (2, 1, 1))).sum(axis=0).argmin(axis=1)
        gaps = gaps[:, np.arange(len(nearest)), nearest]
        worst = np.maximum(worst, gaps.max(axis=1, initial=0))
    return [float(gap) for gap in worst]
