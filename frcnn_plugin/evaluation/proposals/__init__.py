"""The proposals of a data set: collect them, in one or several processes, and measure recall."""

from .evaluator import ProposalCollector, ProposalEvaluator
from .recall import RecallCurves, measure_recall, plot_recall, report_recall
from .shards import ProposalShards, ShardWriter

__all__ = [
    "ProposalCollector",
    "ProposalEvaluator",
    "ProposalShards",
    "RecallCurves",
    "ShardWriter",
    "measure_recall",
    "plot_recall",
    "report_recall",
]
