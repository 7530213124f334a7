"""Iterations, batch and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode

from ..config import get_config_file, plugin_cfg
from ..config_files import base_chain, load_config_file
from ..four_step.checkpoints import check_start
from ..four_step.stages import build_stages
from .finding import Finding, Subject, plural
from .planned_run import PlannedRun, muted
from .rules import usual

_SCHEDULE = Subject("schedule")
_RATE_OF_ONE_PROCESS = 1e-3  # in four-step training on VOC (paper, section 3.1.3)
_MANY_PASSES = 100  # the presets make 8 to 32
_GOOD_PASSES = 30
_FEWEST_ITERS = 1000  # that are suggested, however few the images: new layers start at random
_MUCH_HIGHER = 3.0  # times the rate of the preset: likely to diverge


def check_solver(run: PlannedRun) -> Iterator[Finding]:
    """Check where to start, iterations, batch and learning rate; without model and images."""
    if run.eval_only or run.bad_values:
        return
    if run.cfg.FOUR_STEP.ENABLED:
        check_start(run.cfg)
    findings = [*_numbers(run), *_batch(run)]
    if not any(f.level == "error" for f in findings):
        findings += [*_epochs(run), *_periods(run), *_rate(run)]
    yield from findings or [_SCHEDULE.ok(_describe(run))]


def _numbers(run: PlannedRun) -> Iterator[Finding]:
    solver, model = run.cfg.SOLVER, run.cfg.MODEL
    steps = tuple(solver.STEPS)
    if any(s >= solver.MAX_ITER for s in steps):
        # Detectron2 ignores later ones with a warning, and fails on an equal one.
        yield _SCHEDULE.error(
            f"SOLVER.STEPS {steps} must lie below SOLVER.MAX_ITER {solver.MAX_ITER}: the "
            "learning rate would never drop",
            f'Type for example SOLVER.STEPS "({solver.MAX_ITER * 5 // 7},)"',
        )
    elif steps != (ascending := tuple(sorted(set(steps)))):
        yield _SCHEDULE.error(
            f"SOLVER.STEPS {steps} must ascend", f'Type SOLVER.STEPS "{ascending}"'
        )
    on_cpu = model.DEVICE == "cpu" and model.META_ARCHITECTURE == "PaperRCNN"
    if solver.AMP.ENABLED and not (model.DEVICE.startswith("cuda") or on_cpu):
        yield _SCHEDULE.error(
            f"SOLVER.AMP.ENABLED with MODEL.DEVICE {model.DEVICE} and MODEL.META_ARCHITECTURE "
            f"{model.META_ARCHITECTURE}: without CUDA only PaperRCNN trains in mixed precision, on "
            "the CPU",
            "Type SOLVER.AMP.ENABLED False",
        )
    norm = model.PAPER_VGG.NORM
    if norm in ("SyncBN", "nnSyncBN") and run.num_processes > 1 and model.DEVICE == "cpu":
        yield _SCHEDULE.error(
            f"MODEL.PAPER_VGG.NORM {norm} needs GPUs to train in {run.num_processes} processes",
            "Type MODEL.PAPER_VGG.NORM naiveSyncBN",
        )


def _batch(run: PlannedRun) -> Iterator[Finding]:
    if run.cfg.FOUR_STEP.ENABLED:  # whose batches are per process
        return
    images, reference = run.cfg.SOLVER.IMS_PER_BATCH, run.cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference > 0 and images % reference:
        yield _SCHEDULE.error(
            f"SOLVER.IMS_PER_BATCH {images} is not a multiple of SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}, the number of processes it is meant for",
            f"Type SOLVER.IMS_PER_BATCH {max(1, images // reference) * reference}",
        )
    elif run.scaled.SOLVER.IMS_PER_BATCH % run.num_processes:
        batch = max(1, images // run.num_processes) * run.num_processes
        yield _SCHEDULE.error(
            f"SOLVER.IMS_PER_BATCH {images} cannot be divided among {run.num_processes} processes",
            f"Type SOLVER.IMS_PER_BATCH {batch}",
        )
    else:
        own, scaled = run.cfg.SOLVER, run.scaled.SOLVER
        # On equal ones Detectron2 fails when it makes the scheduler.
        if max(scaled.STEPS, default=-1) >= scaled.MAX_ITER and max(own.STEPS) < own.MAX_ITER:
            yield _SCHEDULE.error(
                f"SOLVER.STEPS {tuple(own.STEPS)} meets SOLVER.MAX_ITER {own.MAX_ITER} when "
                f"{run.num_processes} processes share them: {scaled.STEPS} and {scaled.MAX_ITER}",
                "Give a smaller SOLVER.STEPS, or more iterations",
            )


def _most_seen(run: PlannedRun) -> tuple[int, int, int]:
    """Return iterations and images of training, or of the stage that sees most, and of the sets."""
    cfg, images = run.scaled, sum(map(run.size, run.train))
    if not cfg.FOUR_STEP.ENABLED:
        return cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH, images
    stage = max(build_stages(cfg), key=lambda s: s.iters * s.images)
    return stage.iters, stage.iters * stage.images * run.num_processes, images


def _epochs(run: PlannedRun) -> Iterator[Finding]:
    cfg, (iters, seen, images) = run.scaled, _most_seen(run)
    what, keys = "training", "SOLVER.MAX_ITER and STEPS"
    if cfg.FOUR_STEP.ENABLED:
        what, keys = "a stage", "FOUR_STEP.ITERS and DROPS"
    shorter = max(_GOOD_PASSES * images / max(1, seen), _FEWEST_ITERS / max(1, iters))
    if seen < images:
        yield _SCHEDULE.warning(
            f"training sees {seen:,} images, less than one pass over the {images:,} of "
            "DATASETS.TRAIN",
            f"Raise {keys}",
        )
    elif images and seen > _MANY_PASSES * images and shorter <= 0.5:
        yield _SCHEDULE.warning(
            f"{what} passes {seen / images:,.0f} times over the {images:,} images of "
            "DATASETS.TRAIN, which it then knows by heart",
            f"For about {seen * shorter / images:.0f} passes: {_scaled_schedule(cfg, shorter)}",
        )


def _scaled_schedule(cfg: CfgNode, factor: float) -> str:
    """Return overrides for a schedule that is shorter by a factor."""

    def scaled(number: int) -> int:
        return max(1, int(float(f"{number * factor:.1e}")))  # two digits

    if cfg.FOUR_STEP.ENABLED:
        node = cfg.FOUR_STEP
        iters, drops = map(scaled, node.ITERS), [list(map(scaled, stage)) for stage in node.DROPS]
        return f'FOUR_STEP.ITERS "{list(iters)}" FOUR_STEP.DROPS "{drops}"'
    steps = tuple(map(scaled, cfg.SOLVER.STEPS))
    return f'SOLVER.MAX_ITER {scaled(cfg.SOLVER.MAX_ITER)} SOLVER.STEPS "{steps}"'


def _periods(run: PlannedRun) -> Iterator[Finding]:
    solver, period = run.scaled.SOLVER, run.cfg.TEST.EVAL_PERIOD
    if solver.WARMUP_ITERS >= solver.MAX_ITER and not run.cfg.FOUR_STEP.ENABLED:
        yield _SCHEDULE.warning(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is not below SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}: the learning rate never reaches SOLVER.BASE_LR",
            f"Type SOLVER.WARMUP_ITERS {solver.MAX_ITER // 10}",
        )
    trained, tested = period * solver.IMS_PER_BATCH, sum(map(run.size, run.test))
    if 0 < trained < tested and period < solver.MAX_ITER:
        yield _SCHEDULE.warning(
            f"TEST.EVAL_PERIOD {period}: between two evaluations fewer images are trained on "
            f"({trained:,}) than evaluated ({tested:,})",
            f"Type TEST.EVAL_PERIOD {max(1, solver.MAX_ITER // 10)}",
        )
    first = run.test[0] if run.test else ""
    chosen_by_itself = len(run.test) == 1 and not any(part in first for part in ("val", "dev"))
    if 0 < period < solver.MAX_ITER and chosen_by_itself and first not in run.train:
        yield _SCHEDULE.warning(
            f"TEST.EVAL_PERIOD {period}: model_best.pth is chosen by its score on {first}, the set "
            "that is tested on; that score is then too high",
            "Name a validation set first, as in DATASETS.TEST "
            f"\"('my_val', '{first}')\", or report model_final.pth",
        )
    if solver.CHECKPOINT_PERIOD >= solver.MAX_ITER > 5000:
        yield _SCHEDULE.warning(
            f"SOLVER.CHECKPOINT_PERIOD {solver.CHECKPOINT_PERIOD} is not below "
            f"SOLVER.MAX_ITER {solver.MAX_ITER}: an interruption loses everything",
            f"Type SOLVER.CHECKPOINT_PERIOD {solver.MAX_ITER // 10}",
        )


def _rate(run: PlannedRun) -> Iterator[Finding]:
    """Compare the learning rate with that of the preset, in proportion to the batch."""
    preset = find_preset(run.config_file)
    if preset is None and not run.cfg.FOUR_STEP.ENABLED:
        return
    file, before = preset or ("the paper", usual())
    cfg, rate = run.scaled, run.scaled.SOLVER.BASE_LR
    if cfg.FOUR_STEP.ENABLED:
        # It keeps rate and iterations when processes add to the batch. Presets made for several
        # processes have a higher rate than that of one.
        factor, before_rate, whose = float(run.num_processes), _RATE_OF_ONE_PROCESS, "one process"
        keys = "FOUR_STEP.ITERS and DROPS"
    else:
        factor = cfg.SOLVER.IMS_PER_BATCH / before.SOLVER.IMS_PER_BATCH
        before_rate, whose = before.SOLVER.BASE_LR, Path(file).name
        keys = "SOLVER.MAX_ITER and STEPS"
    expected = before.SOLVER.BASE_LR * factor
    if factor != 1 and rate == before_rate:
        yield _SCHEDULE.warning(
            f"a batch is {factor:g} times that of {whose}, but SOLVER.BASE_LR is still {rate:g}",
            f"In proportion: SOLVER.BASE_LR {before_rate * factor:g}, and {keys} "
            f"{'divided' if factor > 1 else 'multiplied'} by {max(factor, 1 / factor):g}",
        )
    elif preset is not None and rate > _MUCH_HIGHER * expected:
        yield _SCHEDULE.warning(
            f"SOLVER.BASE_LR {rate:g} is {rate / expected:.3g} times that of {Path(file).name} for "
            "this batch: the loss may diverge",
            f"In proportion to the batch: SOLVER.BASE_LR {expected:g}",
        )


def find_preset(config_file: str) -> tuple[str, CfgNode] | None:
    """Find the config that a user's choices are compared with.

    Returns:
        Path and content of the first config of this plugin in the chain of ``_BASE_``, the file
        itself included; None if there is none.
    """
    ours = Path(get_config_file("Base-PyEnd2End.yaml")).resolve().parent
    for path in base_chain(config_file) if config_file else ():
        if ours in path.parents:
            cfg = plugin_cfg()
            with muted("fvcore"):
                load_config_file(cfg, path)
            return str(path), cfg
    return None


def _describe(run: PlannedRun) -> str:
    cfg = run.scaled
    _, seen, images = _most_seen(run)
    passes = f"{seen / images:,.1f} passes over {images:,}" if images else "images not counted"
    if cfg.FOUR_STEP.ENABLED:
        stages = ", ".join(f"{s.number}: {s.iters:,} x {s.images}" for s in build_stages(cfg))
        what = f"four stages (iterations x images: {stages}; {'up to ' * bool(images)}{passes})"
    else:
        each = plural(cfg.SOLVER.IMS_PER_BATCH, "image")
        what = f"{cfg.SOLVER.MAX_ITER:,} iterations of {each} ({passes})"
    rate = f"learning rate {cfg.SOLVER.BASE_LR:g}"
    if cfg.FOUR_STEP.ENABLED and run.num_processes > 1:
        rate += (
            f"; batches are {run.num_processes} times those of one process, at the same rate. If "
            "it is meant for one, in proportion: "
            f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR * run.num_processes:g}"
        )
    return f"{what} in {plural(run.num_processes, 'process')}, {rate}"
