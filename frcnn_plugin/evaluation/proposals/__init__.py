"""The proposals of a data set: collect them, in one or several processes, and measure recall."""

from .evaluator import ProposalCollector, ProposalEvaluator
from .recall import RecallCurves, draw_recall, measure_recall, report_recall

__all__ = [
    "ProposalCollector",
    "ProposalEvaluator",
    "RecallCurves",
    "draw_recall",
    "measure_recall",
    "report_recall",
]
