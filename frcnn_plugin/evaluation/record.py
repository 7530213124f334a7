"""What an evaluation leaves for the training report: curves per class, some images, as JSON.

Small on purpose: a curve has one point per object found, and only a few images are kept. All
detections are in the files in the VOC server's format, or in COCO's.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

from ..atomic_files import reading_json, write_json

EVALUATION_FILE = "evaluation.json"  # in OUTPUT_DIR/inference/<data set>


@dataclass(frozen=True)
class ClassRecord:
    """One class of an `EvaluationRecord`.

    Attributes:
        name: of the class.
        num_objects: objects to be found.
        num_detections: detections of the class.
        ap50: AP at IoU 0.5 in percent, by metric; empty if there are no objects.
        recall: in [0, 1], behind every object found, best score first, at IoU 0.5.
        precision: in [0, 1], likewise.
    """

    name: str
    num_objects: int
    num_detections: int
    ap50: dict[str, float]
    recall: list[float]
    precision: list[float]


@dataclass(frozen=True)
class BoxRecord:
    """One box of an image.

    Attributes:
        box: continuous XYXY, original-image pixels.
        label: name of the class.
        outcome: of an object "found", "missed" or "ignored" (difficult, crowd); of a detection
            "right", "wrong" or "ignored" (on such an object).
        score: of a detection in [0, 1]; None for an object.
    """

    box: list[float]
    label: str
    outcome: str
    score: float | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image whose boxes are kept.

    Attributes:
        image_id: its id.
        file_name: path of the image; "" if the data set does not say.
        width: pixels; 0 if the data set does not say.
        height: pixels; 0 if the data set does not say.
        f1: harmonic mean of precision and recall of its confident detections, in [0, 1].
        boxes: objects, then confident detections.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    f1: float
    boxes: list[BoxRecord]


@dataclass(frozen=True)
class EvaluationRecord:
    """Outcome of one evaluation of a detector.

    Attributes:
        dataset: name of the data set.
        metric: the headline, such as "11point".
        match: rule of the IoU, ">=" or ">".
        num_images: images of the set.
        results: what the evaluator returned, in percent.
        classes: one entry per class.
        min_score: score from which on a detection counts as confident in `best` and `worst`.
        best: images with the highest `f1`, best first.
        worst: images with the lowest `f1`, worst first.
    """

    dataset: str
    metric: str
    match: str
    num_images: int
    results: dict[str, float]
    classes: list[ClassRecord]
    min_score: float
    best: list[ImageRecord]
    worst: list[ImageRecord]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, whole or not at all."""
        write_json(path, _shortened(asdict(self)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "EvaluationRecord":
        """Reads what `save` wrote.

        Raises:
            UserError: for a missing, damaged or foreign file.
        """
        remedy = "; make it again with tools/train_net.py --eval-only"
        with reading_json(path, "evaluation", remedy) as content:
            content["classes"] = [ClassRecord(**entry) for entry in content["classes"]]
            for key in ("best", "worst"):
                content[key] = [
                    ImageRecord(**{**entry, "boxes": [BoxRecord(**b) for b in entry["boxes"]]})
                    for entry in content[key]
                ]
            return EvaluationRecord(**content)


def _shortened(value: Any, key: str = "") -> Any:
    """Digits that no picture shows are left out; results and APs stay exact."""
    if isinstance(value, dict):
        return {k: v if k in ("results", "ap50") else _shortened(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_shortened(entry, key) for entry in value]
    if isinstance(value, float):
        return round(value, 2 if key == "box" else 5)
    return value
