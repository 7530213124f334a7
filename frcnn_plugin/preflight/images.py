"""Image files: there, readable, of the size that the data set says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from .finding import Finding, error, ok

SAMPLE = 24  # images per set that are decoded; about 5 ms each
_EXAMPLES = 5
_SUBJECT = "data"


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
        listed = "\n".join(missing[:_EXAMPLES])
        more = f"\nand {len(missing) - _EXAMPLES} more" if len(missing) > _EXAMPLES else ""
        yield error(
            _SUBJECT,
            f"{name}: {len(missing)} of {len(dicts)} image files are missing:\n{listed}{more}",
            "Copy them there, or correct image_root",
        )
        return
    sample = dicts if every_image else evenly(dicts, SAMPLE)
    sizes, problems = [], []
    for item in tqdm(
        sample, f"reading {name}", unit="image", disable=None if every_image else True
    ):
        size, problem = _read(item)
        (problems.append(problem) if problem else sizes.append(size))
    if problems:
        more = f"\nand {len(problems) - _EXAMPLES} more" if len(problems) > _EXAMPLES else ""
        rest = "" if every_image else "; doctor.py --all looks at every one"
        yield error(
            _SUBJECT,
            f"{name}: {len(problems)} of {len(sample)} images looked at are bad:\n"
            + "\n".join(problems[:_EXAMPLES])
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
    said = (item.get("width", width), item.get("height", height))
    if said != (width, height):
        return (0, 0), f"{file}: {_text((width, height))}, but its annotation says {_text(said)}"
    return (width, height), ""


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
