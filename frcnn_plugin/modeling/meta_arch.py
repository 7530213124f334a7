"""The whole detector."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from ..errors import UserError, check_choice
from ..host import register
from ..layers.conv3x3 import Conv3x3
from ..plain_pickle import load_mat
from .image_pyramid import check_pyramid, pyramid_features
from .image_size import ScaledImageSize, resize_scale
from .proposal_gradient import without_gradient
from .roi_heads.detections import to_original_size
from .roi_heads.roi_features import classify, detect_with_features

PHASES = ("joint", "rpn", "fast_rcnn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@register(META_ARCH_REGISTRY)
class PaperRCNN(GeneralizedRCNN):
    """Detectron2's R-CNN with the scale of its images, training phases and Caffe's iter_size.

    An image takes this path, in training, in evaluation and for callers who want a part of it::

        images, features = model.features(batched_inputs)
        proposals = model.propose(images, features)
        detections = model.detect(images, features, proposals)

    The three also work on a model of Detectron2's GeneralizedRCNN: call
    ``PaperRCNN.features(model, batched_inputs)`` and so on. They neither switch gradients off nor
    cast to ``INFERENCE_DTYPE``; :meth:`forward` does the latter.

    The model works in one of three phases (:attr:`phase`):

    - "joint": approximate joint training (paper section 3.2, py-faster-rcnn "end2end"): all four
      losses at once, proposals treated as fixed boxes. In evaluation it detects.
    - "rpn": trains the RPN alone, without selecting proposals. In evaluation it proposes.
    - "fast_rcnn": trains and evaluates the detector on the proposals in its input.

    The last two are the stages of the paper's alternating training.
    """

    takes_pyramid = True
    phase = ""  # until the constructor has run

    @configurable
    def __init__(
        self,
        *,
        one_by_one: bool = False,
        channels_last: bool = True,
        winograd: bool = True,
        inference_dtype: str = "float32",
        amp_on_cpu: bool = False,
        phase: str = "joint",
        freeze: Sequence[str] = (),
        short_sides: Collection[int] = (),
        inclusive_boxes: bool = False,
        corner_boxes: bool = False,
        mean_image: torch.Tensor | None = None,
        pyramid: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        """Assemble the parts; the keys of ``MODEL.PAPER_RCNN`` describe most arguments.

        Args:
            one_by_one: see ``ONE_BY_ONE``.
            channels_last: see ``CHANNELS_LAST``.
            winograd: see ``WINOGRAD``.
            inference_dtype: see ``INFERENCE_DTYPE``.
            amp_on_cpu: train in bfloat16 by autocast while the model is on the CPU; on CUDA
                Detectron2's AMPTrainer does that.
            phase: see ``PHASE``.
            freeze: see ``FREEZE``.
            short_sides: see :func:`~frcnn_plugin.modeling.image_size.resize_scale`.
            inclusive_boxes: whether boxes in the input were scaled by
                :func:`~frcnn_plugin.modeling.scale_inclusive`, as proposals in the output then are.
            corner_boxes: whether they were scaled by MATLAB's factors (``BOX_SCALING`` "corners"),
                as all boxes in the output then are.
            mean_image: (3, H, W), see ``MEAN_IMAGE``.
            pyramid: see ``PYRAMID``; the ROI heads need a PyramidPooler of the same factors.
            kwargs: arguments of Detectron2's GeneralizedRCNN.

        Raises:
            UserError: unknown phase, dtype or sub-module.
        """
        super().__init__(**kwargs)
        for name in freeze:
            self._freeze(name)
        self._drawn_at = -1  # iteration of the last picture
        check_choice("MODEL.PAPER_RCNN.INFERENCE_DTYPE", inference_dtype, DTYPES)
        self.inference_dtype = DTYPES[inference_dtype]
        self.amp_on_cpu = amp_on_cpu
        for module in self.modules():
            if isinstance(module, Conv3x3):
                module.winograd = winograd
        self.one_by_one = one_by_one
        self.channels_last = channels_last
        self.short_sides = frozenset(short_sides)
        self.inclusive_boxes = inclusive_boxes
        self.corner_boxes = corner_boxes
        self.pyramid = tuple(pyramid)
        # Not in checkpoints, as PIXEL_MEAN is not.
        self.register_buffer("mean_image", mean_image, persistent=False)
        self.set_phase(phase)

    def _freeze(self, name: str) -> None:
        parts = dict(self.named_modules())
        if name not in parts or not name:
            known = ", ".join(part for part in parts if part and part.count(".") < 2)
            raise UserError(
                f"MODEL.PAPER_RCNN.FREEZE names '{name}', which the model does not have; its parts "
                f"are {known}, and those inside them"
            )
        parts[name].requires_grad_(False)

    def set_phase(self, phase: str) -> None:
        """Switch to "joint", "rpn" or "fast_rcnn".

        Raises:
            UserError: unknown phase.
        """
        check_choice("MODEL.PAPER_RCNN.PHASE", phase, PHASES)
        self.phase = phase

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read the arguments of :meth:`__init__`.

        Raises:
            UserError: see :func:`scaling_problems`; the ROI heads do not know ``PYRAMID``.
        """
        ret = {"pyramid": check_pyramid(cfg), **super().from_config(cfg)}
        for problem, fix in scaling_problems(cfg, ours=True):
            raise UserError(f"{problem}. {fix}")
        ret["inclusive_boxes"] = cfg.INPUT.BOX_SCALING == "inclusive"
        ret["corner_boxes"] = cfg.INPUT.BOX_SCALING == "corners"
        for key in (
            "ONE_BY_ONE",
            "CHANNELS_LAST",
            "WINOGRAD",
            "INFERENCE_DTYPE",
            "PHASE",
            "FREEZE",
        ):
            ret[key.lower()] = cfg.MODEL.PAPER_RCNN[key]
        ret["mean_image"] = read_mean_image(cfg.MODEL.PAPER_RCNN.MEAN_IMAGE)
        ret["amp_on_cpu"] = cfg.SOLVER.AMP.ENABLED
        ret["short_sides"] = (*cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST)
        return ret

    def forward(self, batched_inputs: list[dict[str, Any]], **kwargs: Any) -> Any:
        """Return losses in training, else results, as Detectron2's model does.

        Args:
            batched_inputs: as the data loader makes them; "image" is (3, H, W) in
                ``INPUT.FORMAT`` order, 0..255; "height" and "width" are the original size.
            kwargs: what another project's model takes (``branch=`` and the like); if there are any,
                the call is handed on to the class that this one is combined with.

        Returns:
            in training a dict of scalar losses. Otherwise, per image, ``{"instances": Instances}``
            with ``pred_boxes`` in original-image pixels, ``scores`` and ``pred_classes``; in phase
            "rpn" ``{"proposals": Instances}`` with ``proposal_boxes`` in original-image pixels and
            ``objectness_logits``.
        """
        if kwargs:
            return super().forward(batched_inputs, **kwargs)
        with self._autocast():
            if not self.training:
                return self.inference(batched_inputs)
            if not (self.one_by_one and len(batched_inputs) > 1):
                return self._losses(batched_inputs)
            # In a batch, images of different sizes would be padded with zeros; py-faster-rcnn pads
            # none, as its iter_size 2 adds up two passes of one image. One graph holds them all:
            # the gradient is their mean, and DistributedDataParallel sees one forward and backward.
            losses = [self._losses([x]) for x in batched_inputs]
            return {name: torch.stack([x[name] for x in losses]).mean() for name in losses[0]}

    def features(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[ImageList, dict[str, torch.Tensor]]:
        """Compute the feature maps that both networks share.

        Args:
            batched_inputs: see :meth:`forward`; "image" is enough.

        Returns:
            the preprocessed images, whose sizes carry the image scales; and feature name ->
            (N, C, H', W'), where there is a pyramid also of its levels.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        pyramid = getattr(self, "pyramid", ())  # Detectron2's model has none
        if pyramid and self.phase != "rpn":
            features = features | pyramid_features(self, batched_inputs, features, pyramid)
        return images, features

    def propose(self, images: ImageList, features: dict[str, torch.Tensor]) -> list[Instances]:
        """Select proposals by the RPN, from what :meth:`features` returned.

        Returns:
            per image, best first, ``proposal_boxes`` in network-input pixels and
            ``objectness_logits``.
        """
        return self.proposal_generator(images, features, None)[0]

    def detect(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        *,
        with_features: bool = False,
        keep_all: bool = False,
    ) -> list[Instances]:
        """Detect on proposals, or on any boxes.

        Args:
            images: from :meth:`features`.
            features: from :meth:`features`.
            proposals: per image, ``proposal_boxes`` in network-input pixels and, for
                ``with_features``, ``objectness_logits``.
            with_features: add what each detection was made from, see
                :func:`~frcnn_plugin.modeling.detect_with_features`.
            keep_all: return features and scores of every box, in order, instead of detections, see
                :func:`~frcnn_plugin.modeling.classify`.

        Returns:
            per image, ``pred_boxes`` in network-input pixels, ``scores`` and ``pred_classes``, by
            descending score.
        """
        # Proposals from a file have plain sizes. Those of preprocessing carry the images' scales,
        # which py-faster-rcnn's decoding needs.
        proposals = [
            Instances(size, **p.get_fields())
            for p, size in zip(proposals, images.image_sizes, strict=True)
        ]
        if keep_all:
            return classify(self.roi_heads, features, proposals)
        if with_features:
            return detect_with_features(self.roi_heads, features, proposals)
        return self.roi_heads(images, features, proposals, None)[0]

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Run the model; see :meth:`forward` for the outputs of each phase.

        Args:
            batched_inputs: see :meth:`forward`.
            detected_instances: known boxes, as in Detectron2; phase "joint" only.
            do_postprocess: scale boxes to the original image.
        """
        if detected_instances is not None and self.phase == "joint":
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images, features = self.features(batched_inputs)
        if self._is_given_proposals():
            results = self._given_proposals(batched_inputs)
        else:
            results = self.propose(images, features)
        if self.phase != "rpn":
            results = self.detect(images, features, results)
        if not do_postprocess:
            return results
        name = "proposals" if self.phase == "rpn" else "instances"
        inclusive = self.inclusive_boxes and self.phase == "rpn"
        outputs = []
        for result, size, x in zip(results, images.image_sizes, batched_inputs, strict=True):
            height, width = x.get("height", size[0]), x.get("width", size[1])
            result = to_original_size(
                result, height, width, inclusive=inclusive, corners=self.corner_boxes
            )
            outputs.append({name: result})
        return outputs

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # First, as a GPU's work until then has to be waited for.
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        images, features = self.features(batched_inputs)
        draws = self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0
        losses: dict[str, torch.Tensor] = {}
        if self._is_given_proposals():
            proposals = self._given_proposals(batched_inputs)
        else:
            # When the RPN trains alone, its proposals are of no use, except for a picture.
            self.proposal_generator.select_in_training = draws or self.phase != "rpn"
            proposals, losses = self.proposal_generator(images, features, targets)
        if self.phase != "rpn":
            _, detector_losses = self.roi_heads(images, features, proposals, targets)
            # In Detectron2's order, on which the trainer's sum of floats depends.
            losses = {**detector_losses, **losses}
        if draws:
            self.visualize_training(batched_inputs, without_gradient(proposals))
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.inference_dtype
        if self.training:
            # Not on CUDA, where the trainer has its own around this.
            on_cpu = self.device.type == "cpu"
            dtype = torch.bfloat16 if self.amp_on_cpu and on_cpu else torch.float32
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def _is_given_proposals(self) -> bool:
        return self.phase == "fast_rcnn" or self.proposal_generator is None

    def _given_proposals(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        if any("proposals" not in x for x in batched_inputs):
            raise UserError(
                "the detector alone (MODEL.PAPER_RCNN.PHASE fast_rcnn) needs proposals with every "
                "image: set MODEL.LOAD_PROPOSALS True, DATASETS.PROPOSAL_FILES_TRAIN and "
                "DATASETS.PROPOSAL_FILES_TEST"
            )
        return [x["proposals"].to(self.device) for x in batched_inputs]

    def visualize_training(
        self, batched_inputs: list[dict[str, Any]], proposals: list[Instances], *args: Any
    ) -> None:
        """Draw one picture per ``VIS_PERIOD``, even if the images pass one by one.

        Detectron2 sends it to TensorBoard: the first image of the batch at the network's input
        size, with ground truth on the left and the 20 best proposals on the right. A class that
        this one is combined with may take more (Adaptive Teacher's: the branch, each drawn).
        """
        iteration = get_event_storage().iter
        if args or iteration != self._drawn_at:
            self._drawn_at = iteration
            super().visualize_training(batched_inputs, proposals, *args)

    def _move_to_current_device(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing() or torch.jit.is_scripting():
            return super()._move_to_current_device(x)
        return x.to(self.device, non_blocking=True)  # waits only if the memory is not pinned

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, batch, and attach each image's scale and original size to its size.

        An input without "height" and "width" is taken to have its original size, at scale 1.

        Raises:
            UserError: a class that this one is combined with has kept its constructor from running.
        """
        if not self.phase:
            raise UserError(
                f"{type(self).__name__}: the constructor of a class before PaperRCNN does not call "
                "PaperRCNN's, so that its settings are missing: name PaperRCNN first, as in class "
                f"{type(self).__name__}(PaperRCNN, ...)"
            )
        if self.mean_image is not None:
            batched_inputs = [
                {**x, "image": self._without_mean_image(x["image"])} for x in batched_inputs
            ]
        images = super().preprocess_image(batched_inputs)
        if self.channels_last:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        if torch.jit.is_tracing():
            return images
        sizes = []
        for (height, width), x in zip(images.image_sizes, batched_inputs, strict=True):
            original = (x.get("height", height), x.get("width", width))
            scale = resize_scale((height, width), original, self.short_sides)
            sizes.append(ScaledImageSize((height, width), scale, original))
        images.image_sizes = sizes
        return images

    def _without_mean_image(self, image: torch.Tensor) -> torch.Tensor:
        """Subtract the mean image, resized to (3, H, W) of the input, instead of the mean colour.

        The latter is added, as Detectron2 subtracts it next.
        """
        size = image.shape[-2:]
        mean = F.interpolate(self.mean_image[None], size, mode="bilinear", align_corners=False)[0]
        return self._move_to_current_device(image).float() - mean + self.pixel_mean


def scaling_problems(cfg: CfgNode, *, ours: bool) -> Iterator[tuple[str, str]]:
    """Say what ``INPUT.BOX_SCALING`` does not go with, as detections are scaled back alike.

    Yields what is wrong, with the key to change; `ours`: the model is a :class:`PaperRCNN`.
    """
    scaling, model = cfg.INPUT.BOX_SCALING, cfg.MODEL
    if scaling == "corners" and (model.ROI_BOX_HEAD.DECODE_IN_IMAGE or model.MASK_ON or not ours):
        yield (
            "INPUT.BOX_SCALING is 'corners', which goes with MODEL.META_ARCHITECTURE PaperRCNN, "
            "MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE False and MODEL.MASK_ON False only",
            "Type INPUT.BOX_SCALING continuous, or MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE False",
        )
    if scaling == "inclusive" and not (ours and model.ROI_BOX_HEAD.DECODE_IN_IMAGE):
        yield (
            "INPUT.BOX_SCALING is 'inclusive', which goes with MODEL.META_ARCHITECTURE PaperRCNN "
            "and MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE True only",
            "Type INPUT.BOX_SCALING continuous, or MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE True",
        )


def read_mean_image(path: str) -> torch.Tensor | None:
    """Read the file that ``MODEL.PAPER_RCNN.MEAN_IMAGE`` names.

    Returns:
        (3, H, W) float32; None without a name.

    Raises:
        UserError: there is no such file, or no image of three channels in it.
    """
    if not path:
        return None
    key = f"MODEL.PAPER_RCNN.MEAN_IMAGE {path}"
    try:
        if path.endswith(".mat"):
            arrays = {k: v for k, v in load_mat(path).items() if not k.startswith("__")}
            image = arrays.get("mean_image", next(iter(arrays.values()), None))
        else:
            image = np.load(path, allow_pickle=False)
        mean = torch.from_numpy(np.asarray(image, dtype=np.float32))
    except (OSError, ValueError, TypeError, EOFError) as e:
        raise UserError(f"{key} cannot be read ({e}): give an .npy or .mat file") from e
    mean = mean.reshape(1, 1, -1) if mean.numel() == 3 else mean
    if mean.dim() != 3 or mean.shape[2] != 3 or not mean.isfinite().all():
        shape = " x ".join(map(str, mean.shape))
        raise UserError(f"{key} holds an array of {shape}: give one of height x width x 3 numbers")
    return mean.permute(2, 0, 1).contiguous()
