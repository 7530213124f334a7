"""Pictures of every intermediate: one function per picture, arrays in, a `Canvas` out.

All coordinates are pixels of the original image. The drawings know no model; what they show is
computed in `inspection`, with the model's own code. What is named here is loaded when it is first
asked for: Matplotlib is not loaded before there is something to draw.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "BareCanvas": "drawings.bare_canvas",
    "Canvas": "drawings.canvas",
    "MODES": "pictures",
    "MatchReasons": "drawings.matches",
    "Objects": "drawings.objects",
    "Options": "pictures",
    "Panel": "drawings.canvas",
    "Pictures": "pictures",
    "PooledCells": "drawings.roi_cells",
    "Reason": "drawings.matches",
    "Sample": "drawings.samples",
    "Style": "drawings.palette",
    "contact_sheet": "drawings.comparison",
    "draw_anchors": "drawings.anchors",
    "draw_comparison": "drawings.comparison",
    "draw_data": "drawings.objects",
    "draw_detections": "drawings.detections",
    "draw_matches": "drawings.matches",
    "draw_proposals": "drawings.proposals",
    "draw_roi_cells": "drawings.roi_cells",
    "draw_samples": "drawings.samples",
    "explain_matches": "drawings.matches",
    "pooled_cells": "drawings.roi_cells",
    "save_picture": "drawings.canvas",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
