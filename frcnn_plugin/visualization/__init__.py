"""Pictures of every intermediate: one function per picture, arrays in, a `Canvas` out.

All coordinates are pixels of the original image. Nothing here knows a model; what is drawn is
computed by `engine.inspection`, with the model's own code.
"""

from .drawings.anchors import draw_anchors
from .drawings.canvas import Canvas, Panel
from .drawings.comparison import contact_sheet, draw_comparison
from .drawings.detections import draw_detections, judge
from .drawings.match_reasons import MatchReasons, Reason, explain_matches
from .drawings.matches import draw_matches
from .drawings.objects import Objects, count_of, draw_data
from .drawings.pooled_cells import PooledCells, pooled_cells
from .drawings.proposals import draw_proposals
from .drawings.roi_cells import draw_roi_cells
from .drawings.samples import Sample, draw_samples

__all__ = [
    "Canvas",
    "MatchReasons",
    "Objects",
    "Panel",
    "PooledCells",
    "Reason",
    "Sample",
    "contact_sheet",
    "count_of",
    "draw_anchors",
    "draw_comparison",
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
