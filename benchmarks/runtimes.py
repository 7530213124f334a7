"""``runtimes``: inference on a CPU beside ONNX Runtime and OpenVINO, with the same weights.

Both are extras: ``pip install onnx onnxruntime openvino``. ONNX Runtime has no bfloat16 on CPUs.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.measuring import in_turn, ratio, spread, tune
from benchmarks.output import headline, write_results
from benchmarks.work import specs_from, work_from
from frcnn_plugin.errors import UserError
from frcnn_plugin.layers.packed import has_amx
from frcnn_plugin.predict.export import export, inputs_of

logger = logging.getLogger(__name__)

Run = Callable[[], Any]
# Target, the ratio of times, and whether it is for CPUs with AMX only.
_TARGETS = (
    (0.75, "ours", ("onnxruntime", "openvino"), False),
    (1.0, "ours bf16", ("openvino bf16",), False),
    (0.45, "ours bf16", ("ours",), True),
)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        logger.warning("%s is not installed, and left out: pip install %s", name, name)
        return None


def _others(file: Path, inputs: list[torch.Tensor]) -> dict[str, Run]:
    """Load an ONNX file into both, on as many threads as torch uses; return what runs it."""
    threads, arrays = torch.get_num_threads(), [x.numpy() for x in inputs]
    runs: dict[str, Run] = {}
    if ort := _module("onnxruntime"):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads would go on taking time while the others run.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        named = {x.name: array for x, array in zip(session.get_inputs(), arrays, strict=True)}
        runs["onnxruntime"] = partial(session.run, None, named)
    if openvino := _module("openvino"):
        for name, precision in (("openvino", "f32"), ("openvino bf16", "bf16")):
            hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
            compiled = openvino.Core().compile_model(file, "CPU", hints)
            runs[name] = partial(lambda c: list(c(arrays).values()), compiled)
    if not runs:
        raise UserError("runtimes compares with others: pip install onnx onnxruntime openvino")
    return runs


class _Convolutions(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (features,) = self.backbone(images).values()
        return features


def _convolutions(contender: Contender, file: Path) -> dict[str, Run]:
    model: Any = contender.model
    images = model.preprocess_image(contender.arguments[0]).tensor
    # Export leaves the mode that it found.
    module, plain = _Convolutions(model.backbone).eval(), images.contiguous()
    with torch.no_grad():
        torch.onnx.export(module, (plain,), str(file), opset_version=17, dynamo=False)

    def ours(mixed: bool) -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return [module(images)]

    return {f"ours{' bf16' * b}": partial(ours, b) for b in (False, True)} | _others(file, [plain])


def _detector(contender: Contender, file: Path) -> dict[str, Run]:
    """Run all of it; they get the resized image, as ours does."""
    model: Any = contender.model
    file.write_bytes(export(contender.cfg, model, "onnx"))
    (item,) = contender.arguments[0]

    def ours(dtype: torch.dtype) -> Any:
        model.inference_dtype = dtype
        instances = contender.forward()[0]["instances"]
        return [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]

    dtypes = {"ours": torch.float32, "ours bf16": torch.bfloat16}
    runs: dict[str, Run] = {name: partial(ours, dtype) for name, dtype in dtypes.items()}
    return runs | _others(file, [*inputs_of(item)])


def _sample(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``runtimes``."""
    if args.device not in ("", "cpu") or args.batch != 1:
        raise UserError("runtimes compares one image on the CPU: leave out --device and --batch")
    args.device = "cpu"
    spec, work = specs_from(args)[0], work_from(args)
    tune(spec)
    contender = Contender(spec, work, calibrated_weights(spec, work))
    amx = has_amx()
    results: dict[str, Any] = {"what": "runtimes"}
    for what, build in (("convolutions", _convolutions), ("detector", _detector)):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            runs = build(contender, Path(folder, "model.onnx"))
            found = {name: torch.as_tensor(each()[0]) for name, each in runs.items()}
            samples = in_turn({n: partial(_sample, each) for n, each in runs.items()}, args.repeats)
        seconds = {name: [s for n, s in samples if n == name] for name in runs}
        rows, exact = [], found["ours"]
        for name, own in seconds.items():
            median, quartiles = spread(own).in_ms()
            apart = ""  # of as many boxes, or features
            if found[name].shape == exact.shape:
                apart = f"{(found[name] - exact).abs().max() / exact.abs().max():.1e}"
            against = str(ratio(seconds["ours"], own))
            rows.append((name, f"{median:.1f}", quartiles, against, apart))
        headers = ("", "median ms", "quartiles ms", "ours / this [95%]", "largest difference")
        text = tabulate(rows, headers, disable_numparse=True)
        print(f"\n{what}: {headline()}\n\n{text}\n")
        for limit, mine, theirs, needs_amx in _TARGETS:
            others = [name for name in theirs if name in seconds]
            if others and (amx or not needs_amx):
                best = min(others, key=lambda name: spread(seconds[name]).median)
                value = ratio(seconds[mine], seconds[best])
                reached = "reached" if value.value <= limit else "missed"
                print(f"{mine} / {best}: {value}, target {limit:g}: {reached}")
        results[what] = seconds
    return write_results(args.output, results)
