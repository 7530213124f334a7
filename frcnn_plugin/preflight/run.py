"""The list of checks, in the order in which their findings are shown."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode

from ..errors import UserError
from .data_folders import check_data_root
from .data_sets import check_data
from .disk import check_disk
from .environment import check_environment
from .finding import Finding, error, warning
from .memory import check_memory
from .output import check_output
from .planned_run import PlannedRun
from .proposals import check_proposal_files
from .schedule import check_schedule, check_start_of_steps
from .weights import check_weights

logger = logging.getLogger(__name__)

Check = Callable[[PlannedRun], Iterator[Finding]]


def _environment(run: PlannedRun) -> Iterator[Finding]:
    yield from check_environment(
        run.cfg.MODEL.DEVICE, run.processes_here, touch_gpus=run.may_touch_gpus
    )


# Subject and function.
_CHECKS: tuple[tuple[str, Check], ...] = (
    ("environment", _environment),
    ("output", check_output),
    ("data", check_data),
    ("schedule", check_start_of_steps),
    ("proposals", check_proposal_files),
    ("schedule", check_schedule),
    ("weights", check_weights),  # last, as it may download a file
)
# These make sense if all else is well.
_ESTIMATES: tuple[tuple[str, Check], ...] = (
    ("disk", check_disk),
    ("memory", check_memory),
)


def preflight(run: PlannedRun) -> Iterator[Finding]:
    """Check everything that a run needs.

    Args:
        run: config, and how it is run.

    Yields:
        findings as they are made, so that the first error can end it.
    """
    for subject, check in _CHECKS:
        for finding in _guarded(subject, check, run):
            run.failed |= finding.level == "error"
            yield finding
    for subject, check in () if run.failed else _ESTIMATES:
        yield from _guarded(subject, check, run)


def stop_on_errors(run: PlannedRun) -> None:
    """Check what a tool is about to run; print warnings to stderr.

    Raises:
        UserError: there are errors; all of them, one after the other.
    """
    errors = []
    for finding in preflight(run):
        if finding.level == "error":
            errors.append(finding.sentence)
        elif finding.level == "warning":
            print(f"warning: {finding.sentence}", file=sys.stderr)
    if errors:
        raise UserError("\nerror: ".join(errors))


def check_cfg(
    cfg: CfgNode, *, eval_only: bool = False, resume: bool = False, overwrite: bool = False
) -> None:
    """Stop on what would otherwise fail, or silently go wrong, after hours.

    The first error of :func:`~frcnn_plugin.preflight.preflight` is raised; warnings are
    logged.

    Args:
        cfg: a config from :func:`setup_cfg`.
        eval_only: nothing will be trained.
        resume: a run in ``OUTPUT_DIR`` will be taken up.
        overwrite: a run in ``OUTPUT_DIR`` may be lost.

    Raises:
        UserError: names the key and the override to type.
    """
    run = PlannedRun(cfg, eval_only=eval_only, resume=resume, overwrite=overwrite)
    for finding in preflight(run):
        if finding.level == "error":
            raise UserError(finding.sentence)
        if finding.level == "warning":
            logger.warning("%s", finding.sentence)


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
