"""Using a trained detector: images in, detections, proposals or features out."""

from .predictor import FasterRCNNPredictor

__all__ = ["FasterRCNNPredictor"]
