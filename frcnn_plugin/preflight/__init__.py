"""What can be known to be wrong before a run starts.

:func:`preflight` makes all checks of a :class:`PlannedRun`; ``frcnn doctor`` shows what they find.
:func:`stop_on_errors` is for programs that are about to run what was checked, as ``frcnn train``;
:func:`stop_on_bad_values` for those that only need a config to make sense, as ``frcnn predict``.
"""

from .finding import Finding, Level, count
from .planned_run import PlannedRun
from .run import preflight, preflight_without_config, stop_on_errors
from .values import check_values, stop_on_bad_values

__all__ = [
    "Finding",
    "Level",
    "PlannedRun",
    "check_values",
    "count",
    "preflight",
    "preflight_without_config",
    "stop_on_bad_values",
    "stop_on_errors",
]
