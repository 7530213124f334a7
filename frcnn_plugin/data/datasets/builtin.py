"""The registered names of PASCAL VOC.

Detectron2 itself registers ``voc_2007_*`` and ``voc_2012_*``; those keep difficult objects in
training. Ours are ``voc07_*`` and ``voc12_*``; 07+12 is the two listed together in
``DATASETS.TRAIN``.
"""

from .voc import VOC_CLASSES, VOCSource, register_source

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


def register_builtin() -> None:
    """Register PASCAL VOC 2007 and 2012; a second call changes nothing."""
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
