"""Weight files that have a name: where they are, what they hold, what they are checked by.

A checksum is given only where somebody has published it; the comments say who. Files without one
are not checked.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ...errors import UserError


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on the web and what is published about its bytes."""

    file_name: str  # in the cache folder
    urls: tuple[str, ...] = ()  # tried in this order; empty for a member of an archive
    size: int = 0  # in bytes, for the list; 0 if not published
    # hashlib's algorithm and hexadecimal digits, "sha256:397923af"; perhaps the first digits only,
    # which is what PyTorch puts into the names of files. Empty if not published.
    checksum: str = ""

    @property
    def checked_by(self) -> str:
        """Which published checksum tells whether a file is this one, in words."""
        algorithm, _, digits = self.checksum.partition(":")
        return f"{algorithm.upper()} ({len(digits)} digits)" if digits else "nothing"


@dataclass(frozen=True, kw_only=True)
class KnownFile(RemoteFile):
    """An entry of the catalog, read as ``frcnn://<name>``."""

    name: str  # what the user writes
    description: str  # one line for ``frcnn weights download --list``
    licence: str  # as far as the publisher states one
    archive: RemoteFile | None = None  # the .tgz that holds it, if it is not published on its own
    member: str = ""  # its path in that archive
    is_detector: bool = False  # whether it can detect; training starts from the others

    @property
    def checked_by(self) -> str:
        """Which checksum tells whether a file is this one: its own, or that of its archive."""
        if self.archive and not self.checksum:
            return f"{self.archive.checked_by} of the .tgz"
        return super().checked_by


# Both archives: URL, and MD5 of the first, from data/scripts/fetch_*.sh of py-faster-rcnn. Its
# older addresses at Berkeley have answered 404 since 2017.
IMAGENET_MODELS = RemoteFile(
    file_name="imagenet_models.tgz",
    urls=(
        # The script's dl.dropbox.com has failed for some; the same file (py-faster-rcnn issue 782).
        "https://dl.dropboxusercontent.com/s/gstw7122padlf0l/imagenet_models.tgz?dl=0",
        "https://dl.dropbox.com/s/gstw7122padlf0l/imagenet_models.tgz?dl=0",
    ),
    checksum="md5:ed34ca912d6782edfb673a8c3a0bda6d",
)
FASTER_RCNN_MODELS = RemoteFile(
    file_name="faster_rcnn_models.tgz",
    urls=(
        "https://dl.dropboxusercontent.com/s/o6ii098bu51d139/faster_rcnn_models.tgz?dl=0",
        # Second address and SHA-1, also of the members: opencv_extra's
        # testdata/dnn/download_models.py.
        "https://dl.opencv.org/models/faster_rcnn_models.tgz",
    ),
    checksum="sha1:51bca62727c3fe5d14b66e9331373c1e297df7d1",
)

_PY_FASTER_RCNN = "not stated (py-faster-rcnn: MIT)"

CATALOG: tuple[KnownFile, ...] = (
    KnownFile(
        name="vgg16_caffe_imagenet",
        file_name="VGG_ILSVRC_16_layers.caffemodel",
        urls=(
            "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel",
            "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel",
        ),
        # Size, SHA-256 and licence: models/public/vgg16/model.yml of OpenVINO's open_model_zoo.
        size=553432081,
        checksum="sha256:a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197",
        description="VGG16 on ImageNet, the original (paper)",
        licence="CC BY 4.0",
    ),
    KnownFile(
        name="vgg16_torchvision_imagenet",
        file_name="vgg16-397923af.pth",
        urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
        # torchvision publishes the first digits, in the name. Several projects that pin the file
        # state the same size, and all digits.
        size=553433881,
        checksum="sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        description="VGG16 on ImageNet, torchvision's (RGB in [0, 1])",
        licence="BSD-3-Clause",
    ),
    KnownFile(
        name="vgg16_torchvision_features",
        file_name="vgg16_features-amdegroot-88682ab5.pth",
        urls=("https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",),
        # The name; torchvision checks it when it downloads. There it is
        # VGG16_Weights.IMAGENET1K_FEATURES. fc6 and fc7 are in the file, full of nan.
        checksum="sha256:88682ab5",
        description="VGG16 on ImageNet, convolutions only (RGB, Caffe's scale)",
        licence="BSD-3-Clause (ssd.pytorch: MIT)",
    ),
    KnownFile(
        name="vgg16_caffe_pth",
        file_name="vgg16-00b39a1b.pth",
        urls=(
            # The second is in pytorch-vgg's README; later projects took the author's other page.
            "https://web.eecs.umich.edu/~justincj/models/vgg16-00b39a1b.pth",
            "https://s3-us-west-2.amazonaws.com/jcjohns-models/vgg16-00b39a1b.pth",
        ),
        # The name, made for torch.utils.model_zoo, which checked it. There are other files of this
        # name, saved again with other layer names; they have another SHA-256.
        checksum="sha256:00b39a1b",
        description="vgg16_caffe_imagenet as .pth (jcjohnson/pytorch-vgg)",
        licence="not stated (original: CC BY 4.0)",
    ),
    KnownFile(
        name="zf_caffe_imagenet",
        file_name="ZF.v2.caffemodel",
        archive=IMAGENET_MODELS,
        member="imagenet_models/ZF.v2.caffemodel",
        description="ZF on ImageNet (paper)",
        licence=_PY_FASTER_RCNN,
    ),
    KnownFile(
        name="vgg16_py_faster_rcnn_voc07",
        file_name="VGG16_faster_rcnn_final.caffemodel",
        archive=FASTER_RCNN_MODELS,
        member="faster_rcnn_models/VGG16_faster_rcnn_final.caffemodel",
        checksum="sha1:dd099979468aafba21f3952718a9ceffc7e57699",
        description="VGG16 detector on VOC07 trainval, four stages (alt_opt)",
        licence=_PY_FASTER_RCNN,
        is_detector=True,
    ),
    KnownFile(
        name="zf_py_faster_rcnn_voc07",
        file_name="ZF_faster_rcnn_final.caffemodel",
        archive=FASTER_RCNN_MODELS,
        member="faster_rcnn_models/ZF_faster_rcnn_final.caffemodel",
        checksum="sha1:7af886686f149622ed7a41c08b96743c9f4130f5",
        description="ZF detector on VOC07 trainval, four stages (alt_opt)",
        licence=_PY_FASTER_RCNN,
        is_detector=True,
    ),
    KnownFile(
        name="vgg16_py_faster_rcnn_coco",
        file_name="coco_vgg16_faster_rcnn_final.caffemodel",
        # models/README.md of py-faster-rcnn; no checksum.
        urls=(
            "https://dl.dropboxusercontent.com/s/cotx0y81zvbbhnt/coco_vgg16_faster_rcnn_final.caffemodel?dl=0",
        ),
        description="VGG16 detector on COCO 2014, joint (end2end)",
        licence=_PY_FASTER_RCNN,
        is_detector=True,
    ),
)


def find(name: str) -> KnownFile:
    """Return the entry called `name`; a UserError for any other lists the names."""
    for known in CATALOG:
        if known.name == name:
            return known
    names = [known.name for known in CATALOG]
    alike = difflib.get_close_matches(name, names)
    hint = f"Did you mean {' or '.join(alike)}? " if alike else ""
    raise UserError(f"no weight file is called '{name}'. {hint}Known are {', '.join(names)}")


def members_of(archive: RemoteFile) -> list[KnownFile]:
    """Return the entries that an archive holds."""
    return [known for known in CATALOG if known.archive == archive]
