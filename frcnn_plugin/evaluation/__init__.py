"""Evaluation: VOC average precision."""

from .average_precision import average_precision, match_detections
from .voc import VOCEvaluator

__all__ = [
    "VOCEvaluator",
    "average_precision",
    "match_detections",
]
