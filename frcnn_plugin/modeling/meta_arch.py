"""The whole detector."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList

from .proposals import ScaledImageSize


@META_ARCH_REGISTRY.register()
class PaperRCNN(GeneralizedRCNN):
    """The host's R-CNN that also knows the scale of its images, and can mimic Caffe's iter_size.

    Training is approximate joint training (paper section 3.2, py-faster-rcnn "end2end"): all four
    losses at once, proposals treated as fixed boxes.
    """

    @configurable
    def __init__(self, *, one_by_one: bool = False, **kwargs: Any) -> None:
        """Assemble the parts.

        Args:
            one_by_one: see ``MODEL.PAPER_RCNN.ONE_BY_ONE``.
            kwargs: arguments of the host's GeneralizedRCNN.
        """
        super().__init__(**kwargs)
        self.one_by_one = one_by_one

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Arguments of :meth:`__init__`."""
        ret = super().from_config(cfg)
        ret["one_by_one"] = cfg.MODEL.PAPER_RCNN.ONE_BY_ONE
        return ret

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As the host's; in training, images may pass one by one.

        Args:
            batched_inputs: as the data loader makes them; "image" is (3, H, W) in
                ``INPUT.FORMAT`` order, 0..255; "height" and "width" are the original size.

        Returns:
            in training a dict of scalar losses, else per image ``{"instances": Instances}`` with
            ``pred_boxes`` in original-image pixels, ``scores`` and ``pred_classes``.
        """
        if not (self.training and self.one_by_one and len(batched_inputs) > 1):
            return super().forward(batched_inputs)
        # One graph over all images: the gradient is the mean, as with Caffe's accumulation, and
        # DistributedDataParallel sees a single forward and backward.
        losses = [super(PaperRCNN, self).forward([x]) for x in batched_inputs]
        return {name: torch.stack([x[name] for x in losses]).mean() for name in losses[0]}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, batch, and attach each image's scale to its size.

        The scale is network pixels per original pixel along the longer side, where rounding to
        whole pixels weighs least; 1 if the input does not say its original size.
        """
        images = super().preprocess_image(batched_inputs)
        if torch.jit.is_tracing():
            return images
        sizes = []
        for (height, width), x in zip(images.image_sizes, batched_inputs, strict=True):
            side = "width" if width >= height else "height"
            scale = max(height, width) / x[side] if side in x else 1.0
            sizes.append(ScaledImageSize((height, width), scale))
        images.image_sizes = sizes
        return images
