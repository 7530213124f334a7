"""Rules of what a key may be, and how a key is read and typed."""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..config import plugin_cfg
from ..config_files import load_config_file

# A rule takes a value and returns what is wrong with it, the end of "KEY is VALUE: it must be ..."
# or "KEY is VALUE: use ..."; "" if it is allowed.
Rule = Callable[[Any], str]

BACKBONES = ("VGG16", "HyperVGG16", "ZF", "build_vgg16_fpn_backbone")  # of this package

_MOST_NAMES = 6  # that a message lists
_LARGEST = 2**31 - 1


# ---- keys -----------------------------------------------------------------------------------


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key such as "SOLVER.BASE_LR"."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def typed(key: str, value: Any) -> str:
    """Return the override that sets a key, as it is typed in a shell."""
    text = str(value)
    return f"{key} {text}" if text and not set(text) & set(" ()[]'\",<>=") else f'{key} "{text}"'


@cache
def usual() -> CfgNode:
    """Return the config of the paper, whose values are examples of good ones."""
    cfg = plugin_cfg()
    load_config_file(cfg, "frcnn://Base-Paper.yaml")
    return cfg


# ---- rules ----------------------------------------------------------------------------------


def number(low: float, high: float = math.inf, *, over: bool = False, under: bool = False) -> Rule:
    """Allow numbers from `low` to `high`; `over` and `under` leave the limit itself out."""
    endless = high == math.inf and not under
    if high == math.inf:
        words = f"more than {low:g}" if over else "0 or more" if low == 0 else f"{low:g} or more"
    elif over or under:
        words = f"{'more than' if over else 'at least'} {low:g} and "
        words += f"{'less than' if under else 'at most'} {high:g}"
    else:
        words = f"from {low:g} to {high:g}"

    def rule(value: Any) -> str:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = is_number and (value > low if over else value >= low)
        good = good and (value < high if under else value <= high)
        finite = "" if endless or value != math.inf else " and finite"
        return "" if good else f"it must be {words}{finite}"

    return rule


def whole(low: int, high: int = _LARGEST) -> Rule:
    """Allow whole numbers that fit into 32 bits."""
    in_range = number(low, math.inf if high == _LARGEST else high)

    def rule(value: Any) -> str:
        if not isinstance(value, int) and not in_range(value):
            return f"{in_range(low - 1)}, and whole"
        return in_range(value) or ("" if value <= high else f"it must be at most {high}")

    return rule


def any_of(*rules: Rule) -> Rule:
    """Allow what one of the rules allows; the words are those of the last."""

    def rule(value: Any) -> str:
        problems = [each(value) for each in rules]
        return problems[-1] if all(problems) else ""

    return rule


def exactly(allowed: Any) -> Rule:
    """Allow one value."""
    return lambda value: "" if value == allowed else f"it must be {allowed}"


def one_of(*choices: str, registry: Any = ()) -> Rule:
    """Allow some names, and those in one of Detectron2's registries."""

    def rule(value: Any) -> str:
        # Only now: other projects may have added theirs.
        known = [*(name for name, _ in registry), *choices]
        if value in known:
            return ""
        close = get_close_matches(str(value), known, n=_MOST_NAMES, cutoff=0.4)
        shown = [*close, *(name for name in known if name not in close)][:_MOST_NAMES]
        return f"use one of {', '.join(shown)}{'' if len(shown) == len(known) else ', ...'}"

    return rule


def each(item: Rule, what: str, *, count: int = 0, or_none: bool = False) -> Rule:
    """Allow lists of `count` entries (0: one or more), each by the rule; `what` describes them.

    With `or_none` also empty ones.
    """

    def rule(value: Any) -> str:
        good = isinstance(value, (list, tuple)) and not any(item(entry) for entry in value)
        if good and not or_none:
            good = len(value) == count if count else len(value) > 0
        return "" if good else f"it must be {what}"

    return rule


def distinct(rule: Rule) -> Rule:
    """Allow lists in which nothing is repeated."""

    def both(value: Any) -> str:
        repeated = not rule(value) and any(value.count(entry) > 1 for entry in value)
        return "it must name nothing twice" if repeated else rule(value)

    return both


def text(value: Any) -> str:
    """Allow text that is not empty."""
    return "" if isinstance(value, str) and value else "it must be text"


def expected_result(value: Any) -> str:
    """Allow what Detectron2 compares results with at the end of a run."""
    good = isinstance(value, (list, tuple)) and len(value) == 4
    good = good and not any(map(text, value[:2])) and not any(map(number(-math.inf), value[2:]))
    return "" if good else "it must be [task, metric, value, tolerance]"


def rising_thresholds(value: Any) -> str:
    """Allow limits of IoU ranges."""
    problem = each(number(0, 1, over=True), "one or more numbers more than 0 and at most 1")(value)
    if problem or list(value) == sorted(value):
        return problem
    return "they must rise"


def labels(value: Any) -> str:
    """Allow labels of IoU ranges, from the lowest to the highest."""
    known = isinstance(value, (list, tuple)) and all(label in (-1, 0, 1) for label in value)
    if known and value and value[-1] == 1 and 0 in value[:-1]:
        return ""
    return "it must be a list of -1 (ignored), 0 (background) and 1 (object), the last of them 1"


def device(value: Any) -> str:
    """Allow devices that torch has; of GPUs, which may stay untouched, also those it has not."""
    words = "give cpu, cuda or cuda:1"
    try:
        found = torch.device(value)
        if found.type not in ("cpu", "cuda"):
            torch.zeros(1, device=found).item()
        return ""
    except Exception:  # of many kinds; "meta" has no numbers
        return words


def output_folder(value: Any) -> str:
    """Allow paths of folders on this machine."""
    name = str(value)
    if not name.strip() or "\0" in name:
        return "name a folder"
    if "://" in name:
        return "give a folder on this machine, not an address"
    return "write the whole path: ~ would be a folder of that name" if name[0] == "~" else ""


def image_format(value: Any) -> str:
    """Allow formats in which images can be read for a model."""
    return "" if channels_of(value) else "use one of BGR, RGB, L (grey)"


def channels_of(image_format: Any) -> int:
    """Return the number of channels of images read in a format; 0 if models cannot take it."""
    if not image_format:  # Pillow would leave the image as it is
        return 0
    try:
        pixels = convert_PIL_to_numpy(Image.new("RGB", (1, 1)), image_format)
    except Exception:  # of many kinds
        return 0
    return int(pixels.shape[-1]) if pixels.dtype == np.uint8 else 0  # YUV-BT.601 is in doubles
