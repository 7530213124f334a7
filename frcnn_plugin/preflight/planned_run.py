"""What is going to run, as the checks see it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.read import last_checkpoint
from ..config import plugin_cfg
from ..config_files import load_config_file, merge_overrides
from ..data.datasets.arguments import objects_that_count
from ..data.datasets.coco import coco_source
from ..errors import UserError
from ..four_step.evaluation import as_checkpoint_is
from ..modeling.backbone.caffe_backbone import backbone_feature_sizes
from .finding import Finding
from .values import check_values

# A data set in a JSON file is loaded if it is no larger than this: about a second.
_MOST_JSON_BYTES = 30 * 2**20

_MOST_PROCESSES = 16  # on a machine of fewer cores


@dataclass
class PlannedRun:
    """A config and how it is run; what is expensive is made once, when it is first asked for.

    Attributes:
        cfg: from :func:`~frcnn_plugin.engine.setup.setup_cfg`.
        eval_only: nothing will be trained.
        resume: a run in ``OUTPUT_DIR`` will be resumed.
        overwrite: a run in ``OUTPUT_DIR`` may be lost.
        num_processes: on all machines together.
        num_machines: among which they are divided equally.
        config_file: the file `cfg` was read from; "" if unknown.
        every_image: look at all images, not just some; load every data set.
        alone: nothing follows the checks in this process.
        opts: the overrides that `cfg` was made with, beside `config_file`.
        failed: a check has found an error.
    """

    cfg: CfgNode
    eval_only: bool = False
    resume: bool = False
    overwrite: bool = False
    num_processes: int = 1
    num_machines: int = 1
    config_file: str = ""
    every_image: bool = False
    alone: bool = False
    opts: Sequence[str] = ()
    failed: bool = False
    _loaded: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if self.processes_here > max(_MOST_PROCESSES, cores):
            raise UserError(
                f"--num-gpus is {self.processes_here}, and this machine has {cores} CPU cores: it "
                f"must be at most {max(_MOST_PROCESSES, cores)}"
            )
        if self.resume and self.overwrite:
            raise UserError(
                "--resume continues the run in OUTPUT_DIR, --overwrite loses it: give one of them"
            )

    @property
    def processes_here(self) -> int:
        """Processes on this machine."""
        return self.num_processes // self.num_machines

    @property
    def train(self) -> tuple[str, ...]:
        """Names of the training sets; none if nothing is trained."""
        return () if self.eval_only else tuple(self.cfg.DATASETS.TRAIN)

    @property
    def test(self) -> tuple[str, ...]:
        """Names of the test sets."""
        return tuple(self.cfg.DATASETS.TEST)

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that ``OUTPUT_DIR`` names as its last, which may be missing.

        If it is not to be resumed, any path says that there is one.
        """
        if self.resume:
            return last_checkpoint(self.cfg.OUTPUT_DIR)
        note = Path(self.cfg.OUTPUT_DIR, "last_checkpoint")
        return note if os.path.isfile(note) else None

    @property
    def weights(self) -> str:
        """The file that the run loads first; "" if there is none."""
        resumed = self.last_checkpoint if self.resume and not self.eval_only else None
        return str(resumed or self.cfg.MODEL.WEIGHTS)

    def load(self, name: str) -> Any:
        """Load a registered data set, once."""
        if name not in self._loaded:
            self._loaded[name] = DatasetCatalog.get(name)
        return self._loaded[name]

    def is_quick(self, name: str) -> bool:
        """Say whether a data set is loaded, or may be: all but Detectron2's large JSON files."""
        file = None if coco_source(name) else MetadataCatalog.get(name).get("json_file")
        if name in self._loaded or self.every_image or not file:
            return True
        return Path(file).is_file() and Path(file).stat().st_size <= _MOST_JSON_BYTES

    def dicts(self, name: str) -> list[dict[str, Any]]:
        """Return the images of a data set; none if it cannot be loaded, or not quickly."""
        try:
            loaded = self.load(name) if name in DatasetCatalog and self.is_quick(name) else []
        except Exception:  # check_data says what is wrong
            loaded = self._loaded[name] = []
        return loaded if isinstance(loaded, list) else []

    def size(self, name: str) -> int:
        """Return the number of images that a run takes from a data set; 0 if unknown."""
        dicts = self.dicts(name)
        if name in self.train and self.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            return sum(bool(objects_that_count(d)) for d in dicts)
        return len(dicts)

    @cached_property
    def bad_values(self) -> list[Finding]:
        """What is wrong with values of the config, so that nothing can be computed from them."""
        return list(check_values(self.cfg, trains=not self.eval_only))

    @cached_property
    def written(self) -> CfgNode:
        """The config as it is written, before keys follow from others; `cfg` if unknown."""
        if not (self.config_file or self.opts):
            return self.cfg
        cfg = plugin_cfg()
        with muted("fvcore"), muted("frcnn_plugin"):
            if self.config_file:
                load_config_file(cfg, self.config_file)
            merge_overrides(cfg, self.opts)
        return cfg

    @cached_property
    def scaled(self) -> CfgNode:
        """The config as the trainer changes it for the number of processes."""
        with muted("detectron2"):
            return DefaultTrainer.auto_scale_workers(self.cfg, self.num_processes)

    @cached_property
    def model_cfg(self) -> CfgNode:
        """The config that the model is built from, on the meta device."""
        cfg = as_checkpoint_is(self.cfg) if self.eval_only else self.cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        return cfg

    @cached_property
    def model(self) -> nn.Module:
        """The model: names and shapes, without memory for numbers."""
        with torch.device("meta"), muted("detectron2"):
            return build_model(self.model_cfg)

    @cached_property
    def map_sizes(self) -> Callable[[int, int], list[tuple[int, int]]]:
        """From (height, width) of a network input, those of the maps that have anchors."""
        backbone: Any = self.model.backbone
        names, channels = self.cfg.MODEL.RPN.IN_FEATURES, len(self.cfg.MODEL.PIXEL_MEAN)
        return lru_cache(backbone_feature_sizes(backbone, names, channels))


@contextmanager
def muted(name: str) -> Iterator[list[str]]:
    """Silence a logger, and those below it, for a while; collect what they warn about."""
    logger, messages = logging.getLogger(name), []
    collect = logging.Handler(logging.WARNING)
    collect.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collect], False
    try:
        yield messages
    finally:
        logger.handlers, logger.propagate = handlers, propagate
