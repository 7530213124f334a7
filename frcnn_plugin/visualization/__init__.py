"""Pictures of every intermediate of the method.

All coordinates are pixels of the original image. What is shown is computed in `inspection`, with
the model's own code; the drawings take arrays and know no model. A name is loaded when it is first
asked for: Matplotlib is not loaded before there is something to draw.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "BareCanvas": "drawings.bare_canvas",
    "Canvas": "drawings.canvas",
    "MODES": "pictures",
    "Objects": "drawings.objects",
    "Options": "pictures",
    "Panel": "drawings.canvas",
    "Pictures": "pictures",
    "Style": "drawings.palette",
    "contact_sheet": "drawings.detections",
    "draw_comparison": "drawings.detections",
    "draw_detections": "drawings.detections",
    "draw_proposals": "drawings.proposals",
    "save_picture": "drawings.canvas",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
