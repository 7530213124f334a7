"""Use a trained detector in Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ..checkpoint.checkpointer import AtomicCheckpointer
from ..data.loading.image_reader import read_bgr
from ..data.loading.resize import with_resize
from ..errors import UserError
from ..modeling import PaperRCNN
from .arrays import check_boxes, check_image, full, postprocess, to_image
from .config import predictor_cfg

# A path, or (H, W, 3) uint8.
ImageLike = str | os.PathLike[str] | npt.NDArray[np.uint8]
Batch = list[dict[str, Any]]


class FasterRCNNPredictor:
    """A detector that is ready to use: weights in, detections in original-image pixels out.

    The host's DefaultPredictor for batches, which needs no data set and, for checkpoints of this
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
            device: "cpu", "cuda"; None: the config's, or the CPU if it is not there.
            score_threshold: of detections; None: ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.

        Raises:
            UserError: weights that are missing, incomplete, without config, or do not fit it.
        """
        self._weights = os.fspath(weights)
        self.cfg, self.class_names = predictor_cfg(
            self._weights, config_file, opts, device=device, score_threshold=score_threshold
        )
        self.model = build_model(self.cfg).eval()
        AtomicCheckpointer(self.model, cfg=self.cfg, evaluating=True).load(self.cfg.MODEL.WEIGHTS)
        sizes = self.cfg.INPUT
        # As the host's DefaultPredictor has it.
        edge = T.ResizeShortestEdge([sizes.MIN_SIZE_TEST, sizes.MIN_SIZE_TEST], sizes.MAX_SIZE_TEST)
        (self._resize,) = with_resize(self.cfg, [edge])
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
        """Detections of one image; arguments and result as of :meth:`predict`."""
        return self.predict([image], **kwargs)[0]

    @torch.no_grad()
    def predict(
        self, images: Sequence[ImageLike], *, features: bool = False, image_format: str = "BGR"
    ) -> list[Instances]:
        """Detect.

        Args:
            images: paths, or (H, W, 3) uint8 arrays, of any sizes; empty: no results.
            features: give what each detection was made from, too.
            image_format: of arrays, "BGR" or "RGB".

        Returns:
            per image, on the CPU: ``pred_boxes`` (continuous XYXY, original-image pixels),
            ``scores``, ``pred_classes``, sorted by score. With ``features`` also ``fc7``
            (R, 4096), ``scores_all`` (R, K+1; background last), ``objectness`` (R,) of the proposal
            (0..1), ``proposal_index`` (R,; row of :meth:`propose`), ``proposal_boxes``.

        Raises:
            UserError: an image cannot be used; the checkpoint is no whole detector.
        """
        self.check_detects()
        results: dict[int, Instances] = {}
        for indices, batch in self._batches(images, image_format):
            if not features:
                outputs = [output["instances"] for output in self.model(batch)]
            else:
                inputs, maps = PaperRCNN.features(self.model, batch)
                proposals = PaperRCNN.propose(self.model, inputs, maps)
                outputs = PaperRCNN.detect(self.model, inputs, maps, proposals, with_features=True)
                outputs = [
                    postprocess(output, size, x)
                    for output, size, x in zip(outputs, inputs.image_sizes, batch, strict=True)
                ]
            results.update(zip(indices, [output.to("cpu") for output in outputs], strict=True))
        return [results[i] for i in range(len(results))]

    @torch.no_grad()
    def propose(self, images: Sequence[ImageLike], *, image_format: str = "BGR") -> list[Instances]:
        """Run the region proposal network alone; also for a checkpoint of an RPN.

        Args:
            images: see :meth:`predict`.
            image_format: see :meth:`predict`.

        Returns:
            per image, on the CPU, by descending score: ``proposal_boxes`` (original-image pixels)
            and ``objectness`` (0..1).

        Raises:
            UserError: an image cannot be used; the checkpoint has no RPN of its own.
        """
        if not self._proposes:
            raise UserError(
                f"{self._weights} detects on proposals that it is given and makes none itself"
            )
        results: dict[int, Instances] = {}
        for indices, batch in self._batches(images, image_format):
            inputs, maps = PaperRCNN.features(self.model, batch)
            proposals = PaperRCNN.propose(self.model, inputs, maps)
            for i, p, size, x in zip(indices, proposals, inputs.image_sizes, batch, strict=True):
                boxes = to_image(p.proposal_boxes, size, x)
                objectness = p.objectness_logits.float().sigmoid()
                result = Instances((x["height"], x["width"]), proposal_boxes=boxes)
                result.objectness = objectness
                results[i] = result.to("cpu")
        return [results[i] for i in range(len(results))]

    @torch.no_grad()
    def extract(
        self, image: ImageLike, boxes: npt.ArrayLike | torch.Tensor, *, image_format: str = "BGR"
    ) -> Instances:
        """Features and class scores of given boxes: none is dropped or moved, order is kept.

        Args:
            image: see :meth:`predict`.
            boxes: (R, 4) continuous XYXY in original-image pixels; R may be 0.
            image_format: see :meth:`predict`.

        Returns:
            on the CPU, ``proposal_boxes`` (as given), ``fc7`` (R, 4096) and ``scores_all``
            (R, K+1; background last).

        Raises:
            UserError: a box without area, or outside the image; the checkpoint is an RPN.
        """
        if not self._classifies:
            raise UserError(
                f"{self._weights} is a region proposal network: it has no trained fc7. Give the "
                "checkpoint of a whole detector, such as model_final.pth"
            )
        [(_, batch)] = self._batches([image], image_format)
        height, width = batch[0]["height"], batch[0]["width"]
        given = check_boxes(boxes, height, width)
        inputs, maps = PaperRCNN.features(self.model, batch)
        size = inputs.image_sizes[0]
        to_network = given.new_tensor([size[1] / width, size[0] / height] * 2)
        scaled = Instances(
            size, proposal_boxes=Boxes((given * to_network).float().to(self.model.device))
        )
        [result] = PaperRCNN.detect(self.model, inputs, maps, [scaled], keep_all=True)
        result = result.to("cpu")
        fields = {**result.get_fields(), "proposal_boxes": Boxes(given.float())}
        return Instances((height, width), **{k: full(v) for k, v in fields.items()})

    def check_detects(self) -> None:
        """Make sure that the checkpoint is a whole detector.

        Raises:
            UserError: it is an RPN, or a detector that is given proposals.
        """
        if self._proposes and self._classifies:
            return
        step = "steps 1 to 3 of a four-step run leave half of a detector; the last one's is "
        if not self._classifies:
            raise UserError(
                f"{self._weights} is a region proposal network and detects nothing: give the "
                f"checkpoint of a whole detector ({step}model_final.pth). Its proposals: "
                "FasterRCNNPredictor.propose, or tools/dump_proposals.py"
            )
        raise UserError(
            f"{self._weights} is a detector that is given its proposals: give the checkpoint of a "
            f"whole one ({step}model_final.pth). Features of given boxes: "
            "FasterRCNNPredictor.extract, or --boxes of tools/predict.py; its average precision: "
            "tools/train_net.py --eval-only"
        )

    def _batches(
        self, images: Sequence[ImageLike], image_format: str
    ) -> Iterator[tuple[list[int], Batch]]:
        """Positions and model inputs of the images that have the same network size."""
        if image_format not in ("BGR", "RGB"):
            raise UserError(f"image_format is '{image_format}': use BGR or RGB")
        groups: dict[tuple[int, ...], tuple[list[int], Batch]] = {}
        for i, image in enumerate(images):
            entry = self._input(image, image_format, i)
            indices, batch = groups.setdefault(tuple(entry["image"].shape), ([], []))
            indices.append(i)
            batch.append(entry)
        yield from groups.values()

    def _input(self, image: ImageLike, image_format: str, number: int) -> dict[str, Any]:
        if isinstance(image, str | os.PathLike):
            array, image_format = read_bgr(image), "BGR"
        else:
            array = check_image(image, number)
        if image_format != self.cfg.INPUT.FORMAT:
            array = array[:, :, ::-1]
        resized = self._resize.get_transform(array).apply_image(array)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": array.shape[0], "width": array.shape[1]}
