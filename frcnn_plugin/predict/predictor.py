"""Use a trained detector in Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from PIL import Image

from ..checkpoint.checkpointer import load_model
from ..data.loading.image_reader import image_pixels, read_image
from ..data.loading.mappers import augment, with_resize
from ..errors import UserError, check_choice
from ..modeling import PaperRCNN
from .config import predictor_cfg

# A path, (H, W, 3) uint8, or an image of Pillow, which knows its own order of colours.
ImageLike = str | os.PathLike[str] | npt.NDArray[np.uint8] | Image.Image
Batch = list[dict[str, Any]]


class FasterRCNNPredictor:
    """A detector that is ready to use: weights in, detections in original-image pixels out.

    Detectron2's DefaultPredictor for batches, which needs no data set and, for checkpoints of this
    plugin, no config: preprocessing, class names and config are in the checkpoint.

    Images may have any sizes. Those of the same network size share a forward pass; others are not
    padded to it, so that what is found in an image does not depend on the images around it.

    Attributes:
        cfg: the config in use, frozen.
        class_names: by class index, without background.
        model: in evaluation mode.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        config_file: str = "",
        opts: Sequence[str] = (),
        device: str | None = None,
        score_threshold: float | None = None,
    ) -> None:
        """Build the model and load its weights.

        Args:
            weights: checkpoint, or any file of a whole detector that ``MODEL.WEIGHTS`` takes.
            config_file: YAML, instead of the checkpoint's own config.
            opts: ``KEY VALUE ...`` overrides.
            device: "cpu", "cuda"; None: the config's; without CUDA, the CPU.
            score_threshold: of detections; None: ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.

        Raises:
            UserError: weights that are missing, incomplete, without config, or do not fit it.
        """
        self._weights = os.fspath(weights)
        self.cfg, self.class_names = predictor_cfg(
            self._weights, config_file, opts, device=device, score_threshold=score_threshold
        )
        self.model: Any = load_model(self.cfg)
        sizes = self.cfg.INPUT
        # As in Detectron2's DefaultPredictor.
        edge = T.ResizeShortestEdge([sizes.MIN_SIZE_TEST, sizes.MIN_SIZE_TEST], sizes.MAX_SIZE_TEST)
        self._augmentations = T.AugmentationList(with_resize(self.cfg, [edge]))
        phase = getattr(self.model, "phase", "joint")
        self._proposes = (
            phase != "fast_rcnn" and getattr(self.model, "proposal_generator", None) is not None
        )
        self._classifies = phase != "rpn" and hasattr(self.model, "roi_heads")
        if not (self._proposes or self._classifies):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} has neither proposals "
                "nor ROI heads: a model of the R-CNN family is needed"
            )

    def __call__(self, image: ImageLike, **kwargs: Any) -> Instances:
        """Detect in one image; arguments and result are those of :meth:`predict`."""
        return self.predict([image], **kwargs)[0]

    def __repr__(self) -> str:
        """Return what it was made from, and what it finds."""
        return (
            f"{type(self).__name__}({self._weights!r}: {len(self.class_names)} classes, "
            f"{self.cfg.MODEL.META_ARCHITECTURE}, {self.cfg.MODEL.DEVICE})"
        )

    def draw(
        self,
        image: ImageLike,
        found: Instances | None = None,
        *,
        score_threshold: float = 0.5,
        image_format: str = "BGR",
    ) -> npt.NDArray[np.uint8]:
        """Draw boxes, class names and scores onto an image, as `frcnn predict` does.

        Args:
            image: see :meth:`predict`.
            found: what :meth:`predict` found in it; None: it is looked for.
            score_threshold: lowest score that is drawn.
            image_format: of the array, and of the picture: "BGR" or "RGB".

        Returns:
            (H, W, 3) uint8; small images are enlarged.

        Raises:
            UserError: the image cannot be used.
        """
        from .outputs import annotate_image  # loads Matplotlib

        if found is None:
            found = self(image, image_format=image_format)
        pixels = np.ascontiguousarray(_pixels(image, image_format, "BGR", "the image"))
        kept = found[found.scores >= score_threshold].to("cpu")
        drawn = annotate_image(pixels, kept, self.class_names).pixels()
        return drawn if image_format == "BGR" else np.ascontiguousarray(drawn[:, :, ::-1])

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[ImageLike] | ImageLike,
        *,
        features: bool = False,
        image_format: str = "BGR",
    ) -> list[Instances]:
        """Detect.

        Args:
            images: paths, (H, W, 3) uint8 arrays or images of Pillow, of any sizes; one alone
                counts as a list of it. A model whose images have another number of channels than
                three also takes uint8 arrays of that number, which stay as they are.
            features: give what each detection was made from, too.
            image_format: of arrays, "BGR" or "RGB".

        Returns:
            Per image, on the CPU: ``pred_boxes`` (continuous XYXY, original-image pixels),
            ``scores``, ``pred_classes``, sorted by score. With ``features`` also ``fc7``
            (R, 4096), ``scores_all`` (R, K+1; background last), ``objectness`` (R,) of the proposal
            (0..1), ``proposal_index`` (R,; row of :meth:`propose`), ``proposal_boxes``.

        Raises:
            UserError: an image cannot be used; the checkpoint is not a whole detector.
        """
        self.check_detects()

        def run(batch: Batch) -> list[Instances]:
            if not features:
                return [output["instances"] for output in self.model(batch)]
            inputs, maps, proposals = self._propose(batch)
            found = PaperRCNN.detect(self.model, inputs, maps, proposals, with_features=True)
            return [
                _postprocess(instances, size, x)
                for instances, size, x in zip(found, inputs.image_sizes, batch, strict=True)
            ]

        return self._run(images, image_format, run)

    @torch.no_grad()
    def propose(
        self, images: Sequence[ImageLike] | ImageLike, *, image_format: str = "BGR"
    ) -> list[Instances]:
        """Run the region proposal network alone, on what :meth:`predict` takes.

        The checkpoint may be one of an RPN.

        Returns:
            Per image, on the CPU, by descending score: ``proposal_boxes`` (original-image pixels)
            and ``objectness`` (0..1).

        Raises:
            UserError: an image cannot be used; the checkpoint has no RPN.
        """
        if not self._proposes:
            raise UserError(
                f"{self._weights} detects on proposals that it is given and makes none itself"
            )

        def run(batch: Batch) -> list[Instances]:
            inputs, _, proposals = self._propose(batch)
            return [
                Instances(
                    (x["height"], x["width"]),
                    proposal_boxes=_to_image(p.proposal_boxes, size, x),
                    objectness=p.objectness_logits.float().sigmoid(),
                )
                for p, size, x in zip(proposals, inputs.image_sizes, batch, strict=True)
            ]

        return self._run(images, image_format, run)

    @torch.no_grad()
    def extract(
        self, image: ImageLike, boxes: npt.ArrayLike | torch.Tensor, *, image_format: str = "BGR"
    ) -> Instances:
        """Compute features and class scores of given boxes; keep them all, in their order.

        The boxes are (R, 4) continuous XYXY in original-image pixels, and R may be 0; the other
        arguments are those of :meth:`predict`.

        Returns:
            On the CPU, ``proposal_boxes`` (as given), ``fc7`` (R, 4096) and ``scores_all``
            (R, K+1; background last).

        Raises:
            UserError: a box without area, or outside the image; the checkpoint is an RPN.
        """
        if not self._classifies:
            raise UserError(
                f"{self._weights} is a region proposal network: it has no trained fc7. Give the "
                "checkpoint of a whole detector, such as model_final.pth"
            )

        def run(batch: Batch) -> list[Instances]:
            height, width = batch[0]["height"], batch[0]["width"]
            given = _check_boxes(boxes, height, width)
            inputs, maps = PaperRCNN.features(self.model, batch)
            size = inputs.image_sizes[0]
            to_network = given.new_tensor([size[1] / width, size[0] / height] * 2)
            scaled = Boxes((given * to_network).float().to(self.model.device))
            [result] = PaperRCNN.detect(
                self.model, inputs, maps, [Instances(size, proposal_boxes=scaled)], keep_all=True
            )
            # The boxes as they were given: scaled there and back they would not be quite the same.
            fields = {**result.get_fields(), "proposal_boxes": Boxes(given.float())}
            return [Instances((height, width), **{k: _full(v) for k, v in fields.items()})]

        return self._run([image], image_format, run)[0]

    def check_detects(self) -> None:
        """Make sure that the checkpoint is a whole detector.

        Raises:
            UserError: it is an RPN, or a detector that is given proposals.
        """
        if self._proposes and self._classifies:
            return
        stage = "stages 1 to 3 of a four-step run leave half of a detector; the last one's is "
        if not self._classifies:
            raise UserError(
                f"{self._weights} is a region proposal network and detects nothing: give the "
                f"checkpoint of a whole detector ({stage}model_final.pth). Its proposals: "
                "FasterRCNNPredictor.propose, or `frcnn proposals dump`"
            )
        raise UserError(
            f"{self._weights} is a detector that is given its proposals: give the checkpoint of a "
            f"whole one ({stage}model_final.pth). Features of given boxes: "
            "FasterRCNNPredictor.extract, or `frcnn predict --boxes`; its average precision: "
            "`frcnn train --eval-only`"
        )

    def _propose(self, batch: Batch) -> tuple[ImageList, dict[str, torch.Tensor], list[Instances]]:
        # By the class, because self.model may be one of Detectron2's own.
        inputs, maps = PaperRCNN.features(self.model, batch)
        return inputs, maps, PaperRCNN.propose(self.model, inputs, maps)

    def _run(
        self,
        images: Sequence[ImageLike] | ImageLike,
        image_format: str,
        run: Callable[[Batch], list[Instances]],
    ) -> list[Instances]:
        """Run on the images that share a network size at once; results in the images' order."""
        check_choice("image_format", image_format, ("BGR", "RGB"))
        single = isinstance(images, str | os.PathLike | Image.Image)
        single = single or (isinstance(images, np.ndarray) and images.ndim < 4)
        several: Any = [images] if single else images
        groups: dict[tuple[int, ...], tuple[list[int], Batch]] = {}
        for i, image in enumerate(several):
            entry = self._input(image, image_format, i)
            indices, batch = groups.setdefault(tuple(entry["image"].shape), ([], []))
            indices.append(i)
            batch.append(entry)
        results: dict[int, Instances] = {}
        for indices, batch in groups.values():
            results.update(zip(indices, [found.to("cpu") for found in run(batch)], strict=True))
        return [results[i] for i in range(len(results))]

    def _input(self, image: ImageLike, image_format: str, number: int) -> dict[str, Any]:
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
        channels = len(self.cfg.MODEL.PIXEL_MEAN)
        if channels != 3 and _is_pixels(image, channels):
            array = np.asarray(image)
        else:
            array = _pixels(image, image_format, self.cfg.INPUT.FORMAT, name)
        if array.ndim != 3 or array.shape[2] != channels:
            raise UserError(
                f"{name}: the model takes {channels} channels (MODEL.PIXEL_MEAN), which "
                f"INPUT.FORMAT {self.cfg.INPUT.FORMAT} does not give: give arrays of uint8 "
                f"(height, width, {channels})"
            )
        resized = T.AugInput(array)
        augment(resized, self._augmentations, name)
        tensor = torch.as_tensor(resized.image.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": array.shape[0], "width": array.shape[1]}


def _is_pixels(image: Any, channels: int) -> bool:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not image.size:
        return False
    return image.ndim == 3 and image.shape[2] == channels


def _pixels(image: ImageLike, given: str, wanted: str, name: str) -> npt.NDArray[Any]:
    """Return an image in one of Detectron2's formats; arrays are ``given`` as "BGR" or "RGB"."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, wanted)
    if isinstance(image, Image.Image):
        try:
            return image_pixels(image, wanted, name)
        except OSError as error:  # Pillow decodes a file when its pixels are asked for
            raise UserError(f"{name} cannot be read as an image ({error})") from error
    array = np.asarray(image)
    if not _is_pixels(array, 3):
        raise UserError(
            f"{name} is an array of {array.dtype} {array.shape}: give uint8 (height, width, 3), "
            "an image of Pillow, or the path of a file"
        )
    if given == wanted:
        return array
    if {given, wanted} == {"BGR", "RGB"}:
        return array[:, :, ::-1]
    rgb = Image.fromarray(array if given == "RGB" else array[:, :, ::-1])
    return convert_PIL_to_numpy(rgb, wanted)


def _check_boxes(boxes: Any, height: int, width: int) -> torch.Tensor:
    """Make sure that boxes, (R, 4) XYXY, have area and lie, in part at least, in the image.

    They are returned in float64: float32 would move corners, and so now and then the cells that
    are pooled.
    """
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(1)
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise UserError("boxes must be rows of four numbers, x1 y1 x2 y2")
    tensor = torch.as_tensor(array).reshape(-1, 4)
    x1, y1, x2, y2 = tensor.unbind(1)
    sound = tensor.isfinite().all(dim=1) & (x2 > x1) & (y2 > y1)
    inside = (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
    for ok, problem in (
        (sound, "has no area: boxes are x1 y1 x2 y2 in pixels"),
        (inside, f"lies outside the image, which is {width} x {height} pixels"),
    ):
        if not ok.all():
            i = int((~ok).nonzero()[0])
            raise UserError(f"box {i}, {tensor[i].tolist()}, {problem}")
    return tensor


def _to_image(boxes: Boxes, size: tuple[int, int], entry: dict[str, Any]) -> Boxes:
    """Scale from network-input to original-image pixels, in float64: borders stay borders."""
    tensor = boxes.tensor.double()
    factors = [entry["width"] / size[1], entry["height"] / size[0]] * 2
    return Boxes((tensor * tensor.new_tensor(factors)).float())


def _postprocess(instances: Instances, size: tuple[int, int], entry: dict[str, Any]) -> Instances:
    """Run Detectron2's postprocessing of detections that have ``proposal_boxes``.

    ``instances`` are in pixels of the network input of ``size`` (height, width), and are changed.
    """
    instances.proposal_boxes = _to_image(instances.proposal_boxes, size, entry)
    result = detector_postprocess(instances, entry["height"], entry["width"])
    return Instances(result.image_size, **{k: _full(v) for k, v in result.get_fields().items()})


def _full(value: Any) -> Any:
    """Return in float32 what autocast computed with less."""
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
