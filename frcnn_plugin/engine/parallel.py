"""Wrapping a model for several processes."""

from __future__ import annotations

from detectron2.engine import create_ddp_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wrap_model(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in DistributedDataParallel; as it is if there is only one process.

    The host passes ``device_ids`` always, which a model on the CPU refuses.
    """
    on_gpu = next(model.parameters()).is_cuda
    kwargs = {} if on_gpu else {"device_ids": None}
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, **kwargs)
    return wrapped


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside the wrapper, if there is one."""
    return model.module if isinstance(model, DistributedDataParallel) else model
