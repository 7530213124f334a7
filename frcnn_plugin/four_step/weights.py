"""What happens to the weights between two stages (paper section 3.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_files import replacing
from ..checkpoint.read import peek
from ..errors import UserError
from .stages import Stage


def begin_stage(
    model: nn.Module, stage: Stage, initial_weights: str | os.PathLike[str], seed: int
) -> None:
    """Change weights in place to those that a stage begins with.

    Args:
        model: unwrapped, with the weights at the end of the stage before.
        stage: the one that begins.
        initial_weights: file of :func:`save_initial`.
        seed: of new random weights.

    Raises:
        UserError: see :func:`restore_initial`.
    """
    if stage.restores:
        restore_initial(model, initial_weights, stage.trains)
    if stage.redraws:
        redraw(model, stage.redraws, seed)


def save_initial(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all weights to a file, whole or not at all.

    Stage 2 starts again from them: the ImageNet weights where the run loaded some, and the very
    draw it began with where it did not. They are kept in a file because nothing else has them when
    stage 2 begins: the model was trained on, and a random draw cannot be repeated after a resume.
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
            f"stage 2 starts from the initial weights again, but {path} is missing: name a file "
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
            f"{path} lacks {len(missing)} of the {len(wanted)} weights that stage 2 starts from, "
            f"or has them in another shape: {', '.join(missing[:5])}"
        )
    model.load_state_dict({k: weights[k] for k in wanted}, strict=False)


def redraw(model: nn.Module, name: str, seed: int) -> None:
    """Give a sub-module new random weights, as its ``reset_parameters`` draws them.

    N(0, 0.01) for an RPN head (point 44 of docs/faithfulness.md) and for cls_score, N(0, 0.001) for
    bbox_pred; on the CPU, so that a GPU trains from the same ones.

    Args:
        model: unwrapped.
        name: of the sub-module, such as "proposal_generator.rpn_head".
        seed: of the draw.
    """
    module: Any = model.get_submodule(name)
    module.reset_parameters(torch.Generator().manual_seed(seed))


def fold_statistics(model: nn.Module) -> None:
    """Bake target statistics into the last layers, so that they mean what stock layers mean."""
    rpn: Any = getattr(model, "proposal_generator", None)
    predictor: Any = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    for owner, layer in (
        (rpn, getattr(getattr(rpn, "rpn_head", None), "rpn_bbox_pred", None)),
        (predictor, getattr(predictor, "bbox_pred", None)),
    ):
        statistics = getattr(owner, "target_statistics", None)
        if statistics is not None and statistics.active:
            statistics.fold(layer)


def digest(module: nn.Module) -> str:
    """Return the SHA-256 over the names and bytes of a module's weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()
