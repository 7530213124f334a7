"""From an entry of a data set to an input of the model: read, resized, mirrored."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList

from ...errors import UserError, check_choice
from ...modeling import corner_factors, resize_scale, scale_inclusive
from .image_reader import read_image, read_record

RESIZERS = ("pillow", "opencv")
BOX_SCALINGS = ("continuous", "inclusive", "corners")


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
        """Resize an image, (H, W) or (H, W, C), to float32.

        With ``interp``, a Pillow method that Detectron2 asks for with segmentations, by that.
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
    """A resize that scales inclusive corners: as py does by one factor, or as MATLAB by two."""

    def __init__(self, resize: T.ResizeTransform, factor: float | tuple[float, float]) -> None:
        """Wrap ``resize``; ``factor`` is that of :func:`~frcnn_plugin.modeling.scale_inclusive`."""
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
        back: float | tuple[float, float]
        if isinstance(self.factor, tuple):
            back = (1 / self.factor[0], 1 / self.factor[1])
        else:
            back = 1 / self.factor
        return InclusiveBoxesTransform(self.resize.inverse(), back)


class InclusiveBoxes(T.Augmentation):
    """A ``ResizeShortestEdge`` whose boxes follow by :class:`InclusiveBoxesTransform`."""

    def __init__(self, resize: T.ResizeShortestEdge, kind: str = "inclusive") -> None:
        super().__init__()
        self.resize, self.kind = resize, kind

    def get_transform(self, image: np.ndarray) -> Transform:
        """Choose a size for an image (H, W) or (H, W, C)."""
        resize = self.resize.get_transform(image)
        if isinstance(resize, NoOpTransform):
            return resize
        # The factor that the model, too, concludes from the sizes.
        sizes = (resize.new_h, resize.new_w), (resize.h, resize.w)
        if self.kind == "corners":
            return InclusiveBoxesTransform(resize, corner_factors(sizes[1], sizes[0]))
        factor = resize_scale(*sizes, self.resize.short_edge_length)
        return InclusiveBoxesTransform(resize, factor)


def with_resize(cfg: CfgNode, augmentations: Sequence[Any]) -> list[Any]:
    """Replace the resize in Detectron2's ``augmentations`` by that of ``INPUT.RESIZE``.

    "pillow" is Detectron2's antialiased one, "opencv" py-faster-rcnn's. Boxes follow it as
    ``INPUT.BOX_SCALING`` says.

    Raises:
        UserError: unknown ``INPUT.RESIZE`` or ``INPUT.BOX_SCALING``.
    """
    check_choice("INPUT.RESIZE", cfg.INPUT.RESIZE, RESIZERS)
    check_choice("INPUT.BOX_SCALING", cfg.INPUT.BOX_SCALING, BOX_SCALINGS)
    replaced = []
    for a in augmentations:
        if type(a) is T.ResizeShortestEdge:
            if cfg.INPUT.RESIZE == "opencv":
                kind = "range" if a.is_range else "choice"
                a = FloatResizeShortestEdge(a.short_edge_length, a.max_size, kind)
            if cfg.INPUT.BOX_SCALING != "continuous":
                a = InclusiveBoxes(a, cfg.INPUT.BOX_SCALING)
        replaced.append(a)
    return replaced


def augment(image: T.AugInput, augmentations: T.AugmentationList, name: str) -> TransformList:
    """Transform an image, and return what was done to it.

    Raises:
        UserError: it cannot be resized, as a side would be 0 pixels long; names it.
    """
    height, width, *channels = image.image.shape
    try:
        return augmentations(image)
    except TypeError as error:
        if channels in ([1], [3], [4]):
            raise
        raise UserError(
            f"{name}: INPUT.RESIZE pillow cannot resize images of {channels[0]} channels: "
            "set it to opencv"
        ) from error
    except (ValueError, cv2.error) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name}: {width} x {height} pixels cannot be resized as INPUT.MIN_SIZE_* and "
            f"MAX_SIZE_* say ({reason}): leave the image out, or cut it up"
        ) from error


class ImageMapper(DatasetMapper):
    """Detectron2's mapper with this package's reader of images.

    Of an image that is cropped first, "height" and "width" become those of the crop: the model
    finds by them how much an image was scaled.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Load one entry, which stays as it is; return what Detectron2's mapper does.

        Raises:
            UserError: the image cannot be used, or is of another size than the entry says; names
                the file.
        """
        record = copy.deepcopy(dataset_dict)
        name: str = record["file_name"]
        pixels = read_record(record, self.image_format)
        detection_utils.check_image_size(record, pixels)  # adds a size that is missing
        segmentation = record.pop("sem_seg_file_name", None) if self.is_train else None
        if segmentation is not None:
            segmentation = read_image(segmentation, "L").squeeze(2)
        image = T.AugInput(pixels, sem_seg=segmentation)
        transforms = augment(image, self.augmentations, name)
        first = next(iter(transforms.transforms), None)
        if isinstance(first, CropTransform):
            record["height"], record["width"] = first.h, first.w
        shape = image.image.shape[:2]
        pixels = np.require(image.image.transpose(2, 0, 1), requirements=["C", "W"])
        record["image"] = torch.as_tensor(pixels)
        if segmentation is not None:
            record["sem_seg"] = torch.as_tensor(image.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                record, shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            record.pop("annotations", None)
            record.pop("sem_seg_file_name", None)
        elif "annotations" in record:
            if self.use_instance_mask:  # as Detectron2's loader does with COCO's sets
                objects = record["annotations"]
                record["annotations"] = [o for o in objects if "segmentation" in o]
            self._transform_annotations(record, transforms, shape)
        return record


def build_mapper(cfg: CfgNode, *, is_train: bool) -> ImageMapper:
    """Build the mapper of a config, with the resize of ``INPUT.RESIZE``."""
    options = DatasetMapper.from_config(cfg, is_train)
    options["augmentations"] = with_resize(cfg, options["augmentations"])
    return ImageMapper(**options)


class MirroringMapper:
    """An :class:`ImageMapper` that flips exactly the entries marked ``"mirrored"``.

    ``INPUT.RANDOM_FLIP`` "horizontal" is left out; "vertical" acts at random, as in Detectron2.
    """

    def __init__(self, cfg: CfgNode, *, is_train: bool) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        if cfg.INPUT.RANDOM_FLIP == "horizontal":
            cfg.INPUT.RANDOM_FLIP = "none"
        options = DatasetMapper.from_config(cfg, is_train)
        plain = with_resize(cfg, options.pop("augmentations"))
        # Before a resize of py's pixels or boxes, as in py: neither has mirror symmetry.
        resizes = (FloatResizeShortestEdge, InclusiveBoxes)
        first = [i for i, a in enumerate(plain) if isinstance(a, resizes)] or [len(plain)]
        flip = T.RandomFlip(prob=1.0, horizontal=True)
        mirrored = [*plain[: first[0]], flip, *plain[first[0] :]]
        self._mappers = tuple(
            ImageMapper(**options, augmentations=augmentations)
            for augmentations in (plain, mirrored)
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Load one entry; see :meth:`ImageMapper.__call__`."""
        return self._mappers[bool(record.get("mirrored"))](record)
