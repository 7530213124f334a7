"""Data sets: do they exist, with the right classes, sane boxes and images, and none used twice?

Also the files of proposals that belong to them.
"""

from __future__ import annotations

import filecmp
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..data.datasets.arguments import examples
from ..data.datasets.checks import check_datasets, check_same_classes, class_names
from ..data.datasets.coco import coco_source
from ..data.loading.image_reader import read_record
from ..data.proposals.files import check_proposals
from ..errors import UserError
from ..evaluation.class_map import class_numbers
from .environment import suggest_folder
from .finding import Finding, Subject, plural
from .planned_run import PlannedRun, muted

_DATA = Subject("data")
_PROPOSALS = Subject("proposals")
_MOST_FILES = 5  # files that a message lists, one per line
_SAMPLE = 24  # images per set that are decoded; about 5 ms each
_SLICE = 4096  # bytes by which files of one size are told apart before all is read


def check_data(run: PlannedRun) -> Iterator[Finding]:
    """Check each data set, then all of them together."""
    if not run.eval_only and not run.train:
        yield _DATA.error(
            "DATASETS.TRAIN is empty: name at least one data set to train on, or a config that has "
            "one (--config-file)"
        )
        return
    if not run.test and not run.eval_only:
        yield _DATA.warning("DATASETS.TEST is empty: nothing is evaluated")
    alone = run.cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
    for name in run.test if alone else ():
        if MetadataCatalog.get(name).get("evaluator_type") != "coco":
            yield _DATA.error(
                f"MODEL.META_ARCHITECTURE is 'ProposalNetwork', but {name} is evaluated with "
                "detections",
                "Type MODEL.META_ARCHITECTURE PaperRCNN MODEL.PAPER_RCNN.PHASE rpn",
            )
    for key, field in (("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")):
        for name in run.train if run.cfg.MODEL[key] else ():
            dicts = run.dicts(name)
            if dicts and not any(field in o for d in dicts for o in d.get("annotations", ())):
                yield _DATA.error(
                    f"MODEL.{key} is True, but no object of {name} has a {field}",
                    f"Type MODEL.{key} False, or name a set in COCO's format that has them",
                )
            elif key == "MASK_ON":
                yield from _check_masks(run, name, dicts)
    if run.cfg.MODEL.MASK_ON and run.cfg.MODEL.PAPER_RCNN.PHASE != "rpn":
        for name in run.test:
            yield from _check_test_masks(run, name)
    if run.cfg.MODEL.KEYPOINT_ON:
        return  # its data are for Detectron2 to check
    for which, listed in (("TRAIN", run.train), ("TEST", run.test)):
        for name, times in Counter(listed).items():
            if times > 1:
                yield _DATA.warning(
                    f"DATASETS.{which} names {name} {times} times: its images count so often",
                    f'Type DATASETS.{which} "{tuple(dict.fromkeys(listed))}"',
                )
    names = list(dict.fromkeys([*run.train, *run.test]))
    bad = False
    told = set()
    for name in names:
        for finding in _check_one(run, name):
            bad |= finding.level == "error"
            first, _, advice = finding.text.partition("\n")
            if advice in told:  # on folders and archives, as for another set
                finding = replace(finding, text=f"{first} (as above)", fix="")
            elif advice:
                told.add(advice)
            yield finding
    if bad:
        return
    classes_of = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    by_name = {name: list(classes) for name, classes in classes_of.items() if classes}
    if class_map := run.cfg.DATASETS.CLASS_MAP:
        trained = run.cfg.DATASETS.TRAIN[:1]
        if not trained:
            raise UserError("DATASETS.CLASS_MAP maps the classes of DATASETS.TRAIN, which is empty")
        for name in run.test:
            class_numbers(class_names(trained[0]), by_name[name], class_map)
        by_name = {name: classes for name, classes in by_name.items() if name in run.train}
    check_same_classes(by_name)
    yield from _check_overlap(run)


