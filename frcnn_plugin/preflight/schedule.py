"""Iterations, batch and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode

from ..config import base_chain, get_config_file, plugin_cfg
from ..four_step.checkpoints import check_start
from ..four_step.stages import build_stages
from .finding import Finding, error, ok, plural, warning
from .planned_run import PlannedRun, muted

_SUBJECT = "schedule"
_MUCH_HIGHER = 3.0  # a learning rate so many times that of the preset is likely to diverge


def check_start_of_stages(run: PlannedRun) -> Iterator[Finding]:
    """Check that what the stages left out would have made is there."""
    if run.cfg.FOUR_STEP.ENABLED and not run.eval_only:
        check_start(run.cfg)
    yield from ()


def check_solver(run: PlannedRun) -> Iterator[Finding]:
    """Check iterations, batch and learning rate, which needs neither the model nor images."""
    if run.eval_only:
        return
    findings = [*_numbers(run), *_batch(run)]
    if not any(f.level == "error" for f in findings):
        findings += [*_epochs(run), *_periods(run), *_rate(run)]
    yield from findings or [ok(_SUBJECT, _describe(run))]


def _numbers(run: PlannedRun) -> Iterator[Finding]:
    solver = run.cfg.SOLVER
    for key, lowest in (("MAX_ITER", 1), ("IMS_PER_BATCH", 1), ("CHECKPOINT_PERIOD", 1)):
        if solver[key] < lowest:
            yield error(_SUBJECT, f"SOLVER.{key} is {solver[key]}: it must be {lowest} or more")
    if not solver.BASE_LR > 0:
        yield error(_SUBJECT, f"SOLVER.BASE_LR is {solver.BASE_LR}: it must be positive")
    steps = list(solver.STEPS)
    if any(s >= solver.MAX_ITER for s in steps):
        # Detectron2 ignores later ones with a warning, and fails on an equal one.
        yield error(
            _SUBJECT,
            f"SOLVER.STEPS {tuple(steps)} must lie below SOLVER.MAX_ITER {solver.MAX_ITER}: the "
            "learning rate would never drop. Type for example "
            f'SOLVER.STEPS "({solver.MAX_ITER * 5 // 7},)"',
        )
    elif steps != sorted(set(steps)):
        yield error(
            _SUBJECT,
            f"SOLVER.STEPS {tuple(steps)} must grow",
            f'Type SOLVER.STEPS "{tuple(sorted(set(steps)))}"',
        )
    model = run.cfg.MODEL
    on_cpu = model.DEVICE == "cpu" and model.META_ARCHITECTURE == "PaperRCNN"
    if solver.AMP.ENABLED and not (model.DEVICE.startswith("cuda") or on_cpu):
        yield error(
            _SUBJECT,
            f"SOLVER.AMP.ENABLED with MODEL.DEVICE {model.DEVICE} and MODEL.META_ARCHITECTURE "
            f"{model.META_ARCHITECTURE}: without CUDA only PaperRCNN trains in mixed precision, on "
            "the CPU; add SOLVER.AMP.ENABLED False",
        )


def _batch(run: PlannedRun) -> Iterator[Finding]:
    cfg, processes = run.cfg, run.num_processes
    if cfg.FOUR_STEP.ENABLED:  # whose batches are per process
        return
    reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference > 0 and images % reference:
        yield error(
            _SUBJECT,
            f"SOLVER.IMS_PER_BATCH {images} is no multiple of SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}, the number of processes it is meant for",
            f"Type SOLVER.IMS_PER_BATCH {max(1, images // reference) * reference}",
        )
    elif run.scaled.SOLVER.IMS_PER_BATCH % processes:
        yield error(
            _SUBJECT,
            f"SOLVER.IMS_PER_BATCH {images} cannot be divided among {processes} processes",
            f"Type SOLVER.IMS_PER_BATCH {max(1, images // processes) * processes}",
        )


def _epochs(run: PlannedRun) -> Iterator[Finding]:
    images = sum(map(run.size, run.train))
    seen = max(_images_seen(run).values())
    if 0 < seen < images:
        yield warning(
            _SUBJECT,
            f"training sees {seen:,} images, less than one pass over the {images:,} of "
            "DATASETS.TRAIN",
            "Raise FOUR_STEP.ITERS and FOUR_STEP.DROPS"
            if run.cfg.FOUR_STEP.ENABLED
            else "Raise SOLVER.MAX_ITER and SOLVER.STEPS",
        )


def _images_seen(run: PlannedRun) -> dict[int, int]:
    """Return the images that training takes, by stage; 0 stands for training without stages."""
    cfg = run.scaled
    if not cfg.FOUR_STEP.ENABLED:
        return {0: cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH}
    return {s.number: s.iters * s.images * run.num_processes for s in build_stages(cfg)}


def _periods(run: PlannedRun) -> Iterator[Finding]:
    cfg = run.scaled
    period, tested = cfg.TEST.EVAL_PERIOD, sum(map(run.size, run.test))
    if 0 < period * cfg.SOLVER.IMS_PER_BATCH < tested and period < cfg.SOLVER.MAX_ITER:
        yield warning(
            _SUBJECT,
            f"TEST.EVAL_PERIOD {period}: between two evaluations fewer images are trained on "
            f"({period * cfg.SOLVER.IMS_PER_BATCH:,}) than evaluated ({tested:,})",
            f"Type TEST.EVAL_PERIOD {max(1, cfg.SOLVER.MAX_ITER // 10)}",
        )
    if period > 0 and not run.test:
        yield warning(_SUBJECT, "TEST.EVAL_PERIOD is set, but DATASETS.TEST is empty")
    if cfg.SOLVER.CHECKPOINT_PERIOD >= cfg.SOLVER.MAX_ITER > 5000:
        yield warning(
            _SUBJECT,
            f"SOLVER.CHECKPOINT_PERIOD {cfg.SOLVER.CHECKPOINT_PERIOD} is not below "
            f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: an interruption loses everything",
            f"Type SOLVER.CHECKPOINT_PERIOD {cfg.SOLVER.MAX_ITER // 10}",
        )


def _rate(run: PlannedRun) -> Iterator[Finding]:
    preset = find_preset(run.config_file)
    if preset is None:
        return
    file, before = preset
    cfg, rate = run.scaled, run.scaled.SOLVER.BASE_LR
    if cfg.FOUR_STEP.ENABLED:
        # Rate and iterations stay when processes add to the batch.
        if run.num_processes > 1 and rate == _rate_of_one_process():
            yield warning(
                _SUBJECT,
                f"{run.num_processes} processes make batches {run.num_processes} times as large, "
                f"but FOUR_STEP keeps rate and iterations, and SOLVER.BASE_LR {rate:g} is that of "
                "one process",
                f"In proportion: SOLVER.BASE_LR {rate * run.num_processes:g} and FOUR_STEP.ITERS "
                f"and DROPS divided by {run.num_processes}",
            )
        factor = 1.0
    else:
        factor = cfg.SOLVER.IMS_PER_BATCH / before.SOLVER.IMS_PER_BATCH
    expected = before.SOLVER.BASE_LR * factor
    if factor != 1 and rate == before.SOLVER.BASE_LR:
        yield warning(
            _SUBJECT,
            f"a batch is {cfg.SOLVER.IMS_PER_BATCH} images, {factor:g} times that of "
            f"{Path(file).name}, but SOLVER.BASE_LR is still {rate:g}",
            f"In proportion: SOLVER.BASE_LR {expected:g}, and SOLVER.MAX_ITER and STEPS "
            f"{'divided' if factor > 1 else 'multiplied'} by {max(factor, 1 / factor):g}",
        )
    elif rate > _MUCH_HIGHER * expected:
        yield warning(
            _SUBJECT,
            f"SOLVER.BASE_LR {rate:g} is {rate / expected:.3g} times that of {Path(file).name} for "
            "this batch: the loss may diverge",
            f"In proportion to the batch: SOLVER.BASE_LR {expected:g}",
        )


def find_preset(config_file: str) -> tuple[str, CfgNode] | None:
    """Find the config that a user's choices are compared with.

    Args:
        config_file: what the run was started with.

    Returns:
        path and content of the first config of this plugin in its chain of ``_BASE_``, itself
        included; None if there is none.
    """
    ours = Path(get_config_file("Base-PyEnd2End.yaml")).resolve().parent
    for path in base_chain(config_file) if config_file else ():
        if ours in path.parents:
            cfg = plugin_cfg()
            with muted("fvcore"):
                cfg.merge_from_file(str(path))
            return str(path), cfg
    return None


def _rate_of_one_process() -> float:
    preset = find_preset(get_config_file("Base-PyEnd2End.yaml"))
    assert preset is not None
    return float(preset[1].SOLVER.BASE_LR)


def _describe(run: PlannedRun) -> str:
    cfg = run.scaled
    if cfg.FOUR_STEP.ENABLED:
        stages = ", ".join(f"{s.number}: {s.iters:,} x {s.images}" for s in build_stages(cfg))
        what = f"four stages (iterations x images: {stages})"
    else:
        what = f"{cfg.SOLVER.MAX_ITER:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    return f"{what} in {plural(run.num_processes, 'process')}, learning rate {cfg.SOLVER.BASE_LR:g}"
