"""Data sets: there, of the right classes, with sane boxes and images, and not the same twice.

Also the files of proposals that belong to them, and where their folders seem to be if a path is one
level off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..data.datasets.arguments import datasets_root, root_in_words
from ..data.datasets.checks import check_datasets, check_same_classes
from ..data.datasets.voc import OFFICIAL_IMAGE_COUNTS, VOCSource
from ..data.loading.image_reader import read_bgr
from ..data.proposals.files import check_proposals
from ..errors import UserError
from .finding import Finding, error, ok, warning
from .planned_run import PlannedRun, warnings_of

_SUBJECT = "data"
_EXAMPLES = 3  # names that a message lists
_MOST_FILES = 5  # files that it lists, one per line
_SAMPLE = 24  # images per set that are decoded; about 5 ms each
_MOST_FOLDERS = 200  # that are looked into below one folder


def check_data(run: PlannedRun) -> Iterator[Finding]:
    """Check every data set by itself, then all together."""
    if not run.eval_only and not run.train:
        yield error(_SUBJECT, "DATASETS.TRAIN is empty: name at least one data set to train on")
        return
    if not run.test and not run.eval_only:
        yield warning(_SUBJECT, "DATASETS.TEST is empty: nothing is evaluated")
    if run.cfg.MODEL.MASK_ON or run.cfg.MODEL.KEYPOINT_ON:
        return  # their data are for Detectron2 to check
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
    """Return the finding, without the lines on folders and archives that another set's has."""
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
    """Return the error; a shorter one where it is known what to type."""
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


# ---- images ---------------------------------------------------------------------------------


def check_images(
    name: str, dicts: Sequence[dict[str, Any]], *, every_image: bool = False
) -> Iterator[Finding]:
    """Look for all files, and decode some.

    Args:
        name: of the data set.
        dicts: in Detectron2's format.
        every_image: decode all, with a progress bar.
    """
    missing = [d["file_name"] for d in dicts if not Path(d["file_name"]).is_file()]
    if missing:
        listed = "\n".join(missing[:_MOST_FILES])
        more = f"\nand {len(missing) - _MOST_FILES} more" if len(missing) > _MOST_FILES else ""
        yield error(
            _SUBJECT,
            f"{name}: {len(missing)} of {len(dicts)} image files are missing:\n{listed}{more}",
            "Copy them there, or correct image_root",
        )
        return
    sample = dicts if every_image else evenly(dicts, _SAMPLE)
    sizes, problems = [], []
    for item in tqdm(
        sample, f"reading {name}", unit="image", disable=None if every_image else True
    ):
        size, problem = _read(item)
        (problems.append(problem) if problem else sizes.append(size))
    if problems:
        more = f"\nand {len(problems) - _MOST_FILES} more" if len(problems) > _MOST_FILES else ""
        rest = "" if every_image else "; frcnn doctor --all looks at every one"
        yield error(
            _SUBJECT,
            f"{name}: {len(problems)} of {len(sample)} images looked at are bad:\n"
            + "\n".join(problems[:_MOST_FILES])
            + more,
            f"Copy or download them again, or take them out of the set{rest}",
        )
        return
    low, high = min(sizes, key=_area), max(sizes, key=_area)
    yield ok(
        _SUBJECT,
        f"{name}: all files are there; {len(sample)} images read, {_text(low)} to {_text(high)} "
        "pixels",
    )


