"""Data sets: there, of the right classes, with sane boxes, and not the same twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..data.datasets.checks import check_datasets, check_same_classes
from ..errors import UserError
from .data_folders import suggest_folder
from .finding import Finding, error, ok, warning
from .images import check_images
from .planned_run import PlannedRun, warnings_of

_SUBJECT = "data"
_EXAMPLES = 3


def check_data(run: PlannedRun) -> Iterator[Finding]:
    """Check every data set by itself, then all together."""
    if not run.eval_only and not run.train:
        yield error(_SUBJECT, "DATASETS.TRAIN is empty: name at least one data set to train on")
        return
    if not run.test and not run.eval_only:
        yield warning(_SUBJECT, "DATASETS.TEST is empty: nothing is evaluated")
    if run.cfg.MODEL.MASK_ON or run.cfg.MODEL.KEYPOINT_ON:
        return  # the host's business
    names = list(dict.fromkeys([*run.train, *run.test]))
    bad = False
    told: set[str] = set()
    for name in names:
        for finding in _check_one(run, name):
            bad |= finding.level == "error"
            yield _without_repetition(finding, told)
    if bad:
        return
    listed = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    check_same_classes({name: list(classes) for name, classes in listed.items() if classes})
    yield from _check_overlap(run)


def _without_repetition(finding: Finding, told: set[str]) -> Finding:
    """The same finding; without the lines on folders and archives that another set's has."""
    first, _, rest = finding.text.partition("\n")
    if not rest or rest not in told:
        told.add(rest)
        return finding
    return replace(finding, text=f"{first} (as above)", fix="")


def _check_one(run: PlannedRun, name: str) -> Iterator[Finding]:
    with warnings_of("frcnn_plugin") as warnings:
        try:
            number = run.cfg.MODEL.ROI_HEADS.NUM_CLASSES
            check_datasets([name], number, run.train, load=run.load)
            if run.is_quick(name):
                run.load(name)
        except UserError as e:
            yield _explained(name, str(e))
            return
        except Exception as e:  # whatever a loader makes of a damaged file
            yield error(_SUBJECT, f"{name} cannot be loaded ({type(e).__name__}: {e})")
            return
    dicts = run.dicts(name)
    yield from (warning(_SUBJECT, message) for message in warnings)
    if not dicts:
        yield ok(_SUBJECT, f"{name}: its files are there; it is not loaded for this check (--all)")
        return
    yield ok(_SUBJECT, _describe(name, dicts))
    yield from _check_objects(run, name, dicts)
    yield from check_images(name, dicts, every_image=run.every_image)


def _explained(name: str, message: str) -> Finding:
    """The error; shorter where it is known what to type."""
    fix = suggest_folder(name)
    if not fix:
        return error(_SUBJECT, message)
    first, *others = message.split("\n")
    value = f" ({others[0].strip()})" if others else ""
    return error(_SUBJECT, f"{first}{value}", fix)


def _describe(name: str, dicts: Sequence[dict[str, Any]]) -> str:
    objects = [o for d in dicts for o in d.get("annotations", ())]
    special = sum(bool(o.get("difficult", o.get("iscrowd", 0))) for o in objects)
    empty = sum(not d.get("annotations") for d in dicts)
    share = f"{100 * special / len(objects):.0f} % difficult or crowd" if objects else "none"
    return (
        f"{name}: {len(dicts):,} images ({empty:,} without objects), {len(objects):,} objects "
        f"({share})"
    )


def _check_objects(
    run: PlannedRun, name: str, dicts: Sequence[dict[str, Any]]
) -> Iterator[Finding]:
    objects = [(d, o) for d in dicts for o in d.get("annotations", ())]
    if not objects:
        return
    number = run.cfg.MODEL.ROI_HEADS.NUM_CLASSES
    numbers = Counter(o.get("category_id") for _, o in objects)
    strange = [n for n in numbers if not isinstance(n, int) or not 0 <= n < number]
    if strange:
        yield error(
            _SUBJECT,
            f"{name}: {sum(numbers[n] for n in strange)} objects have a category_id outside 0 to "
            f"{number - 1} (such as {strange[0]}), which stops training with a device-side assert",
            "Number the classes from 0 to MODEL.ROI_HEADS.NUM_CLASSES - 1; background is not one",
        )
    boxes = np.array([_xyxy(o) for _, o in objects], dtype=np.float64)
    sizes = np.array(
        [[d.get("width", np.inf), d.get("height", np.inf)] for d, _ in objects], dtype=np.float64
    )
    flat = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    outside = ~flat & ((boxes[:, :2] < -1).any(1) | (boxes[:, 2:] > sizes + 1).any(1))
    for what, found in (("no area", flat), ("a part outside their image", outside)):
        if found.any():
            first = objects[int(found.argmax())][0].get("file_name", "?")
            yield warning(
                _SUBJECT,
                f"{name}: {int(found.sum())} boxes have {what}, the first in {first}",
                "Correct the annotations: such boxes make the loss NaN or teach nonsense",
            )
    classes = MetadataCatalog.get(name).get("thing_classes")
    absent = [c for i, c in enumerate(classes or ()) if i not in numbers]
    if absent and name in run.train:
        yield warning(
            _SUBJECT,
            f"{name}: no object of {len(absent)} classes ({_some(absent)})",
            "A detector cannot learn them: check the names, or leave them out of the class list",
        )


def _xyxy(annotation: dict[str, Any]) -> Any:
    box, mode = annotation["bbox"], annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode == BoxMode.XYXY_ABS:
        return box
    if mode == BoxMode.XYWH_ABS:
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS)[:4]


def _check_overlap(run: PlannedRun) -> Iterator[Finding]:
    for which, names in (("TRAIN", run.train), ("TEST", run.test)):
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            yield warning(_SUBJECT, f"DATASETS.{which} names {_some(twice)} more than once")
    same = [name for name in run.test if name in run.train]
    if same:
        yield warning(
            _SUBJECT,
            f"{_some(same)} is trained on and tested on: its scores say nothing about new images",
            "Name another set in DATASETS.TEST",
        )
    trained = {d["file_name"]: name for name in run.train for d in run.dicts(name)}
    for name in run.test:
        if name in same:
            continue
        shared = [d["file_name"] for d in run.dicts(name) if d["file_name"] in trained]
        if shared:
            yield warning(
                _SUBJECT,
                f"{len(shared)} of the {run.size(name)} images of {name} are also in "
                f"{trained[shared[0]]}, which is trained on "
                f"({_some([Path(file).name for file in shared])})",
                "Take them out of one of the two",
            )


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_EXAMPLES]) + (", ..." if len(items) > _EXAMPLES else "")
