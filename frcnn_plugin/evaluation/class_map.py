"""Testing a detector on a set of other classes, as COCO's 80 on VOC's 20 (paper, Table 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from ..errors import UserError


def class_numbers(
    detector: Sequence[str], test_set: Sequence[str], pairs: Sequence[Sequence[str]]
) -> list[int]:
    """Return, per class of the detector, its number in the test set; -1 for those that it lacks.

    Args:
        detector: class names of the detector.
        test_set: class names of the test set.
        pairs: (detector's name, test set's name) of classes with two names; two of one class of the
            test set are merged.

    Raises:
        UserError: a pair names what does not exist, or a class of the test set has no counterpart.
    """
    for position, (names, what) in enumerate(
        ((detector, "DATASETS.TRAIN"), (test_set, "DATASETS.TEST"))
    ):
        given = dict.fromkeys(pair[position] for pair in pairs)
        if unknown := [name for name in given if name not in names]:
            raise UserError(f"DATASETS.CLASS_MAP: {what} has no class {', '.join(unknown)}")
    renamed = {pair[0]: pair[1] for pair in pairs}
    if len(renamed) < len(pairs):
        raise UserError("DATASETS.CLASS_MAP maps a class of DATASETS.TRAIN twice: leave one out")
    called = [renamed.get(name, name) for name in detector]
    if lacking := [name for name in test_set if name not in called]:
        free = [name for name in detector if name not in renamed and name not in test_set]
        fix = f"add pairs such as [{free[0]}, {lacking[0]}]" if free else "none is left for a pair"
        raise UserError(
            f"DATASETS.CLASS_MAP: no class of DATASETS.TRAIN is called {', '.join(lacking)}, as in "
            f"DATASETS.TEST: {fix}"
        )
    numbers = {name: number for number, name in enumerate(test_set)}
    return [numbers.get(name, -1) for name in called]


class ClassMapEvaluator(DatasetEvaluator):
    """Hands detections on to another evaluator, with the class numbers of its data set.

    Detections of classes that the set lacks are left out, after the model has chosen its best ones
    among all classes.
    """

    def __init__(self, evaluator: DatasetEvaluator, numbers: Sequence[int]) -> None:
        """Wrap ``evaluator``; ``numbers`` are those of :func:`class_numbers`."""
        self._evaluator = evaluator
        self._numbers = torch.tensor(numbers)

    def reset(self) -> None:
        """Forget all predictions."""
        self._evaluator.reset()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the detections of some images; neither argument is changed."""
        mapped = []
        for output in outputs:
            instances = output["instances"]
            classes = self._numbers.to(instances.pred_classes.device)[instances.pred_classes]
            known = classes >= 0
            instances = instances[known]
            instances.pred_classes = classes[known]
            mapped.append({**output, "instances": instances})
        self._evaluator.process(inputs, mapped)

    def evaluate(self) -> Any:
        """Return what the other evaluator does."""
        return self._evaluator.evaluate()
