"""Checkpoints that a killed process cannot spoil, and whose weights are checked when loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from ..atomic_files import replacing
from ..checkpoint.conversion import Conversion
from ..checkpoint.from_torchvision import looks_like_torchvision
from ..checkpoint.matching import (
    Loaded,
    check_classes,
    check_complete,
    check_preprocessing,
    check_requirements,
    check_shapes,
)
from ..checkpoint.metadata import KEY, Metadata
from ..checkpoint.read import convert_caffemodel, convert_torchvision_file
from ..errors import UserError
from .weight_requirements import checkpoint_metadata, class_names, preprocessing, requirements

logger = logging.getLogger(__name__)


class AtomicCheckpointer(DetectionCheckpointer):
    """The host's checkpointer; a file appears, or replaces another, only when it is complete.

    The host writes into the final file, so a run killed in that moment leaves half a checkpoint, or
    an empty ``last_checkpoint``, and can no longer be resumed.
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
        """Build.

        Args:
            model: as for the host's class.
            save_dir: as for the host's class.
            cfg: of the model: what is loaded is checked against it, and checkpoints carry it with
                class names and preprocessing. None: nothing is checked or added.
            evaluating: nothing will be trained, so that everything has to be in the file.
            unused: sub-module that is not needed then, "" for none; in the phases "rpn" and
                "fast_rcnn" it is the other half.
            kwargs: other arguments of the host's class.
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager: Any = _AtomicPaths(PathManager)
        self._cfg = cfg
        self._evaluating = evaluating
        self._unused = unused
        self._file = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """As the host's, with :class:`.checkpoint.metadata.Metadata`."""
        if self._cfg is not None:
            kwargs.setdefault(KEY, checkpoint_metadata(self._cfg).to_dict())
        super().save(name, **kwargs)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the host's.

        Raises:
            UserError: the file is missing or damaged; names it.
        """
        # A query ("?matching_heuristics=True") may follow the name.
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"there is no checkpoint {path}{self._advice()}")
        try:
            loaded: dict[str, Any] = super().load(path, *args, **kwargs)
        finally:
            # The host asserts that it is None, and leaves it behind when loading fails.
            self._parsed_url_during_load = None
        return loaded

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As the host's; also Caffe's files and those in torchvision's names, converted."""
        self._file = filename
        if filename.endswith(".caffemodel"):
            return _converted(convert_caffemodel(filename))
        try:
            content: dict[str, Any] = super()._load_file(filename)
        except Exception as e:  # a damaged file raises whatever its bytes happen to say
            problem = (
                f"{filename} is damaged, or no checkpoint ({type(e).__name__}); a .pth, .pkl or "
                ".caffemodel file of weights is needed"
            )
            raise UserError(f"{problem}{self._advice()}") from e
        if self._cfg is not None and looks_like_torchvision(content["model"]):
            return _converted(convert_torchvision_file(filename, content["model"]))
        return content

    def _load_model(self, checkpoint: Any) -> Any:
        """As the host's, which only logs what does not fit and goes on with random weights.

        Raises:
            UserError: the weights are not those that the config needs; see
                :mod:`frcnn_plugin.checkpoint.matching`.
        """
        keys = list(checkpoint["model"])
        metadata = Metadata.from_dict(checkpoint.get(KEY))
        if self._cfg is not None:
            check_preprocessing(self._file, metadata, preprocessing(self._cfg))
        incompatible = super()._load_model(checkpoint)
        if self._cfg is not None:
            shapes = {name: (tuple(f), tuple(m)) for name, f, m in incompatible.incorrect_shapes}
            self._check(Loaded(self._file, keys, incompatible.missing_keys, shapes), metadata)
        return incompatible

    def _check(self, loaded: Loaded, metadata: Metadata | None) -> None:
        cfg = self._cfg
        assert cfg is not None
        if self._evaluating:
            other_half = {"rpn": "roi_heads", "fast_rcnn": "proposal_generator"}
            part = self._unused or other_half.get(cfg.MODEL.PAPER_RCNN.PHASE)
            check_complete(loaded.without(part) if part else loaded)
        else:
            check_requirements(loaded, requirements(self.model, cfg))
            for sentence in check_shapes(loaded, cfg.MODEL.WEIGHTS_MAY_LACK):
                logger.warning(sentence)
        check_classes(
            self._file,
            metadata,
            class_names(cfg, test=self._evaluating),
            evaluating=self._evaluating,
        )

    def _advice(self) -> str:
        """How to go on without the file that a run would be resumed from."""
        if not (self.save_dir and self.has_checkpoint()):
            return ""
        last = os.path.join(self.save_dir, "last_checkpoint")
        others = sorted(f for f in os.listdir(self.save_dir) if f.endswith(".pth"))
        return (
            f". {last} names the file that a run is resumed from; write the name of another one "
            f"into it to go on from there ({', '.join(others) or 'there is none'})"
        )


def _converted(result: Conversion) -> dict[str, Any]:
    source = result.metadata.source
    logger.info("%s (%s, %s) is converted", source["file"], result.network, source["layout"])
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
        return _open_temporary(self._inner, path, mode, kwargs)


@contextmanager
def _open_temporary(inner: Any, path: str, mode: str, kwargs: dict[str, Any]) -> Iterator[IO[Any]]:
    with (
        replacing(path, temporary=f"{path}.partial") as temporary,
        inner.open(str(temporary), mode, **kwargs) as file,
    ):
        yield file