def _check_masks(
    run: PlannedRun, name: str, dicts: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Find objects whose masks the config cannot read, and objects without any."""
    objects = [o for d in dicts for o in d.get("annotations", ())]
    if missing := sum("segmentation" not in o for o in objects):
        yield _DATA.warning(
            f"{missing:,} of {len(objects):,} objects of {name} have no segmentation: "
            "MODEL.MASK_ON leaves them out of training"
        )
    if run.cfg.INPUT.MASK_FORMAT == "polygon" and any(
        not o.get("iscrowd") and isinstance(o.get("segmentation"), Mapping) for o in objects
    ):
        yield _DATA.error(
            f"INPUT.MASK_FORMAT is polygon, but {name} has masks in run lengths",
            "Type INPUT.MASK_FORMAT bitmask",
        )


def _check_test_masks(run: PlannedRun, name: str) -> Iterator[Finding]:
    """Find objects without a mask, on which COCO's metric of masks would end the run."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco":
        return
    file = metadata.get("json_file")
    if file and coco_source(name) is None:  # the metric reads the file itself, however large it is
        try:
            objects = json.loads(Path(file).read_bytes())["annotations"]
        except (OSError, ValueError, LookupError):  # as other checks will say
            return
    else:
        objects = [o for d in run.dicts(name) for o in d.get("annotations", ())]
    if missing := sum(not o.get("segmentation") for o in objects):
        yield _DATA.error(
            f"MODEL.MASK_ON is True, but {missing:,} of {len(objects):,} objects of {name} have no "
            "segmentation, which COCO's metric needs",
            "Type MODEL.MASK_ON False, or name another set in DATASETS.TEST",
        )


def _check_one(run: PlannedRun, name: str) -> Iterator[Finding]:
    problem = None
    with muted("frcnn_plugin") as warnings:
        try:
            number = run.cfg.MODEL.ROI_HEADS.NUM_CLASSES
            skips = run.cfg.DATALOADER.ON_BAD_IMAGE == "skip"
            mapped = run.cfg.DATASETS.CLASS_MAP and name not in run.train
            check_datasets([name], None if mapped else number, run.train, run.load, skips)
            if run.is_quick(name):
                run.load(name)
        except UserError as e:
            problem = _with_folder(name, str(e))
        except Exception as e:  # whatever a loader raises for a damaged file
            problem = _DATA.error(f"{name} cannot be loaded ({type(e).__name__}: {e})")
    # Before an error, whose reason they may be.
    said = "" if problem is None else problem.text
    yield from (_DATA.warning(message) for message in warnings if message not in said)
    if problem is not None:
        yield problem
        return
    dicts = run.dicts(name)
    if not dicts:
        yield _DATA.ok(f"{name}: its files exist; it is not loaded for this check (--all)")
        return
    yield _DATA.ok(_describe(name, dicts))
    yield from _check_objects(run, name, dicts)
    yield from _check_images(run, name, dicts)


def _with_folder(name: str, message: str) -> Finding:
    """Return the error; a shorter one where it is known what to type."""
    fix = suggest_folder(name)
    if not fix:
        return _DATA.error(message)
    first, *others = message.split("\n")
    value = f" ({others[0].strip()})" if others else ""
    return _DATA.error(f"{first}{value}", fix)


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
    if run.cfg.DATASETS.CLASS_MAP and name not in run.train:
        number = len(class_names(name))
    numbers = Counter(o.get("category_id") for _, o in objects)
    strange = [n for n in numbers if not isinstance(n, int | np.integer) or not 0 <= n < number]
    if strange:
        yield _DATA.error(
            f"{name}: {sum(numbers[n] for n in strange)} objects have a category_id outside 0 to "
            f"{number - 1} (such as {strange[0]}), which stops training with a device-side assert",
            "Number the classes from 0 to MODEL.ROI_HEADS.NUM_CLASSES - 1; background is not one",
        )
    boxes = xyxy_of([o for _, o in objects])
    sizes = np.array(
        [[d.get("width", np.inf), d.get("height", np.inf)] for d, _ in objects], dtype=np.float64
    )
    flat = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    outside = ~flat & ((boxes[:, :2] < -1).any(1) | (boxes[:, 2:] > sizes + 1).any(1))
    thin = ~flat & (boxes[:, 2:] - boxes[:, :2] <= 1).any(1)
    seen: dict[Any, int] = {}
    for i, ((d, o), box) in enumerate(zip(objects, boxes.tolist(), strict=True)):
        seen.setdefault((id(d), o.get("category_id"), *box), i)
    again = ~np.isin(np.arange(len(boxes)), [*seen.values()])
    for what, found, effect in (
        ("no area", flat, "they make the loss NaN"),
        ("a part outside their image", outside, "they teach nonsense"),
        ("a side of one pixel or less, as after a slip of the mouse", thin, "nobody can see them"),
        ("the class and place of another in their image", again, "a detector finds only one"),
    ):
        if found.any():
            files = [str(objects[i][0].get("file_name", "?")) for i in np.flatnonzero(found)]
            where = examples(list(dict.fromkeys(files)))
            yield _DATA.warning(
                f"{name}: {len(files)} of {len(boxes):,} boxes have {what}, in {where}",
                f"Correct the annotations, or delete these objects: {effect}",
            )
    classes = MetadataCatalog.get(name).get("thing_classes")
    alike = defaultdict(list)
    for text in classes or ():
        alike["".join(text.casefold().split())].append(text)
    for one, *others in alike.values():
        if others:
            yield _DATA.warning(
                f"{name}: the classes {examples([one, *others])} differ in capitals or spaces only",
                "If they are one class, add to the entry of the set: rename: "
                f"{dict.fromkeys(others, one)}; and list only {one!r} in its classes",
            )
    absent = [c for i, c in enumerate(classes or ()) if i not in numbers]
    if absent and name in run.train:
        yield _DATA.warning(
            f"{name}: no object of {plural(len(absent), 'class')} ({examples(absent)})",
            "A detector cannot learn them: check the names, or leave them out of the class list",
        )


def xyxy_of(objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the boxes of annotations, whatever their mode: (N, 4), XYXY, pixels."""
    mode = BoxMode.XYXY_ABS
    boxes = [BoxMode.convert(list(o["bbox"]), o.get("bbox_mode", mode), mode) for o in objects]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _check_overlap(run: PlannedRun) -> Iterator[Finding]:
    same = [name for name in run.test if name in run.train]
    if same:
        yield _DATA.warning(
            f"{examples(same)} is trained on and tested on: its scores say nothing about new "
            "images",
            "Name another set in DATASETS.TEST",
        )
    trained = {d["file_name"]: name for name in run.train for d in run.dicts(name)}
    for name in run.test:
        copies = {} if name in same else _copies(trained, [d["file_name"] for d in run.dicts(name)])
        if copies:
            pairs = [(Path(file).name, Path(other).name) for file, other in copies.items()]
            yield _DATA.warning(
                f"{len(copies)} of the {run.size(name)} images of {name} are also in "
                f"{trained[next(iter(copies.values()))]}, which is trained on "
                f"({examples([a if a == b else f'{a}, there as {b}' for a, b in pairs])})",
                "Take them out of one of the two",
            )


def _copies(trained: Collection[str], tested: Sequence[str]) -> dict[str, str]:
    """Map each tested file that is trained on, by its path or byte for byte, to the trained one."""
    files = [f for f in dict.fromkeys([*trained, *tested]) if os.path.isfile(f)]
    sizes = {file: os.path.getsize(file) for file in files}
    common = {sizes.get(f) for f in trained} & {sizes.get(f) for f in tested if f not in trained}
    alike: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)
    copies = {file: file for file in tested if file in trained}
    for file in files:  # the trained ones come first
        if sizes[file] in common:
            with open(file, "rb") as stream:
                stream.seek(sizes[file] // 2)  # in pixels; the headers of many files are the same
                key = sizes[file], stream.read(_SLICE)
            if file in trained:
                alike[key].append(file)
            elif same := [f for f in alike[key] if filecmp.cmp(f, file, shallow=False)]:
                copies[file] = same[0]
    return copies


# ---- images ---------------------------------------------------------------------------------


def _check_images(run: PlannedRun, name: str, dicts: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Look for all files, and decode some; with ``run.every_image`` all, with a progress bar."""
    skipped = run.cfg.DATALOADER.ON_BAD_IMAGE == "skip"
    usable = [d for d in dicts if "unreadable" not in d]
    missing = [d["file_name"] for d in usable if not Path(d["file_name"]).is_file()]
    if missing:
        some = skipped and len(missing) < len(dicts)
        yield (_DATA.warning if some else _DATA.error)(
            f"{name}: {len(missing)} of {len(dicts)} image files are missing:\n{_lines(missing)}",
            "Copy them there, or correct image_root",
        )
        if not some:
            return
        usable = [d for d in usable if Path(d["file_name"]).is_file()]
    vanishing = _vanishing(run, name, usable)
    if vanishing:
        yield (_DATA.warning if skipped else _DATA.error)(
            f"{name}: {len(vanishing)} of {len(dicts)} images are so narrow that INPUT.MIN_SIZE_* "
            f"and MAX_SIZE_* leave less than a pixel of a side:\n{_lines(vanishing)}",
            "Leave them out, or cut them up",
        )
        if not skipped:
            return
    sample = usable if run.every_image else evenly(usable, _SAMPLE)
    sizes, problems = [], []
    # None: the bar is shown on terminals only.
    hidden = None if run.every_image else True
    with muted("frcnn_plugin") as warnings:
        for item in tqdm(sample, f"reading {name}", unit="image", disable=hidden):
            try:
                height, width = read_record(item).shape[:2]
                sizes.append((width, height))
            except UserError as e:
                problems.append(str(e))
    yield from (_DATA.warning(message) for message in warnings)
    if problems:
        rest = "" if run.every_image else "; frcnn doctor --all looks at every one"
        yield (_DATA.warning if skipped else _DATA.error)(
            f"{name}: {len(problems)} of {len(sample)} images looked at are bad:\n"
            f"{_lines(problems)}",
            f"Copy or download them again, or take them out of the set{rest}",
        )
    if not sizes or (problems and not skipped):
        return
    low, high = min(sizes, key=math.prod), max(sizes, key=math.prod)
    limits = dict.fromkeys(f"{width}x{height}" for width, height in (low, high))
    rest = "" if len(sample) == len(usable) else f" of {len(usable):,} (--all reads every one)"
    exist = "all files exist; " if len(usable) == len(dicts) else ""
    yield _DATA.ok(f"{name}: {exist}{len(sample)} images read{rest}, {' to '.join(limits)} pixels")


def _vanishing(run: PlannedRun, name: str, dicts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the images of which a side would be resized to 0 pixels, with their sizes."""
    node, resizes = run.cfg.INPUT, set()
    if name in run.train:
        resizes |= {(side, node.MAX_SIZE_TRAIN) for side in node.MIN_SIZE_TRAIN}
    if name in run.test:
        resizes.add((node.MIN_SIZE_TEST, node.MAX_SIZE_TEST))
    sizes = {(d["height"], d["width"]) for d in dicts if "height" in d and "width" in d}
    bad = {
        (height, width)
        for height, width in sizes
        for side, limit in resizes
        if side and min(ResizeShortestEdge.get_output_shape(height, width, side, limit)) < 1
    }
    return [
        f"{d['file_name']}: {d['width']} x {d['height']} pixels"
        for d in dicts
        if (d.get("height"), d.get("width")) in bad
    ]


def evenly(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` items, the first and the last among them, at equal distances."""
    if len(items) <= number:
        return list(items)
    return [items[i * (len(items) - 1) // (number - 1)] for i in range(number)]


def _lines(items: Sequence[str]) -> str:
    more = f"\nand {len(items) - _MOST_FILES} more" if len(items) > _MOST_FILES else ""
    return "\n".join(items[:_MOST_FILES]) + more


# ---- proposals ------------------------------------------------------------------------------


def check_proposal_files(run: PlannedRun) -> Iterator[Finding]:
    """Compare proposal files with their data sets."""
    # Detectron2 opens them with plain pickle, and says little if they belong to another data set.
    if not run.cfg.MODEL.LOAD_PROPOSALS:
        return
    datasets = run.cfg.DATASETS
    for which, names, files in (
        ("TRAIN", run.train, datasets.PROPOSAL_FILES_TRAIN),
        ("TEST", run.test, datasets.PROPOSAL_FILES_TEST),
    ):
        if names and len(names) != len(files):
            yield _PROPOSALS.error(
                f"MODEL.LOAD_PROPOSALS is True, but DATASETS.{which} has {len(names)} data sets "
                f"and DATASETS.PROPOSAL_FILES_{which} {len(files)} files: give one file per data "
                "set"
            )
            continue
        for name, file in zip(names, files, strict=False):
            try:
                proposals = check_proposals(file, run.load(name), name)
            except UserError as e:
                yield _PROPOSALS.error(str(e))
                continue
            number = len(proposals.ids)
            boxes = sum(map(len, proposals.logits)) / max(1, number)
            yield _PROPOSALS.ok(
                f"{file}: all {number:,} images of {name}, {boxes:.0f} boxes per image"
            )
