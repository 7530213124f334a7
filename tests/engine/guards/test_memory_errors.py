"""Out of memory names the keys to lower. The texts of the errors are torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.engine.guards.memory_errors import (
    explain_out_of_memory,
    is_out_of_memory,
    memory_errors_explained,
)
from frcnn_plugin.errors import UserError
from tests.conftest import make_input
from tests.engine.joint_runs import make_joint_trainer
from tests.four_step.four_step_runs import make_trainer

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of "
    "which 1.12 GiB is free. Including non-PyTorch memory, this process has 6.66 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError(CUDA),
        RuntimeError(CUDA),
        RuntimeError(CPU),
        RuntimeError(WINDOWS),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("The size of tensor a (3) must match"), ValueError("out of memory")]
)
def test_what_does_not(tiny_cfg, error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error), match=str(error)[:9]), memory_errors_explained(tiny_cfg()):
        raise error


def test_a_real_one(tiny_cfg) -> None:
    with pytest.raises(UserError) as caught, memory_errors_explained(tiny_cfg()):
        torch.empty(1 << 62, dtype=torch.uint8)
    message = str(caught.value)
    assert message.startswith("this machine ran out of memory ([enforce fail at alloc_cpu.cpp")
    assert "you tried to allocate 4611686018427387904 bytes" in message


def test_keys_in_order_of_effect(tiny_cfg, tmp_path: Path) -> None:
    cfg = tiny_cfg("MODEL.DEVICE", "cuda", "OUTPUT_DIR", str(tmp_path))
    batch = [make_input(600, 800, []), make_input(600, 450, [])]
    (tmp_path / "last_checkpoint").write_text("model_0009999.pth")
    lines = explain_out_of_memory(cfg, RuntimeError(CUDA), batch).splitlines()
    assert lines[0].startswith(
        "the GPU ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
    )
    assert lines[1:] == [
        "The batch: 2 images of 800x600, 450x600 pixels (as the network sees them)",
        "Lower one of these, in order of effect:",
        "  1. INPUT.MIN_SIZE_TRAIN (now (600,)) and INPUT.MAX_SIZE_TRAIN (now 1000): memory grows "
        "with the area. Lower the _TEST keys alike",
        "  2. SOLVER.IMS_PER_BATCH (now 2), and SOLVER.BASE_LR (now 0.001) in proportion",
        "  3. MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (now 128 RoIs per image; not for an RPN alone)",
        "  4. or set SOLVER.AMP.ENABLED True (now False): mixed precision",
        "The last checkpoint, model_0009999.pth, is whole: continue from it with --resume, the "
        "lower values, and their keys in RESUME_MAY_DIFFER",
    ]


def test_what_cannot_be_lowered_is_left_out(tiny_cfg) -> None:
    batch = [make_input(60, 80, [])]
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", 1)
    message = explain_out_of_memory(cfg, RuntimeError(CPU), batch)
    assert "IMS_PER_BATCH" not in message
    message = explain_out_of_memory(
        tiny_cfg("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True), RuntimeError(CUDA), batch
    )
    assert "SOLVER.AMP.ENABLED" not in message


def test_in_evaluation(tiny_cfg) -> None:
    message = explain_out_of_memory(tiny_cfg(), MemoryError())
    assert "(MemoryError)" in message and "The batch" not in message
    assert "  1. INPUT.MIN_SIZE_TEST (now 600) and INPUT.MAX_SIZE_TEST (now 1000)" in message
    assert "  2. MODEL.RPN.PRE_NMS_TOPK_TEST (now 6000)" in message


def fail_in(part: Any) -> None:
    def forward(*_: Any, **__: Any) -> Any:
        raise RuntimeError(CPU)

    part.forward = forward


@pytest.mark.usefixtures("with_data")
def test_in_a_joint_run(tmp_path: Path) -> None:
    trainer = make_joint_trainer(tmp_path)
    fail_in(trainer.model.roi_heads)
    with pytest.raises(
        UserError, match=r"The batch: 2 images of \d+x\d+, \d+x\d+ pixels"
    ) as caught:
        trainer.train()
    assert "SOLVER.IMS_PER_BATCH (now 2)" in str(caught.value)
    with pytest.raises(UserError, match=r"INPUT.MIN_SIZE_TEST \(now 96\)"):
        trainer.test(trainer.cfg, trainer.model)


@pytest.mark.usefixtures("with_data")
def test_in_four_stages(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    fail_in(trainer.model.proposal_generator)
    with pytest.raises(UserError, match=r"FOUR_STEP.IMS_PER_BATCH \(now \[1, 2, 1, 2\]"):
        trainer.train()


@pytest.mark.usefixtures("with_data")
def test_between_the_stages(tmp_path: Path) -> None:
    """While the proposals for stage 2 are made."""
    trainer = make_trainer(tmp_path, ["FOUR_STEP.ITERS", "[1,4,4,4]", "FOUR_STEP.DROPS",
                                      "[[],[2],[2],[2]]"])  # fmt: skip
    generator = trainer.model.proposal_generator
    forward = generator.forward

    def only_training(*args: Any, **kwargs: Any) -> Any:
        if not generator.training:
            raise RuntimeError(CPU)
        return forward(*args, **kwargs)

    generator.forward = only_training
    with pytest.raises(UserError, match=r"FOUR_STEP.PRE_NMS_TOPK \(now -1\)") as caught:
        trainer.train()
    assert "The last checkpoint, stage1_final.pth, is whole" in str(caught.value)
