"""Checkpoints that a killed process cannot spoil, and whose weights are checked when loaded."""

from __future__ import annotations

import copy
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..atomic_files import replacing
from ..errors import UserError
from ..modeling.backbone.caffe_backbone import CaffeBackbone
from .catalog.download import PREFIX
from .catalog.known_files import find
from .conversion import (
    Conversion,
    copied_to_heads,
    looks_like_torchvision,
    pruned,
    reduce_fc,
    used_statistics,
    without_statistics,
)
from .matching import (
    Loaded,
    check_anchors,
    check_classes,
    check_complete,
    check_layers,
    check_may_lack,
    check_preprocessing,
    check_shapes,
    is_in,
)
from .metadata import KEY, Metadata, Preprocessing
from .read import (
    convert_caffemodel,
    convert_torchvision_file,
    existing,
    last_checkpoint,
    name_another,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

_OTHER_FILE = (
    "'frcnn weights check FILE' says what a file holds: choose another one; or, to train from "
    "scratch, leave MODEL.WEIGHTS empty and set MODEL.BACKBONE.FREEZE_AT 0"
)
_NORMS = (FrozenBatchNorm2d, _BatchNorm)
_PLAIN = "For weights without normalisation, set MODEL.PAPER_VGG.NORM \"''\""
_FROM_RANDOM = (
    "docs/weights.md lists files that have them, and MODEL.ROI_BOX_HEAD.PRUNE_WEIGHTS True cuts "
    "wider ones down. To start them at random, and narrow, as your images have to teach them all: "
    "MODEL.WEIGHTS_MAY_LACK \"['roi_heads.box_head']\" MODEL.ROI_BOX_HEAD.FC_DIM 512"
)


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file appears, or replaces another, only when it is complete.

    Detectron2 writes into the final file, so a run that is killed at that moment leaves half a
    checkpoint, or an empty ``last_checkpoint``, and can no longer be resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        evaluating: bool = False,
        unused: str = "",
        **kwargs: Any,
    ) -> None:
        """Build the checkpointer of a model, with the further arguments of Detectron2's class.

        What is loaded is checked against `cfg`, and checkpoints carry it with class names and
        preprocessing; if it is None, nothing is checked or added. With `evaluating` everything has
        to be in the file but the sub-module `unused`, which is the other half in the phases "rpn"
        and "fast_rcnn".
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager: Any = _AtomicPaths(PathManager)
        self._cfg = cfg
        self._evaluating = evaluating
        self._unused = unused
        self._file = ""
        self._metadata: dict[str, Any] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as Detectron2 does, with :class:`.metadata.Metadata`."""
        if not self.save_dir or not self.save_to_disk:
            return
        if self._cfg is not None:
            if self._metadata is None:  # once: a config as YAML takes as long as a small file
                cfg = self._cfg
                metadata = Metadata("detector", preprocessing(cfg), class_names(cfg), cfg.dump())
                self._metadata = metadata.to_dict()
            kwargs.setdefault(KEY, self._metadata)
        for left in Path(self.save_dir).glob("*.pth.partial"):  # of a process that was killed
            left.unlink(missing_ok=True)
        # Detectron2's own model has no statistics: a file without them means the same to both.
        kwargs.setdefault("model", without_statistics(self.model.state_dict()))
        super().save(name, **kwargs)

    def get_checkpoint_file(self) -> str:
        """Return the file that a run is resumed from; "" if none is named."""
        return str(last_checkpoint(self.save_dir) or "")

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load as Detectron2 does; a UserError names a missing or damaged file."""
        # A query ("?matching_heuristics=True") may follow the name.
        file = path.partition("?")[0] if path else ""
        try:
            if file and "://" not in file:
                existing(file)
        except UserError as e:
            raise UserError(f"{e}{self._advice()}") from e
        try:
            loaded: dict[str, Any] = super().load(path, *args, **kwargs)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
            # What modules, optimizers and hooks raise that cannot take their part of it.
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
            raise UserError(
                f"{path} does not fit this model or this run ({problem}){self._advice()}"
            ) from e
        finally:
            # Detectron2 asserts that it is None, and does not reset it when loading fails.
            self._parsed_url_during_load = None
        return loaded

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read as Detectron2 does; convert Caffe's files and those in torchvision's names."""
        self._file = filename
        if filename.endswith(".caffemodel"):
            return _converted(convert_caffemodel(filename))
        try:
            # Detectron2 would run what is in a .pkl; it reads the others with _torch_load.
            own = filename.endswith((".pkl", ".pyth"))
            content = self._torch_load(filename) if own else super()._load_file(filename)
        except UserError as e:
            raise UserError(f"{e}{self._advice()}") from e
        except Exception as e:  # of the query in the name
            raise UserError(f"{filename} cannot be loaded ({e}){self._advice()}") from e
        if self._cfg is not None and looks_like_torchvision(content["model"]):
            return _converted(convert_torchvision_file(filename, content["model"]))
        return content

    def _torch_load(self, f: str) -> dict[str, Any]:
        """Read a file safely, and compare it with its checksums."""
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        """Load, and stop at what Detectron2 only logs: weights that do not fit stay random."""
        weights = placed = self._placed(checkpoint["model"])
        keys = list(placed)
        head = self._cfg.MODEL.ROI_BOX_HEAD if self._cfg is not None else None
        if head is not None and head.PRUNE_WEIGHTS and not self._evaluating:
            weights = pruned(placed, head.FC_DIM)
            if weights is not placed:
                logger.info("fc6 and fc7 are cut down to their %d strongest units", head.FC_DIM)
        own = self.model.state_dict()
        checkpoint["model"] = weights = without_statistics(copied_to_heads(weights, own))
        owners = used_statistics(weights)
        metadata = Metadata.from_dict(checkpoint.get(KEY))
        if self._cfg is not None:
            check_preprocessing(self._file, metadata, preprocessing(self._cfg))
        if reduced := reduce_fc(weights, own):
            logger.info("fc6 and fc7 of %s are sub-sampled to convolutions", self._file)
            checkpoint["model"] = {**weights, **reduced}
        incompatible = super()._load_model(checkpoint)
        norms = [name for name in keys if name.endswith(".bn1_1.running_mean")]
        if norms and norms[0] not in own:
            raise UserError(
                f"{self._file} is of a VGG16 with batch normalisation, which the model has not: "
                "set MODEL.PAPER_VGG.NORM FrozenBN"
            )
        if self._cfg is not None:
            shapes = {name: (tuple(f), tuple(m)) for name, f, m in incompatible.incorrect_shapes}
            loaded = Loaded(self._file, keys, incompatible.missing_keys, shapes)
            self._check(loaded, metadata, self._cfg)
        # Also where another project has given the layer more classes, but not its statistics.
        fits = {n for n, w in weights.items() if n in own and own[n].shape == w.shape}
        lost = [
            owner.rstrip(".")
            for owner, layer in owners.items()
            if f"{layer}.weight" in fits and f"{owner}target_statistics.mean" not in fits
        ]
        if lost:
            raise UserError(
                f"{self._file} has box target statistics, which {' and '.join(lost)} of the model "
                "cannot use, so that its boxes would be wrong. Fold them into the weights: frcnn "
                f"weights convert {shlex.quote(self._file)} folded.pth --fold"
            )
        return incompatible

    def _placed(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Name the layers of a plain backbone in a file as they are named inside a pyramid."""
        modules = self.model.named_modules()
        place = next((f"{n}." for n, m in modules if isinstance(m, CaffeBackbone)), "")
        plain = f"{place.partition('.')[0]}."
        if place == plain or any(name.startswith(place) for name in weights):
            return weights
        own = self.model.state_dict()
        targets = {name: place + name.removeprefix(plain) for name in weights}
        placed = copy.copy(weights)  # with the versions of modules, which are an attribute
        for name, target in targets.items():
            if name.startswith(plain) and target in own:
                placed[target] = placed.pop(name)
        return placed

    def _check(self, loaded: Loaded, metadata: Metadata | None, cfg: CfgNode) -> None:
        if self._evaluating:
            other_half = {"rpn": "roi_heads", "fast_rcnn": "proposal_generator"}
            part = self._unused or other_half.get(cfg.MODEL.PAPER_RCNN.PHASE)
            check_complete(loaded.without(part) if part else loaded, metadata)
        else:
            self._check_training(loaded, metadata, cfg)
        check_anchors(loaded, metadata, cfg.MODEL.ANCHOR_GENERATOR)
        # With a map, the classes of the test set are not the detector's.
        test = self._evaluating and not cfg.DATASETS.CLASS_MAP
        classes = class_names(cfg, test=test)
        check_classes(loaded.file, metadata, classes, evaluating=self._evaluating)

    def _check_training(self, loaded: Loaded, metadata: Metadata | None, cfg: CfgNode) -> None:
        """Training must not start without our backbones, nor a trained head without fc6 and fc7."""
        may_lack = cfg.MODEL.WEIGHTS_MAY_LACK
        check_may_lack(may_lack, self.model)
        for prefix, module in self.model.named_modules():
            if is_in(prefix, may_lack):
                continue
            if isinstance(module, CaffeBackbone):
                # Of the blocks: what a network has beside them, files of ImageNet weights lack.
                layers = [
                    f"{prefix}.{name}"
                    for name, m in module.named_modules()
                    if isinstance(m, nn.Conv2d) and name.split(".")[0] in module.block_names
                ]
                check_layers(loaded, type(module).__name__, "conv layers", layers, _OTHER_FILE)
                norms = [
                    f"{prefix}.{n}" for n, m in module.named_modules() if isinstance(m, _NORMS)
                ]
                check_layers(loaded, type(module).__name__, "normalisations", norms, _PLAIN)
            elif getattr(module, "has_fc", False) and cfg.MODEL.PAPER_RCNN.PHASE != "rpn":
                layers, name = [f"{prefix}.fc6", f"{prefix}.fc7"], type(module).__name__
                check_layers(loaded, name, "fully connected layers", layers, _FROM_RANDOM)
        frozen = [n for n in loaded.missing if is_in(n, cfg.MODEL.PAPER_RCNN.FREEZE)]
        if lacking := [n for n in frozen if not is_in(n, may_lack)]:
            raise UserError(
                f"MODEL.PAPER_RCNN.FREEZE {list(cfg.MODEL.PAPER_RCNN.FREEZE)}: {len(lacking)} of "
                f"these weights, such as {lacking[0]}, are not in {loaded.file}, and would stay "
                "random. Use weights that have them, or take the part out of the list"
            )
        for sentence in check_shapes(loaded, may_lack, metadata):
            logger.warning(sentence)

    def _advice(self) -> str:
        """Say how to continue without the file that a run would be resumed from."""
        if not (self.save_dir and self.has_checkpoint()):
            return ""
        return f". {name_another(self.save_dir)}"


def _converted(result: Conversion) -> dict[str, Any]:
    source = result.metadata.source
    logger.info("%s (%s, %s) is converted", source["file"], result.network, source["layout"])
    if result.unused:
        logger.info("left out: %s", ", ".join(result.unused))
    return {"model": result.state_dict, KEY: result.metadata.to_dict()}


class _AtomicPaths:
    """A path manager whose files open for writing are temporary until they are closed."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if "w" not in mode:
            return self._inner.open(path, mode, **kwargs)
        return self._open_temporary(path, mode, kwargs)

    @contextmanager
    def _open_temporary(self, path: str, mode: str, kwargs: dict[str, Any]) -> Iterator[IO[Any]]:
        with (
            replacing(path, temporary=f"{path}.partial") as temporary,
            self._inner.open(str(temporary), mode, **kwargs) as file,
        ):
            yield file


def names_detector(cfg: CfgNode) -> bool:
    """Return whether ``MODEL.WEIGHTS`` may be a trained model: set, and no known ImageNet file."""
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith(PREFIX):
        return find(weights.removeprefix(PREFIX)).is_detector
    return bool(weights)


def load_model(cfg: CfgNode, *, unused: str = "") -> nn.Module:
    """Build the model of a config with ``MODEL.WEIGHTS``, for inference.

    The weights of a sub-module that is `unused`, such as "roi_heads", may be missing. A UserError
    says that others are, or that there are none.
    """
    if not names_detector(cfg):
        given = f"{cfg.MODEL.WEIGHTS} is no detector" if cfg.MODEL.WEIGHTS else "no weights given"
        raise UserError(
            f"{given}. Add MODEL.WEIGHTS path/to/model_final.pth, the weights of a trained detector"
        )
    model: nn.Module = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True, unused=unused).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def preprocessing(cfg: CfgNode) -> Preprocessing:
    """Return how the config makes network inputs of images."""
    return Preprocessing(
        cfg.INPUT.FORMAT,
        tuple(float(v) for v in cfg.MODEL.PIXEL_MEAN),
        tuple(float(v) for v in cfg.MODEL.PIXEL_STD),
    )


def class_names(cfg: CfgNode, *, test: bool = False) -> tuple[str, ...] | None:
    """Return the class names of the first training (or test) set, which is registered.

    None if the set has no names, or more or fewer than the model has classes.
    """
    for name in (cfg.DATASETS.TEST if test else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))[:1]:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return tuple(str(n) for n in names)
    return None
