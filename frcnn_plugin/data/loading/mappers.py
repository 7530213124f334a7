"""From an entry of a data set to an input of the model: read, resized, mirrored.

Detectron2's mapper opens files by its own function. It gives the pixels that
:func:`.image_reader.read_bgr` gives, but for grey images of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from ...errors import UserError
from ...modeling import resize_scale, scale_inclusive

RESIZERS = ("pillow", "opencv")
BOX_SCALINGS = ("continuous", "inclusive")


class FloatResizeTransform(T.ResizeTransform):
    """Scale as py-faster-rcnn does: OpenCV's bilinear interpolation of float pixels, by one factor.

    There is no antialiasing, and pixels are not rounded. The originals subtract the mean first. As
    interpolation weights sum to 1, subtracting it afterwards, as the model does, is the same.
    Coordinates go by the ratios of the sides, as in Detectron2; boxes see ``INPUT.BOX_SCALING``.
    """

    def __init__(self, height: int, width: int, factor: float) -> None:
        """Set the size of the image and the factor; OpenCV rounds sizes half to even."""
        super().__init__(height, width, int(np.rint(height * factor)), int(np.rint(width * factor)))
        self.factor = factor

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image.

        Args:
            img: (H, W) or (H, W, C).
            interp: a Pillow method, which Detectron2 asks for with segmentations: resized by it.

        Returns:
            float32 if ``interp`` is None.
        """
        if interp is not None:
            return super().apply_image(img, interp)
        pixels = np.ascontiguousarray(img, dtype=np.float32)
        # Given the factor and no size, OpenCV samples at (x + 0.5) / factor - 0.5.
        resized = cv2.resize(
            pixels, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_LINEAR
        )
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])


class FloatResizeShortestEdge(T.ResizeShortestEdge):
    """Choose a size as Detectron2 does, and resize by :class:`FloatResizeTransform`.

    The longer side is limited if it would be too long *after* rounding, as in py-faster-rcnn.
    """

    def get_transform(self, image: np.ndarray) -> Transform:
        """Choose a size for an image (H, W) or (H, W, C)."""
        height, width = image.shape[:2]
        if self.is_range:
            low, high = self.short_edge_length
            size = np.random.randint(low, high + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        factor = size / min(height, width)
        if np.rint(factor * max(height, width)) > self.max_size:
            factor = self.max_size / max(height, width)
        return FloatResizeTransform(height, width, float(factor))


class InclusiveBoxesTransform(Transform):
    """A resize that scales boxes as py-faster-rcnn does: inclusive corners, all by one factor."""

    def __init__(self, resize: T.ResizeTransform, factor: float) -> None:
        """Wrap ``resize``; ``factor`` is new pixels per old one."""
        super().__init__()
        self.resize, self.factor = resize, factor

    def apply_image(self, img: np.ndarray, *args: Any) -> np.ndarray:
        """Resize an image."""
        return self.resize.apply_image(img, *args)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a map of classes."""
        return self.resize.apply_segmentation(segmentation)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points (N, 2) by the ratios of the sides."""
        return self.resize.apply_coords(coords)

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Scale continuous XYXY boxes (N, 4)."""
        return scale_inclusive(np.asarray(box, dtype=np.float64).reshape(-1, 4), self.factor)

    def inverse(self) -> Transform:
        """Return the way back to the original image."""
        return InclusiveBoxesTransform(self.resize.inverse(), 1 / self.factor)


class InclusiveBoxes(T.Augmentation):
    """A ``ResizeShortestEdge`` whose boxes follow by :class:`InclusiveBoxesTransform`."""

    def __init__(self, resize: T.ResizeShortestEdge) -> None:
        super().__init__()
        self.resize = resize

    def get_transform(self, image: np.ndarray) -> Transform:
        """Choose a size for an image (H, W) or (H, W, C)."""
        resize = self.resize.get_transform(image)
        if isinstance(resize, NoOpTransform):
            return resize
        # The factor that the model, too, concludes from the sizes.
        sizes = (resize.new_h, resize.new_w), (resize.h, resize.w)
        factor = resize_scale(*sizes, self.resize.short_edge_length)
        return InclusiveBoxesTransform(resize, factor)


def with_resize(cfg: CfgNode, augmentations: Sequence[Any]) -> list[Any]:
    """Replace the resize in Detectron2's ``augmentations`` by that of ``INPUT.RESIZE``.

    "pillow" is Detectron2's antialiased one, "opencv" py-faster-rcnn's. Boxes follow it as
    ``INPUT.BOX_SCALING`` says.

    Raises:
        UserError: unknown ``INPUT.RESIZE`` or ``INPUT.BOX_SCALING``.
    """
    for key, values in (("RESIZE", RESIZERS), ("BOX_SCALING", BOX_SCALINGS)):
        if cfg.INPUT[key] not in values:
            raise UserError(f"INPUT.{key} is '{cfg.INPUT[key]}': use one of {', '.join(values)}")
    replaced = []
    for a in augmentations:
        if type(a) is T.ResizeShortestEdge:
            if cfg.INPUT.RESIZE == "opencv":
                kind = "range" if a.is_range else "choice"
                a = FloatResizeShortestEdge(a.short_edge_length, a.max_size, kind)
            if cfg.INPUT.BOX_SCALING == "inclusive":
                a = InclusiveBoxes(a)
        replaced.append(a)
    return replaced


def build_mapper(cfg: CfgNode, *, is_train: bool) -> DatasetMapper:
    """Build Detectron2's mapper with the resize of ``INPUT.RESIZE``."""
    options = DatasetMapper.from_config(cfg, is_train)
    options["augmentations"] = with_resize(cfg, options["augmentations"])
    return DatasetMapper(**options)


class MirroringMapper:
    """Detectron2's mapper, which flips exactly the entries marked ``"mirrored"``."""

    def __init__(self, cfg: CfgNode, *, is_train: bool) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.RANDOM_FLIP = "none"
        plain = with_resize(cfg, detection_utils.build_augmentation(cfg, is_train))
        # Before a resize of py's pixels or boxes, as in py: neither has mirror symmetry.
        resizes = (FloatResizeShortestEdge, InclusiveBoxes)
        first = [i for i, a in enumerate(plain) if isinstance(a, resizes)] or [len(plain)]
        flip = T.RandomFlip(prob=1.0, horizontal=True)
        mirrored = [*plain[: first[0]], flip, *plain[first[0] :]]
        options = DatasetMapper.from_config(cfg, is_train)
        self._mappers: tuple[Callable[[dict[str, Any]], Any], ...] = tuple(
            DatasetMapper(**{**options, "augmentations": augmentations})
            for augmentations in (plain, mirrored)
        )

    def __call__(self, record: dict[str, Any]) -> Any:
        """Load one entry as Detectron2's mapper does."""
        return self._mappers[bool(record.get("mirrored"))](record)
