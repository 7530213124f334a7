"""Data sets that come from the config: the entries of ``DATASETS.REGISTER``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from ...errors import UserError
from .coco import register_coco
from .voc import register_voc
from .xml_folder import register_xml_folder

# Of the others, the registering functions see to it.
# fmt: off
_TYPES: dict[str, type] = {
    "name": str, "root": str, "split": str, "xml": str, "images": str, "list": str, "json": str,
    "evaluator": str, "year": int, "counts_from": int, "use_difficult": bool, "strict": bool,
    "annotated": bool,
    "train_fraction": float, "val_fraction": float,
}
# fmt: on

# Arguments whose keys are shorter.
_KEYS = {"image_list": "list", "json_file": "json"}

# The key that tells an entry of this form -> what registers it, and an example.
_FORMS: dict[str, tuple[Callable[..., None], str]] = {
    "json": (
        register_coco,
        "{name: my_train, json: /data/my/train.json, images: /data/my/images}",
    ),
    "xml": (
        register_xml_folder,
        "{name: my_train, xml: /data/my/labels, images: /data/my/images, classes: [cat, dog]}",
    ),
    "root": (
        register_voc,
        "{name: my_train, root: /data/my, split: train, classes: [cat, dog]}",
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
    _, example = _FORMS["root"]
    if isinstance(entries, Mapping | str) or not isinstance(entries, Sequence):
        raise UserError(f"DATASETS.REGISTER must be a list, such as [{example}]; got {entries!r}")
    for position, entry in enumerate(entries):
        where = f"DATASETS.REGISTER[{position}]"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} must be a mapping such as {example}; got {entry!r}")
        register, example_of_form = _FORMS[next((key for key in _FORMS if key in entry), "root")]
        arguments = {_KEYS.get(a.name, a.name): a for a in signature(register).parameters.values()}
        unknown = [str(key) for key in entry if key not in arguments]
        if unknown:
            raise UserError(
                f"{where}: unknown key {', '.join(unknown)}; known keys: {', '.join(arguments)}. "
                f"Example: {example_of_form}"
            )
        missing = [k for k, a in arguments.items() if a.default is a.empty and k not in entry]
        if missing:
            hint = ""
            if missing == ["classes"]:
                hint = " (classes: auto takes the names that occur in the files)"
            raise UserError(
                f"{where}: missing {', '.join(missing)}{hint}; example: {example_of_form}"
            )
        register(**{arguments[key].name: _checked(where, key, entry[key]) for key in entry})


def _checked(where: str, key: str, value: object) -> Any:
    """Return ``value`` if it has the type that ``key`` asks for; "auto" classes become None."""
    if key == "classes" and value == "auto":
        return None
    if value is None or value == "":
        raise UserError(f"{where}.{key} is empty")
    wanted = _TYPES.get(key, object)
    # bool is an int to Python, not to a reader of the config.
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UserError(
            f"{where}.{key} must be {wanted.__name__}; got {value!r} ({type(value).__name__})"
        )
    return value
