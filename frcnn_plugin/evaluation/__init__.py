"""Evaluation: VOC average precision, and pictures of detections beside the ground truth."""

from .average_precision import average_precision, match_detections
from .drawing import contact_sheet, draw_comparison
from .voc import VOCEvaluator

__all__ = [
    "VOCEvaluator",
    "average_precision",
    "contact_sheet",
    "draw_comparison",
    "match_detections",
]