def evenly(items: Sequence[Any], number: int) -> list[Any]:
    """At most ``number`` items, the first and the last among them, at equal distances."""
    if len(items) <= number:
        return list(items)
    return [items[i * (len(items) - 1) // (number - 1)] for i in range(number)]


def _read(item: dict[str, Any]) -> tuple[tuple[int, int], str]:
    """Return width and height of an image, and what is wrong with it."""
    file = item["file_name"]
    try:
        height, width = read_bgr(file).shape[:2]
    except UserError as e:
        return (0, 0), str(e)
    said: Any = (item.get("width", width), item.get("height", height))
    if said != (width, height):
        return (0, 0), f"{file}: {_text((width, height))}, but its annotation says {_text(said)}"
    return (width, height), ""


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# ---- proposals ------------------------------------------------------------------------------


def check_proposal_files(run: PlannedRun) -> Iterator[Finding]:
    """Compare proposal files with their data sets."""
    # Detectron2 opens them with plain pickle, and says little if they are of another data set.
    cfg = run.cfg
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    yield from _check_files(run, "TRAIN", run.train, cfg.DATASETS.PROPOSAL_FILES_TRAIN)
    yield from _check_files(run, "TEST", run.test, cfg.DATASETS.PROPOSAL_FILES_TEST)


def _check_files(
    run: PlannedRun, which: str, names: Sequence[str], files: Sequence[str]
) -> Iterator[Finding]:
    if not names:
        return
    if len(names) != len(files):
        yield error(
            "proposals",
            f"MODEL.LOAD_PROPOSALS is True, but DATASETS.{which} has {len(names)} data sets and "
            f"DATASETS.PROPOSAL_FILES_{which} {len(files)} files: give one file per data set",
        )
        return
    for name, file in zip(names, files, strict=True):
        try:
            proposals = check_proposals(file, run.load(name), name)
        except UserError as e:
            yield error("proposals", str(e))
            continue
        boxes = sum(len(logits) for logits in proposals.logits)
        yield ok(
            "proposals",
            f"{file}: all {len(proposals.ids):,} images of {name}, "
            f"{boxes / max(1, len(proposals.ids)):.0f} boxes per image",
        )


# ---- folders --------------------------------------------------------------------------------


def check_data_root() -> Iterator[Finding]:
    """Say what lies below ``$DETECTRON2_DATASETS``, without a config."""
    root = datasets_root()
    found = []
    for name, official in OFFICIAL_IMAGE_COUNTS.items():
        source: Any = DatasetCatalog[name]
        lists = [c / "ImageSets" / "Main" / f"{source.split}.txt" for c in source.candidates()]
        file = next((f for f in lists if f.is_file()), None)
        if file is not None:
            number = sum(bool(line.strip()) for line in file.read_text().splitlines())
            if number == official:
                found.append(f"{name} ({number} images)")
            else:
                yield warning(_SUBJECT, f"{name}: {file} lists {number} images, not {official}")
    found += [
        f.name
        for f in sorted((root / "coco" / "annotations").glob("instances_*.json"))
    ]  # fmt: skip
    if found:
        yield ok(_SUBJECT, f"DETECTRON2_DATASETS ({root_in_words()}) has {', '.join(found)}")
        return
    fix = suggest_folder("voc07_trainval") or (
        "For VOC: export DETECTRON2_DATASETS=<folder that holds VOC2007 or VOCdevkit>"
    )
    yield warning(_SUBJECT, f"no VOC or COCO in DETECTRON2_DATASETS ({root_in_words()})", fix)


def suggest_folder(name: str) -> str:
    """Say what to type if a VOC-format set lies a level above or below where it should.

    Args:
        name: registered name; unknown ones are none of VOC's.

    Returns:
        a sentence; "" if nothing was found near, or nothing is amiss.
    """
    source: Any = DatasetCatalog[name] if name in DatasetCatalog else None
    if not isinstance(source, VOCSource):
        return ""
    wanted = Path("ImageSets", "Main", f"{source.split}.txt")
    if any((folder / wanted).is_file() for folder in source.candidates()):
        return ""
    if source.official:
        for folder in _near(datasets_root()):
            for inner in ("", f"VOC{source.year}", f"VOCdevkit/VOC{source.year}"):
                place = folder / inner
                if place.name == f"VOC{source.year}" and (place / wanted).is_file():
                    return (
                        f"It seems to be one level off: export DETECTRON2_DATASETS={place.parent}"
                    )
        return ""
    for folder in _near(source.candidates()[0]):
        if (folder / wanted).is_file():
            return f"It seems to be one level off: root: {folder}"
    return ""


def _near(folder: Path) -> Iterator[Path]:
    """Yield the folder, three above it, and two levels below it."""
    folder = folder.absolute()
    yield folder
    yield from folder.parents[:3]
    below = list(_folders_in([folder]))
    yield from below
    yield from _folders_in(below)


def _folders_in(folders: Iterable[Path]) -> Iterator[Path]:
    number = 0
    for folder in folders:
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir():
                yield entry
                number += 1
                if number >= _MOST_FOLDERS:
                    return
