"""What happens to the weights between two stages (paper section 3.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import torch
from torch import nn

from ..atomic_files import replacing
from ..checkpoint.conversion import without_statistics
from ..checkpoint.read import read_checkpoint
from ..errors import UserError
from ..modeling.roi_heads.box_head import each_head
from .stages import Stage


def begin_stage(
    model: nn.Module, stage: Stage, initial_weights: str | os.PathLike[str], seed: int
) -> None:
    """Change weights in place to those that a stage begins with.

    Args:
        model: unwrapped, with the weights at the end of the stage before.
        stage: the one that begins.
        initial_weights: a file of :func:`save_initial`, or any checkpoint with these weights.
        seed: of new random weights.

    Raises:
        UserError: the file of initial weights is missing or damaged, or lacks weights.
    """
    if stage.restores:
        state = initial_state(model, initial_weights, stage.trains)
        model.load_state_dict(state, strict=False)
    if stage.redraws:
        # As the layers were first drawn: N(0, 0.01) for an RPN head (point 44 of
        # docs/faithfulness.md) and cls_score, N(0, 0.001) for bbox_pred; on the CPU, so that a GPU
        # starts from the same weights.
        generator = torch.Generator().manual_seed(seed)
        for layers in each_head(model.get_submodule(stage.redraws)):
            layers.reset_parameters(generator)


def save_initial(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all weights to a file, completely or not at all.

    Stage 2 starts again from them: from the ImageNet weights if the run loaded some, or else from
    the very draw that it began with. Nothing else has them when stage 2 begins: the model has been
    trained, and a random draw cannot be repeated after a resume.
    """
    with replacing(path, temporary=f"{path}.partial") as temporary:
        torch.save({"model": without_statistics(model.state_dict())}, temporary)


def initial_state(
    model: nn.Module, path: str | os.PathLike[str], parts: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the initial weights of sub-modules, such as "backbone", from the file that has them.

    Raises:
        UserError: it is missing or damaged, or lacks weights of these parts.
    """
    try:
        weights = read_checkpoint(path)["model"]
    except UserError as e:
        raise UserError(
            f"{e}. Stage 2 starts from the initial weights again: name a file that has them with "
            "FOUR_STEP.INITIAL_WEIGHTS"
        ) from e
    own = without_statistics(model.state_dict())
    wanted = {k: v for k, v in own.items() if k.split(".", 1)[0] in parts}
    missing = [k for k, v in wanted.items() if k not in weights or weights[k].shape != v.shape]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} weights that stage 2 starts from, "
            f"or has them in another shape: {', '.join(missing[:5])}; name another file with "
            "FOUR_STEP.INITIAL_WEIGHTS"
        )
    return {k: weights[k] for k in wanted}


def digest(module: nn.Module) -> str:
    """Return the SHA-256 over the names and bytes of a module's weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()
