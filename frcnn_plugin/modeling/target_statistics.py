"""Box targets of zero mean and unit variance, and the way back to ordinary ones.

Unit of everything here: deltas as Detectron2's ``box2box_transform.get_deltas`` returns them, that
is, *after* its weights. So mean 0 and deviation 1 stand for Detectron2's own layers, whatever the
weights; a layer into which statistics were folded predicts those deltas directly. What the loss
sees, ``(delta - mean) / std``, does not depend on the weights.

Shape shorthand in this module: R boxes, C rows of statistics, which are the classes of a
class-specific head and 1 for the RPN and class-agnostic heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UserError

_COORDINATES = ("dx", "dy", "dw", "dh")


class TargetStatistics(nn.Module):
    """Mean and standard deviation of box targets.

    At the start they are 0 and 1 and change nothing: the layer in front predicts what Detectron2's
    own predicts. With others it predicts *normalised* deltas. They are saved and loaded with the
    model; a checkpoint without them, such as Detectron2's, stands for 0 and 1. The buffers are
    there from the start, so that code that copies or averages a model by the names of its own
    state dict, such as that of an EMA teacher, copies statistics that the other model was given
    later.

    :meth:`fold` and :meth:`unfold` turn a layer from one form into the other without changing what
    it predicts. The gradient does change, so clear the optimizer's momentum.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_classes: int, channels_per_delta: int = 1) -> None:
        """Start without statistics.

        Args:
            num_classes: C.
            channels_per_delta: neighbouring channels of the layer in front that predict the same
                delta, as R-FCN's maps do, whose votes are averaged.
        """
        super().__init__()
        self.num_classes = num_classes
        self.channels_per_delta = channels_per_delta
        self.register_buffer("mean", torch.zeros(num_classes, 4))
        self.register_buffer("std", torch.ones(num_classes, 4))

    @property
    def active(self) -> bool:
        """Whether there are statistics; this waits for the GPU that has them."""
        return not (self.mean.is_meta or is_neutral(self.mean, self.std))

    def set(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take statistics, which give the layer's output another meaning (see :meth:`unfold`).

        Args:
            mean: (C, 4).
            std: (C, 4), positive.

        Raises:
            UserError: wrong shape, or a value that cannot be used; the message names it.
        """
        self._check(mean, std)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def clear(self) -> None:
        """Forget the statistics."""
        self.mean.zero_()
        self.std.fill_(1)

    def clear_unless_in(self, weights: dict[str, Any], prefix: str) -> None:
        """Forget the statistics if weights are loaded into their owner that have none.

        The owner calls it before it loads: PyTorch shows a module nothing but its own weights.

        Args:
            weights: of the owner. If there are none, the layer in front stays, and so do these.
            prefix: of the owner's weights.
        """
        own = [name for name in weights if name.startswith(prefix)]
        if own and not any(name.startswith(f"{prefix}target_statistics.") for name in own):
            self.clear()

    def normalise(self, deltas: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Turn deltas into targets for the loss.

        Args:
            deltas: (R, 4).
            classes: (R,) int64 in [0, C); not used if C is 1.

        Returns:
            (R, 4).
        """
        if self.num_classes == 1:
            return (deltas - self.mean) / self.std
        return (deltas - self.mean[classes]) / self.std[classes]

    def denormalise(self, deltas: torch.Tensor) -> torch.Tensor:
        """Turn predicted deltas into those that Detectron2 decodes.

        Args:
            deltas: (R, C*4), as predicted.

        Returns:
            (R, C*4).
        """
        return deltas * self.std.flatten() + self.mean.flatten()

    def fold(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Put the statistics into ``layer``, in place, and forget them (example E18).

        The originals do this when they save. Without statistics nothing happens.

        Args:
            layer: predicts C*4 channels, each ``channels_per_delta`` times in a row; if C is 1 any
                multiple of 4 of them, channel 4a + j being delta j of anchor a.

        Raises:
            UserError: ``layer`` has another number of channels, or no bias.
        """
        self._check_layer(layer)
        if not self.active:
            return
        self._scale_output(layer, self.std.double(), self.mean.double())
        self.clear()

    def unfold(self, layer: nn.Linear | nn.Conv2d, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take (other) statistics and change ``layer``, in place, so that its boxes stay the same.

        Args:
            layer: see :meth:`fold`; in the form that belongs to the present state.
            mean: see :meth:`set`.
            std: see :meth:`set`.

        Raises:
            UserError: see :meth:`set` and :meth:`fold`; nothing has been changed then.
        """
        self._check_layer(layer)
        self._check(mean, std)
        self.fold(layer)
        mean64, std64 = mean.double().to(layer.weight.device), std.double().to(layer.weight.device)
        self._scale_output(layer, 1 / std64, -mean64 / std64)
        self.set(mean, std)

    @torch.no_grad()
    def _scale_output(
        self, layer: nn.Linear | nn.Conv2d, factor: torch.Tensor, offset: torch.Tensor
    ) -> None:
        """Make ``layer`` give ``factor * output + offset``, (C, 4) float64."""
        assert layer.bias is not None
        factor, offset = (
            over_channels(values, len(layer.weight), self.channels_per_delta)
            for values in (factor, offset)
        )
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        layer.weight.copy_(layer.weight.double() * factor.view(shape))
        layer.bias.copy_(layer.bias.double() * factor + offset)

    def extra_repr(self) -> str:
        """Return one line for ``print(model)``."""
        return f"num_classes={self.num_classes}, {'set' if self.active else 'none'}"

    def _check(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        wanted, what = (self.num_classes, 4), "box target statistics"
        for name, values in (("mean", mean), ("std", std)):
            if tuple(values.shape) != wanted:
                raise UserError(f"{what}: {name} has shape {tuple(values.shape)}, not {wanted}")
        for name, values, usable in (
            ("mean", mean, torch.isfinite(mean)),
            ("std", std, torch.isfinite(std) & (std > 0)),
        ):
            if not usable.all():
                row, column = (~usable).nonzero()[0].tolist()
                value = values[row, column].item()
                raise UserError(
                    f"{what}: {name} of {_COORDINATES[column]} of class {row} is {value}"
                )

    def _check_layer(self, layer: nn.Linear | nn.Conv2d) -> None:
        channels, wanted = layer.weight.shape[0], 4 * self.num_classes * self.channels_per_delta
        fits = channels == wanted or (self.num_classes == 1 and channels % wanted == 0)
        if not fits or layer.bias is None:
            raise UserError(
                f"box target statistics of {self.num_classes} classes do not fit a layer of "
                f"{channels} channels {'with' if layer.bias is not None else 'without'} bias"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load; weights that come without statistics have none, also for `strict`."""
        error_msgs: list[str] = args[-1]
        mean, std = state_dict.get(f"{prefix}mean"), state_dict.get(f"{prefix}std")
        if mean is None and std is None:
            return  # see clear_unless_in
        if mean is None or std is None:
            error_msgs.append(f"{prefix}*: mean and std belong together")
            return
        if mean.shape == std.shape == self.mean.shape:
            try:
                self._check(mean, std)
            except UserError as e:
                error_msgs.append(f"{prefix}*: {e}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)


def is_neutral(mean: torch.Tensor, std: torch.Tensor) -> bool:
    """Return whether statistics change nothing: mean 0, deviation 1."""
    return not bool((mean != 0).any() or (std != 1).any())


def over_channels(values: torch.Tensor, channels: int, channels_per_delta: int = 1) -> torch.Tensor:
    """Repeat values of deltas, (C, 4), over the channels of the layer that predicts them."""
    each = values.flatten().repeat_interleave(channels_per_delta)
    return each.repeat(channels // len(each))


def fold_target_statistics(model: nn.Module) -> None:
    """Fold all target statistics of a model into its layers, in place.

    These then predict what Detectron2's own layers predict, so its weights mean the same in any
    model. What the model detects stays the same.
    """
    owner: Any
    for owner in model.modules():
        statistics = getattr(owner, "target_statistics", None)
        if isinstance(statistics, TargetStatistics):
            layer = getattr(owner, "bbox_pred", None)
            statistics.fold(owner.rpn_head.rpn_bbox_pred if layer is None else layer)


class NormalisedBox2BoxTransform:
    """A transform whose deltas are normalised by one row of statistics, while there are any.

    For Detectron2's code, which takes a transform and does not know statistics.
    """

    def __init__(self, stock: Any, statistics: TargetStatistics) -> None:
        """Wrap Detectron2's or our transform; C is 1, and ``statistics`` may change at any time."""
        self.stock = stock
        self.statistics = statistics

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode (R, 4) and (R, 4) boxes as (R, 4) normalised deltas."""
        return self.statistics.normalise(self.stock.get_deltas(src_boxes, target_boxes))

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode (R, 4) normalised deltas on (R, 4) boxes to (R, 4) boxes."""
        return self.stock.apply_deltas(self.statistics.denormalise(deltas), boxes)
