"""From a YAML to a complete config, before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode

from ..config import get_config_file, plugin_cfg
from ..data.datasets.config_entries import register_from_config_entries
from ..errors import UserError
from ..four_step.stages import apply_four_step

logger = logging.getLogger(__name__)

START = "faster_rcnn_vgg16_voc.yaml"  # the config that most begin with


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config with the plugin's keys, register its data sets, choose the device.

    Whether it makes sense, :func:`frcnn_plugin.preflight.stop_on_errors` says.

    Args:
        config_file: path of a YAML; "" for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.

    Returns:
        The frozen config. Without CUDA, a ``MODEL.DEVICE`` of cuda has become cpu; in four-step
        training the SOLVER keys follow from FOUR_STEP.

    Raises:
        UserError: missing or malformed file, unknown key, bad value.
    """
    cfg = plugin_cfg()
    if config_file:
        if not Path(config_file).is_file():
            ours = Path(get_config_file(START)).parent
            raise UserError(f"no config file '{config_file}'; those of frcnn_plugin are in {ours}")
        _merge(config_file, lambda: cfg.merge_from_file(config_file))
    merge_overrides(cfg, opts)
    # From here on, any part may ask Detectron2's catalogs for the data sets of the config.
    register_from_config_entries(cfg.DATASETS.REGISTER)
    # After the overrides, as SOLVER.MAX_ITER and STEPS follow from FOUR_STEP.
    apply_four_step(cfg)
    cfg.freeze()
    return cfg


def merge_overrides(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Apply overrides, and replace a ``MODEL.DEVICE`` that does not exist by the CPU; in place.

    Args:
        cfg: not frozen.
        opts: ``KEY VALUE KEY VALUE ...``.

    Raises:
        UserError: an odd number of words, unknown key, bad value.
    """
    if len(opts) % 2:
        raise UserError(
            f"overrides come as KEY VALUE pairs, but there are {len(opts)} words: {' '.join(opts)}"
        )
    _merge("the command line", lambda: cfg.merge_from_list(list(opts)))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s but there is no CUDA: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def _merge(source: str, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, TypeError) as e:
        # yacs says what is wrong, but in a KeyError, whose text str() quotes once more.
        message = str(e.args[0]) if e.args else str(e)
        if f"({float} vs. {int})" in message:
            message += ". Write the number with a point, such as 60.0 instead of 60"
        raise UserError(f"{source}: {message}") from e
    except yaml.YAMLError as e:
        raise UserError(f"{source} is not YAML: {' '.join(str(e).split())}") from e
    except OSError as e:
        raise UserError(f"{source}: its _BASE_ {e.filename} cannot be read ({e.strerror})") from e
