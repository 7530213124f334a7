"""Data sets that come from the config: the entries of ``DATASETS.REGISTER``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from .coco import register_coco
from .voc import register_voc, register_xml_folder

EVALUATORS = ("voc", "coco")

_TYPES: dict[str, type] = {
    "name": str,
    "root": str,
    "split": str,
    "classes": list,
    "ignore": list,
    "rename": dict,
    "counts_from": int,
    "year": int,
    "use_difficult": bool,
    "strict": bool,
    "evaluator": str,
    "xml": str,
    "images": str,
    "list": str,
    "train_fraction": float,
    "val_fraction": float,
    "json": str,
}

# Keys of an entry whose name Python uses for something else.
_ARGUMENTS = {"list": "image_list", "json": "json_file"}


@dataclass(frozen=True)
class _Form:
    """One kind of entry: its keys, the required ones first, and what registers it."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    example: str
    register: Callable[..., None]


_VOC_OPTIONS = (
    *("ignore", "rename", "counts_from", "year", "use_difficult", "strict", "evaluator"),
)
_FORMS = {
    "root": _Form(
        ("name", "root", "split"),
        ("classes", *_VOC_OPTIONS),
        "{name: my_train, root: /data/my, split: train, classes: [cat, dog]}",
        register_voc,
    ),
    "xml": _Form(
        ("name", "xml", "classes"),
        ("images", "list", "split", "train_fraction", "val_fraction", *_VOC_OPTIONS),
        "{name: my_train, xml: /data/my/labels, images: /data/my/images, classes: [cat, dog]}",
        register_xml_folder,
    ),
    "json": _Form(
        ("name", "json", "images"),
        ("classes", "ignore", "rename", "evaluator"),
        "{name: my_train, json: /data/my/train.json, images: /data/my/images}",
        register_coco,
    ),
}


def register_from_config_entries(entries: Sequence[Any]) -> None:
    """Register the data sets of ``DATASETS.REGISTER``.

    Args:
        entries: one mapping per data set. With ``json`` its keys are the arguments of
            ``register_coco``, with ``xml`` those of ``register_xml_folder``, else those of
            ``register_voc``. ``classes`` may be "auto" in the latter two.

    Raises:
        UserError: for an unknown or missing key, a value of the wrong type, a bad class list, or
            a name that is taken.
    """
    example = _FORMS["root"].example
    if isinstance(entries, Mapping | str) or not isinstance(entries, Sequence):
        raise UserError(f"DATASETS.REGISTER must be a list, such as [{example}]; got {entries!r}")
    for position, entry in enumerate(entries):
        where = f"DATASETS.REGISTER[{position}]"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} must be a mapping such as {example}; got {entry!r}")
        form = _FORMS["json" if "json" in entry else "xml" if "xml" in entry else "root"]
        known = (*form.required, *form.optional)
        unknown = [str(key) for key in entry if key not in known]
        if unknown:
            raise UserError(
                f"{where}: unknown key {', '.join(unknown)}; known keys: {', '.join(known)}. "
                f"Example: {form.example}"
            )
        missing = [key for key in form.required if key not in entry]
        if missing:
            hint = ""
            if missing == ["classes"]:
                hint = " (classes: auto takes the names that occur in the files)"
            raise UserError(f"{where}: missing {', '.join(missing)}{hint}; example: {form.example}")
        arguments = {str(key): _checked(where, key, entry[key]) for key in entry}
        form.register(**{_ARGUMENTS.get(key, key): value for key, value in arguments.items()})


def _checked(where: str, key: str, value: object) -> Any:
    """Return ``value`` if it has the type that ``key`` asks for; "auto" classes become None."""
    wanted = _TYPES[key]
    if wanted is list:
        if value == "auto" and key == "classes":
            return None
        if isinstance(value, list | tuple):
            return value
        auto = ", or auto" if key == "classes" else ""
        raise UserError(
            f"{where}.{key} must be a list of names such as [cat, dog]{auto}; got {value!r}"
        )
    # bool is an int to Python, not to a reader of the config.
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UserError(
            f"{where}.{key} must be {wanted.__name__}; got {value!r} ({type(value).__name__})"
        )
    if value == "":
        raise UserError(f"{where}.{key} is empty")
    if key == "evaluator" and value not in EVALUATORS:
        raise UserError(f"{where}.evaluator must be voc or coco; got {value!r}")
    return value
