"""What happens to the weights between two steps (paper section 3.2)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_files import replacing
from ..checkpoint.read import peek
from ..errors import UserError

logger = logging.getLogger(__name__)


def save_initial(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all weights to a file, whole or not at all.

    Step 2 starts again from them: the ImageNet weights where the run loaded some, and the very
    draw it began with where it did not.
    """
    with replacing(path, temporary=f"{path}.partial") as temporary:
        torch.save({"model": model.state_dict()}, temporary)


def restore_initial(
    model: nn.Module, path: str | os.PathLike[str], prefixes: Sequence[str]
) -> None:
    """Load the initial weights of some sub-modules back, in place.

    Args:
        model: unwrapped.
        path: file of :func:`save_initial`, or any checkpoint with these weights.
        prefixes: names of sub-modules, such as "backbone".

    Raises:
        UserError: the file is missing or damaged, or lacks weights.
    """
    if not Path(path).is_file():
        raise UserError(
            f"step 2 starts from the initial weights again, but {path} is missing: name a file "
            "that has them with FOUR_STEP.INITIAL_WEIGHTS"
        )
    try:
        weights = peek(path).weights
    except UserError as e:
        raise UserError(f"{e}; or name another file with FOUR_STEP.INITIAL_WEIGHTS") from e
    wanted = {k: v for k, v in model.state_dict().items() if k.split(".", 1)[0] in prefixes}
    missing = [k for k, v in wanted.items() if k not in weights or weights[k].shape != v.shape]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} weights that step 2 starts from, or "
            f"has them in another shape: {', '.join(missing[:5])}"
        )
    model.load_state_dict({k: weights[k] for k in wanted}, strict=False)


def redraw_rpn_head(model: nn.Module, seed: int) -> None:
    """Give the RPN head new random weights, N(0, 0.01) (point 44 of docs/faithfulness.md)."""
    head: Any = model.proposal_generator.rpn_head  # type: ignore[union-attr]
    head.reset_parameters(torch.Generator().manual_seed(seed))


def redraw_predictor(model: nn.Module, seed: int) -> None:
    """Give cls_score and bbox_pred new random weights, N(0, 0.01) and N(0, 0.001)."""
    predictor: Any = model.roi_heads.box_predictor  # type: ignore[union-attr]
    predictor.reset_parameters(torch.Generator().manual_seed(seed))


def fold_statistics(model: nn.Module) -> None:
    """Bake target statistics into the last layers, so that they mean what stock layers mean."""
    rpn: Any = getattr(model, "proposal_generator", None)
    if getattr(rpn, "target_statistics", None) is not None and rpn.target_statistics.active:
        rpn.target_statistics.fold(rpn.rpn_head.rpn_bbox_pred)
    predictor: Any = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    if (
        getattr(predictor, "target_statistics", None) is not None
        and predictor.target_statistics.active
    ):
        predictor.target_statistics.fold(predictor.bbox_pred)


def digest(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of a module's weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()
