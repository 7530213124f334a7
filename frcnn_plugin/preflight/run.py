"""The list of checks, in the order in which their findings are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from ..errors import UserError
from .anchors import check_anchors
from .data_sets import check_data, check_proposal_files
from .environment import check_data_root, check_environment
from .finding import Finding, Subject
from .ignored_keys import check_ignored_keys
from .output import check_output
from .planned_run import PlannedRun
from .resources import check_disk, check_hours, check_memory, check_workers
from .schedule import check_solver
from .weights import check_weights

Check = Callable[[PlannedRun], Iterator[Finding]]


def _config(run: PlannedRun) -> Iterator[Finding]:
    yield from run.bad_values or check_ignored_keys(run)


def _environment(run: PlannedRun) -> Iterator[Finding]:
    touch = run.alone or run.processes_here == 1  # workers would lack the memory that it takes
    return check_environment(run.cfg.MODEL.DEVICE, run.processes_here, touch_gpus=touch)


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("config", _config),
    ("environment", _environment),
    ("output", check_output),
    ("data", check_data),
    ("proposals", check_proposal_files),
    ("schedule", check_solver),
    ("data", check_anchors),
    ("weights", check_weights),  # last, as it may download a file
)
# These make sense only if all else is well.
_IF_ALL_IS_WELL: tuple[tuple[str, Check], ...] = (
    ("disk", check_disk),
    ("memory", check_memory),
    ("memory", check_workers),
    ("schedule", check_hours),
)


def preflight(run: PlannedRun) -> Iterator[Finding]:
    """Check everything that a run needs; a caller may stop at the first error."""
    for subject, check in _CHECKS:
        for finding in _guarded(subject, check, run):
            run.failed |= finding.level == "error"
            yield finding
    for subject, check in () if run.failed else _IF_ALL_IS_WELL:
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
        yield Subject(subject).error(str(e))
    except Exception as e:
        if run.bad_values:  # from which anything may follow
            return
        # A run must not fail because a check of it does.
        yield Subject(subject).warning(f"this could not be checked ({type(e).__name__}: {e})")
