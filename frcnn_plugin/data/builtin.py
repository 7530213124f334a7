"""The registered names of PASCAL VOC, and data sets that come from the config.

Detectron2 itself registers ``voc_2007_*`` and ``voc_2012_*``; those keep difficult objects in
training. Ours are ``voc07_*`` and ``voc12_*``; 07+12 is the two listed together in
``DATASETS.TRAIN``.
"""

from collections.abc import Mapping, Sequence

from ..errors import UserError
from .voc import VOC_CLASSES, VOCSource, register_source, register_voc

# Registered name -> number of images in PASCAL's image set, as the VOC site gives it.
OFFICIAL_IMAGE_COUNTS: dict[str, int] = {
    "voc07_train": 2501,
    "voc07_val": 2510,
    "voc07_trainval": 5011,
    "voc07_test": 4952,
    "voc12_train": 5717,
    "voc12_val": 5823,
    "voc12_trainval": 11540,
}

_ENTRY_TYPES: dict[str, type] = {
    "name": str,
    "root": str,
    "split": str,
    "classes": list,
    "year": int,
    "use_difficult": bool,
    "strict": bool,
}
_REQUIRED = ("name", "root", "split")
_EXAMPLE = "{name: my_train, root: /data/my, split: train, classes: [cat, dog]}"


def register_builtin() -> None:
    """Registers PASCAL VOC 2007 and 2012; a second call changes nothing."""
    for name in OFFICIAL_IMAGE_COUNTS:
        short_year, split = name.removeprefix("voc").split("_")
        year = 2000 + int(short_year)
        register_source(
            VOCSource(
                name=name,
                roots=(f"VOCdevkit/VOC{year}", f"VOC{year}"),
                split=split,
                classes=VOC_CLASSES,
                year=year,
                official=True,
            )
        )


def register_from_config_entries(entries: Sequence[Mapping[str, object]]) -> None:
    """Registers the data sets of ``DATASETS.REGISTER``.

    Args:
        entries: one mapping per data set; its keys are the arguments of `register_voc`, of which
            `name`, `root` and `split` must be there.

    Raises:
        UserError: for an unknown or missing key, a value of the wrong type, a bad class list, or
            a name that is taken.
    """
    if isinstance(entries, Mapping | str) or not isinstance(entries, Sequence):
        raise UserError(f"DATASETS.REGISTER must be a list, such as [{_EXAMPLE}]; got {entries!r}")
    for position, entry in enumerate(entries):
        where = f"DATASETS.REGISTER[{position}]"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} must be a mapping such as {_EXAMPLE}; got {entry!r}")
        unknown = [str(key) for key in entry if key not in _ENTRY_TYPES]
        if unknown:
            known = ", ".join(_ENTRY_TYPES)
            raise UserError(f"{where}: unknown key {', '.join(unknown)}; known keys: {known}")
        missing = [key for key in _REQUIRED if key not in entry]
        if missing:
            raise UserError(f"{where}: missing {', '.join(missing)}; example: {_EXAMPLE}")
        arguments = {key: _check_type(where, key, value) for key, value in entry.items()}
        register_voc(**arguments)  # type: ignore[arg-type]


def _check_type(where: str, key: str, value: object) -> object:
    """Returns `value` if it has the type that `key` asks for."""
    wanted = _ENTRY_TYPES[key]
    if wanted is list:
        if isinstance(value, list | tuple):
            return value
        raise UserError(f"{where}.{key} must be a list of names such as [cat, dog]; got {value!r}")
    # bool is an int to Python, not to a reader of the config.
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UserError(
            f"{where}.{key} must be {wanted.__name__}; got {value!r} ({type(value).__name__})"
        )
    if value == "":
        raise UserError(f"{where}.{key} is empty")
    return value
