"""Pictures of every intermediate: one function per picture, arrays in, a `Canvas` out.

All coordinates are pixels of the original image. Nothing here knows a model; what is drawn is
computed by `engine.inspection`, with the model's own code.
"""

from .anchors import draw_anchors
from .canvas import Canvas, Panel
from .detections import draw_detections, judge
from .match_reasons import MatchReasons, Reason, explain_matches
from .matches import draw_matches
from .objects import Objects, count_of, draw_data
from .pooled_cells import PooledCells, pooled_cells
from .proposals import draw_proposals
from .roi_cells import draw_roi_cells
from .samples import Sample, draw_samples

__all__ = [
    "Canvas",
    "MatchReasons",
    "Objects",
    "Panel",
    "PooledCells",
    "Reason",
    "Sample",
    "count_of",
    "draw_anchors",
    "draw_data",
    "draw_detections",
    "draw_matches",
    "draw_proposals",
    "draw_roi_cells",
    "draw_samples",
    "explain_matches",
    "judge",
    "pooled_cells",
]
