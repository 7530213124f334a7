"""COCO evaluation that says why there is nothing to count."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.evaluation import COCOEvaluator

from .diagnosis import diagnose_misses, diagnose_scores

logger = logging.getLogger(__name__)


class DiagnosingCOCOEvaluator(COCOEvaluator):
    """The host's evaluator, plus one warning if the detections look like an untrained network's."""

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        """As the host's; fills ``_results``."""
        scores = [found["score"] for image in predictions for found in image["instances"]]
        names = self._metadata.get("thing_classes") or ()
        problem = diagnose_scores(scores, len(names))
        super()._eval_predictions(predictions, img_ids=img_ids)
        if problem is None:
            ap50 = self._results.get("bbox", {}).get("AP50", float("nan"))
            problem = diagnose_misses(scores, ap50)
        if problem is not None:
            logger.warning("%s: %s", self._metadata.name, problem)
