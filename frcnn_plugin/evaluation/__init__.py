"""Evaluation: VOC and COCO average precision, and the recall of proposals."""

from .average_precision import average_precision, match_detections, precision_recall
from .class_map import ClassMapEvaluator
from .coco import RecordingCOCOEvaluator
from .detections import Detections, judge_detections
from .ground_truth import GroundTruth, load_ground_truth
from .proposals import ProposalCollector, ProposalEvaluator, RecallCurves, measure_recall
from .voc import VOCEvaluator

__all__ = [
    "ClassMapEvaluator",
    "Detections",
    "GroundTruth",
    "ProposalCollector",
    "ProposalEvaluator",
    "RecallCurves",
    "RecordingCOCOEvaluator",
    "VOCEvaluator",
    "average_precision",
    "judge_detections",
    "load_ground_truth",
    "match_detections",
    "measure_recall",
    "precision_recall",
]
