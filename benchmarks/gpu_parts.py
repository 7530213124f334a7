"""What ``gpu`` measures, part by part; how the parts are run is in :mod:`benchmarks.gpu`.

A part yields its cells: name, value (None where there can be none), unit and a note.
"""

from __future__ import annotations

import copy
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contender, Sample, calibrated_weights, found_again
from benchmarks.data import SHORT_SIDE, loader_speed
from benchmarks.measuring import by_section, in_turn, ratio, spread
from benchmarks.stages import KINDS, Stages
from benchmarks.syncs import count_syncs, sync_rows, totals
from benchmarks.weights import RandomWeights
from benchmarks.work import PEERS, Spec, Work, generated_set
from frcnn_plugin import get_config_file
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, setup_cfg

_ROOT = Path(__file__).resolve().parents[1]
# On a CPU: a detector and images that take milliseconds.
NARROW = (
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32,64]]", "TEST.DETECTIONS_PER_IMAGE", "10"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "160"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"),
)
# Every RoI and anchor, and no dropout: nothing is drawn, which a GPU does in its own way.
_NOTHING_DRAWN = (
    *("MODEL.ROI_HEADS.SAMPLING", "all", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000"),
    *("MODEL.ROI_BOX_HEAD.DROPOUT", "0.0"),
)
_LOSS_SCALE = 1024.0  # in float16, where small gradients would become 0
_MIB = 2**20
_GPU_ONLY = "for GPUs only"

DTYPES = {
    "float32": torch.float32,
    "TF32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MODELS = tuple(f"{kind}{dtype}" for kind, dtype in product(("ours", *PEERS), ("", " bf16")))
WORKERS = (0, 1, 4, 8)
OPTIONS = (
    *("as it is", "cudnn.benchmark", "CHANNELS_LAST False", "weights channels last"),
    *("weights in bfloat16", "CUDA graph", "CUDA graph, weights in bfloat16", "torch.compile"),
)


class Cell(NamedTuple):
    """One number, or why there is none."""

    what: str
    value: float | None
    unit: str = ""
    note: str = ""


Cells = Iterator[Cell]


@dataclass(frozen=True)
class Setting:
    """On which device, of which config; on a CPU everything is small."""

    config_file: str
    device: str
    opts: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def spec(self, model: str = "ours", *opts: str, device: str = "") -> Spec:
        """Return one of :data:`MODELS`, perhaps on another device."""
        kind, _, bf16 = model.partition(" ")
        narrow = () if self.on_gpu else NARROW
        words = (*narrow, *self.opts, *opts, "MODEL.DEVICE", device or self.device)
        return Spec(
            model, "config" if kind == "ours" else kind, self.config_file, words, bool(bf16)
        )

    def work(self, training: bool = False, batch: int = 1) -> Work:
        return Work(training, *((600, 1000) if self.on_gpu else (96, 160)), batch)

    def weights(self) -> RandomWeights:
        return calibrated_weights(self.spec(), self.work())

    def seconds(self, runs: dict[str, Callable[[], Sample]]) -> dict[str, list[float]]:
        """Measure in turn; return the seconds of all rounds by name."""
        repeats, warmup = (20, 3) if self.on_gpu else (1, 1)
        samples = by_section(in_turn(runs, repeats, warmup))
        return {name: sections["total"] for name, sections in samples.items()}

    def median(self, run: Callable[[], object]) -> float:
        """Return the median seconds of a call."""

        def sample() -> Sample:
            start = time.perf_counter()
            run()
            if self.on_gpu:
                torch.cuda.synchronize()
            return {"total": time.perf_counter() - start}

        return statistics.median(self.seconds({"": sample})[""])

    def rate(self, dtype: str) -> float:
        """Return the operations per second of a large matrix product: the peak that is assumed."""
        n = 8192 if self.on_gpu else 256
        a, b = (torch.randn(n, n, device=self.device).to(DTYPES[dtype]) for _ in range(2))
        allow_tf32(dtype == "TF32")
        return float(2 * n**3 / self.median(lambda: a @ b))


def allow_tf32(allowed: bool) -> None:
    """Allow float32 to be rounded to TF32 in matrix products and convolutions, or forbid it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def run_tests(at: Setting) -> Cells:
    """Run the tests that are marked "gpu"."""
    files = [str(f) for f in sorted(_ROOT.glob("tests/**/*.py")) if "mark.gpu" in f.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", *files]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, flush=True)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    counts = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (\w+)", lines[-1])}
    if not {"passed", "failed", "error", "skipped"} & set(counts):
        raise RuntimeError(lines[-1])
    wrong = re.findall(r"^(?:FAILED|ERROR) \S*?([^/\s]+)(?: |$)", result.stdout, re.MULTILINE)
    yield Cell("passed", counts.get("passed", 0), "tests", f"{counts.get('skipped', 0)} skipped")
    failed = counts.get("failed", 0) + counts.get("error", 0)
    yield Cell("failed", failed, "tests", ", ".join(wrong))


def measure_rates(at: Setting) -> Cells:
    """Measure large matrix products."""
    for name in DTYPES:
        if at.on_gpu or name != "TF32":
            yield Cell(name, at.rate(name) / 1e12, "TFLOP/s")
        else:
            yield Cell(name, None, "", _GPU_ONLY)


def _learn(contender: Contender, dtype: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and all gradients, on the CPU."""
    scale = _LOSS_SCALE if dtype == torch.float16 else 1.0
    torch.manual_seed(0)
    with torch.autocast(contender.device.type, dtype, enabled=dtype != torch.float32):
        loss = sum(contender.forward().values())
    contender.model.zero_grad()
    (loss * scale).backward()
    found = [p.grad for p in contender.model.parameters()]
    return float(loss.detach()), [g.float().cpu() / scale for g in found if g is not None]


@torch.no_grad()
def _features(contender: Contender, dtype: torch.dtype) -> torch.Tensor:
    model: Any = contender.model
    with torch.autocast(contender.device.type, dtype, enabled=dtype != torch.float32):
        features: torch.Tensor = model.features(contender.arguments[0])[1]["conv5"]
    return features.float().cpu()


def compare_results(at: Setting) -> Cells:
    """Compare inference, and loss and gradient of a step, with float32 on the CPU."""
    weights = at.weights()
    dtypes = {n: d for n, d in DTYPES.items() if at.on_gpu or n != "TF32"}
    for name in DTYPES.keys() - dtypes.keys():
        yield from (Cell(f"{name}: {what}", None, "", _GPU_ONLY) for what in RESULTS)

    def build(training: bool) -> list[Contender]:
        specs = [at.spec("ours", *_NOTHING_DRAWN, device=d) for d in ("cpu", at.device)]
        return [Contender(spec, at.work(training), weights) for spec in specs]

    exact, contender = build(False)
    features, boxes = _features(exact, torch.float32), exact.detections()
    for name, dtype in dtypes.items():
        allow_tf32(name == "TF32")
        error = (_features(contender, dtype) - features).abs().max() / features.abs().max()
        yield Cell(f"{name}: features", float(error), "", "largest difference / largest feature")
        contender.model.inference_dtype = dtype  # type: ignore[assignment]
        again = found_again(boxes, contender.detections())
        yield Cell(f"{name}: detections", again, "%", "of the CPU's found again")
    exact, contender = build(True)
    loss, gradient = _learn(exact, torch.float32)
    for name, dtype in dtypes.items():
        allow_tf32(name == "TF32")
        found, theirs = _learn(contender, dtype)
        yield Cell(f"{name}: loss", abs(found - loss) / loss, "", "difference / loss")
        apart = [(a - b).norm() for a, b in zip(theirs, gradient, strict=True)]
        norms = (torch.stack(x).norm() for x in (apart, [g.norm() for g in gradient]))
        error = next(norms) / next(norms)
        yield Cell(f"{name}: gradient", float(error), "", "norm of the difference / norm")


def real_syncs(run: Callable[[], object]) -> Counter[str]:
    """Return how often the CPU waits for the GPU in one run, by file and line."""
    run()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing" in str(w.message)]
    return Counter(f"{'/'.join(w.filename.split('/')[-3:])}:{w.lineno}" for w in found)


def compare_syncs(at: Setting) -> Cells:
    """Count real synchronisations, and the operators that our counter takes for such."""
    weights, value = at.weights(), None
    for (what, training), kind in product(STEPS.items(), ("ours", *PEERS)):
        contender = Contender(at.spec(kind), at.work(training), weights)
        if at.on_gpu:
            lines = real_syncs(contender.run)
            value = sum(lines.values())
            print(kind, what, *(f"{n} {line}" for line, n in lines.most_common()), sep="\n  ")
        waits, numbers = totals(sync_rows(count_syncs(contender.run)))
        note = "" if at.on_gpu else f"; real ones {_GPU_ONLY}"
        note = f"our counter: {waits}, and {numbers} copies of numbers{note}"
        yield Cell(f"{what}, {kind}", value, "waits", note)


def peak_mib(contender: Contender) -> float:
    """Return the most memory of the GPU that a model has at once, without others beside it."""
    parameters = list(contender.model.parameters())
    states = contender.optimizer.state.values() if contender.optimizer else ()
    kept = [*parameters, *contender.model.buffers(), *(p.grad for p in parameters)]
    kept += [value for state in states for value in state.values()]
    own = sum(t.numel() * t.element_size() for t in kept if isinstance(t, torch.Tensor))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender.run()
    return (torch.cuda.max_memory_allocated() - before + own) / _MIB


def _total(contender: Contender) -> Sample:
    return {"total": contender.seconds()}


def measure_speed(at: Setting, training: bool) -> Cells:
    """Measure ours and both peers, in float32 (as torch comes) and bfloat16, in turn."""
    # As torch comes, it rounds float32 to TF32 in convolutions, where most of the arithmetic is.
    rates = {"": at.rate("TF32" if at.on_gpu else "float32"), "bf16": at.rate("bfloat16")}
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    weights = at.weights()
    contenders = {m: Contender(at.spec(m), at.work(training), weights) for m in MODELS}
    for batch in BATCHES[training]:
        for contender in contenders.values():
            contender.arguments = contender.arguments_for(at.work(training, batch))
        with FlopCounterMode(display=False) as counter:
            contenders["ours"].run()
        flops = counter.get_total_flops()
        yield Cell(f"batch {batch}: arithmetic of ours", flops / 1e9, "GFLOP")
        seconds = at.seconds({name: partial(_total, c) for name, c in contenders.items()})
        for name, own in seconds.items():
            median = spread(own).median
            percent = 100 * flops / rates[name.partition(" ")[2]] / median
            note = f"{batch / median:.1f} images/s, {percent:.0f} % of the peak"
            yield Cell(f"batch {batch}: {name}", 1000 * median, "ms", note)
        for mine, theirs in product(("", " bf16"), repeat=2):
            best = min((p + theirs for p in PEERS), key=lambda p: statistics.median(seconds[p]))
            faster = ratio(seconds[best], seconds[f"ours{mine}"])
            what = f"batch {batch}: best peer{theirs} / ours{mine}"
            yield Cell(what, faster.value, "times", f"{faster}, {best}")
        for name, contender in contenders.items():
            what = f"batch {batch}: memory, {name}"
            if at.on_gpu:
                yield Cell(what, peak_mib(contender), "MiB")
            else:
                yield Cell(what, None, "", _GPU_ONLY)


def measure_stages(at: Setting) -> Cells:
    """Measure iterations of the four stages, and joint ones of ours and the peers, in turn."""
    weights, work = at.weights(), at.work(True)
    stages = Stages(Contender(at.spec(), work, weights))
    runs: dict[str, Callable[[], Sample]] = {k: partial(stages.sample, k) for k in KINDS}
    for peer in PEERS:
        runs[f"{peer}, joint"] = partial(_total, Contender(at.spec(peer), work, weights))
    seconds = at.seconds(runs)
    for name, own in seconds.items():
        note = f"{ratio(own, seconds['joint'])} of ours, joint"
        yield Cell(name, 1000 * spread(own).median, "ms", note)


class Networks(nn.Module):
    """Backbone and RPN head, whose shapes repeat where images have one size."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.proposal_generator.rpn_head

    def forward(self, images: torch.Tensor) -> Any:
        """Return logits and deltas."""
        return self.head(list(self.backbone(images).values()))


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a CUDA graph; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set themselves up outside of the graph
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay(kept: Any = run) -> Any:  # with the tensors that the graph reads
        graph.replay()
        return outputs

    return replay


def _with(option: str, at: Setting, networks: Any, images: torch.Tensor) -> Callable[[], Any]:
    """Return backbone and RPN head in bfloat16, with one of :data:`OPTIONS`."""
    casts = not option.endswith("weights in bfloat16")
    if not casts:
        networks, images = copy.deepcopy(networks).bfloat16(), images.bfloat16()
    if option == "CHANNELS_LAST False":
        images = images.contiguous()
    if option == "weights channels last":
        networks = copy.deepcopy(networks).to(memory_format=torch.channels_last)
    if option == "torch.compile":  # without a GPU, only whether it can be
        backend = "inductor" if at.on_gpu else "aot_eager"
        networks = torch.compile(networks, backend=backend, dynamic=False, fullgraph=True)
    torch.backends.cudnn.benchmark = option == "cudnn.benchmark"
    kind = torch.device(at.device).type

    def run() -> Any:
        # Without a cache, whose tensors would be gone when a graph is replayed.
        autocast = torch.autocast(kind, torch.bfloat16, enabled=casts, cache_enabled=False)
        with torch.no_grad(), autocast:
            return networks(images)

    return _captured(run) if option.startswith("CUDA graph") else run


def measure_options(at: Setting) -> Cells:
    """Try what may make backbone and RPN head faster, in bfloat16."""
    contender = Contender(at.spec(), at.work(), at.weights())
    model: Any = contender.model
    plain: dict[int, tuple[torch.Tensor, float]] = {}
    # torch.compile, which takes long at first, comes last.
    for option, batch in product(OPTIONS, BATCHES[False]):
        what = f"batch {batch}: {option}"
        if not at.on_gpu and option.lower().startswith("cud"):
            yield Cell(what, None, "", _GPU_ONLY)
            continue
        images = model.preprocess_image(contender.arguments_for(at.work(batch=batch))[0]).tensor
        try:
            start = time.perf_counter()
            run = _with(option, at, Networks(model), images)
            logits = run()[0][0].float().cpu()
            first = time.perf_counter() - start
            median = at.median(run)
        except Exception as error:  # one that fails must not cost the others
            traceback.print_exc()
            yield Cell(what, None, "", f"failed: {first_line(error)}")
            continue
        expected, usual = plain.setdefault(batch, (logits, median))
        apart = float((logits - expected).abs().max() / expected.abs().max())
        note = f"x{median / usual:.3f}; largest difference {apart:.1e}; at first {first:.1f} s"
        yield Cell(what, 1000 * median, "ms", note)


def measure_loading(at: Setting) -> Cells:
    """Measure the training loader."""
    cfg, images = at.spec().cfg(True).clone(), 64 if at.on_gpu else 4
    cfg.defrost()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        with generated_set(Path(folder), images, SHORT_SIDE) as name:
            cfg.DATASETS.TRAIN, cfg.MODEL.LOAD_PROPOSALS = (name,), False
            for n in WORKERS:
                if n <= (os.cpu_count() or 1):
                    yield Cell(f"{n} workers", loader_speed(cfg, n, images), "images/s")
                else:
                    yield Cell(f"{n} workers", None, "", "not so many cores here")


def train_demo(at: Setting) -> Cells:
    """Train the demo's detector with SOLVER.AMP.ENABLED, and test it."""
    iterations, images, tested = (1200, 500, 100) if at.on_gpu else (4, 6, 3)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_synthetic_voc(Path(folder, "demo_shapes"), num_trainval=images, num_test=tested)
        opts = [
            *("SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", str(iterations), "SEED", "1"),
            *("SOLVER.STEPS", f"({iterations * 3 // 4},)", "MODEL.DEVICE", at.device),
            *("OUTPUT_DIR", str(Path(folder, "run"))),
            *("DATALOADER.NUM_WORKERS", "4" if at.on_gpu else "0"),
        ]
        with patch.dict(os.environ, DETECTRON2_DATASETS=folder):
            start = time.perf_counter()
            torch.manual_seed(1)
            trainer = PaperTrainer(setup_cfg(get_config_file("demo/vgg16_shapes_joint.yaml"), opts))
            trainer.resume_or_load(False)
            results = trainer.train() or {}
            seconds = time.perf_counter() - start
    note = f"{iterations} iterations on {images} images; tested on {tested}"
    yield Cell("AP50", results["bbox"]["AP50"], "%", note)
    yield Cell("training and test", seconds, "s")


def first_line(error: BaseException) -> str:
    """Name an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


RESULTS = ("features", "detections", "loss", "gradient")
STEPS = {"inference": False, "iteration": True}  # -> whether it trains
BATCHES = {False: (1, 8), True: (1, 2)}
_SPEEDS = (
    *("arithmetic of ours", *MODELS),
    *(f"best peer{b} / ours{a}" for a, b in product(("", " bf16"), repeat=2)),
    *(f"memory, {model}" for model in MODELS),
)


class Part(NamedTuple):
    """How some cells are measured, their share of the time, and their names."""

    measure: Callable[[Setting], Cells]
    share: float
    cells: tuple[str, ...]


# In order of worth; the shares are about the seconds of 8 minutes.
PARTS = {
    "tests": Part(run_tests, 90, ("passed", "failed")),
    "matrix products": Part(measure_rates, 15, tuple(DTYPES)),
    "against the CPU": Part(
        compare_results, 65, tuple(f"{d}: {r}" for d, r in product(DTYPES, RESULTS))
    ),
    "synchronisations": Part(
        compare_syncs, 40, tuple(f"{s}, {kind}" for s, kind in product(STEPS, ("ours", *PEERS)))
    ),
    **{
        name: Part(
            partial(measure_speed, training=trains),
            60,
            tuple(f"batch {b}: {s}" for b, s in product(BATCHES[trains], _SPEEDS)),
        )
        for name, trains in STEPS.items()
    },
    "stages": Part(measure_stages, 30, (*KINDS, *(f"{peer}, joint" for peer in PEERS))),
    "options": Part(
        measure_options, 60, tuple(f"batch {b}: {o}" for o, b in product(OPTIONS, BATCHES[False]))
    ),
    "loading": Part(measure_loading, 20, tuple(f"{n} workers" for n in WORKERS)),
    "demo in mixed precision": Part(train_demo, 60, ("AP50", "training and test")),
}
