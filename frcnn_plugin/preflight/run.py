"""The list of checks, in the order in which their findings are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from ..data.loading.mappers import RESIZERS
from ..errors import UserError
from ..evaluation.voc import MATCHES, METRICS
from .data_sets import check_data, check_data_root, check_proposal_files
from .environment import check_environment
from .finding import Finding, error, warning
from .output import check_output
from .planned_run import PlannedRun
from .resources import check_disk, check_memory
from .schedule import check_solver, check_start_of_stages
from .weights import check_weights

Check = Callable[[PlannedRun], Iterator[Finding]]


# Keys that are read late, the metric only after the last iteration, and what they may be.
_CHOICES: dict[str, tuple[str, ...]] = {
    "INPUT.RESIZE": RESIZERS,
    "TEST.VOC_MATCH": MATCHES,
    "TEST.VOC_METRIC": METRICS,
}


def _config(run: PlannedRun) -> Iterator[Finding]:
    for key, choices in _CHOICES.items():
        node, name = key.split(".")
        value = run.cfg[node][name]
        if value not in choices:
            yield error("config", f"{key} is '{value}': use one of {', '.join(choices)}")
    try:
        torch.device(run.cfg.MODEL.DEVICE)
    except RuntimeError:
        yield error("config", f"MODEL.DEVICE is '{run.cfg.MODEL.DEVICE}': give cpu, cuda or cuda:1")


def _environment(run: PlannedRun) -> Iterator[Finding]:
    yield from check_environment(
        run.cfg.MODEL.DEVICE, run.processes_here, touch_gpus=run.may_touch_gpus
    )


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("config", _config),
    ("environment", _environment),
    ("output", check_output),
    ("data", check_data),
    ("schedule", check_start_of_stages),
    ("proposals", check_proposal_files),
    ("schedule", check_solver),
    ("weights", check_weights),  # last, as it may download a file
)
# These make sense only if all else is well.
_SPACE: tuple[tuple[str, Check], ...] = (("disk", check_disk), ("memory", check_memory))


def preflight(run: PlannedRun) -> Iterator[Finding]:
    """Check everything that a run needs.

    Yields:
        Findings as they are made, so that a caller may stop at the first error.
    """
    for subject, check in _CHECKS:
        for finding in _guarded(subject, check, run):
            run.failed |= finding.level == "error"
            yield finding
    for subject, check in () if run.failed else _SPACE:
        yield from _guarded(subject, check, run)


def stop_on_errors(run: PlannedRun) -> None:
    """Check what is about to run, and stop on what would fail, or silently go wrong, after hours.

    Warnings are printed to stderr.

    Raises:
        UserError: there are errors; all of them, one after the other, each with the key and the
            override to type.
    """
    errors = []
    for finding in preflight(run):
        if finding.level == "error":
            errors.append(finding.sentence)
        elif finding.level == "warning":
            print(f"warning: {finding.sentence}", file=sys.stderr)
    if errors:
        raise UserError("\nerror: ".join(errors))


def preflight_without_config() -> Iterator[Finding]:
    """Check the environment, and say which data sets are at hand."""
    yield from check_environment()
    yield from check_data_root()


def _guarded(subject: str, check: Check, run: PlannedRun) -> Iterator[Finding]:
    try:
        yield from check(run)
    except UserError as e:
        yield error(subject, str(e))
    except Exception as e:
        # A run must not fail because a check of it does.
        yield warning(subject, f"this could not be checked ({type(e).__name__}: {e})")
