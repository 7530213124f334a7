"""What can be known to be wrong before a run starts: one list of checks for all tools.

:func:`preflight` runs them; tools/train_net.py before any work, tools/doctor.py alone, and
:func:`frcnn_plugin.preflight.check_cfg` as one call that raises.
"""

from .finding import Finding, Level, count, worst
from .planned_run import PlannedRun
from .run import check_cfg, preflight, preflight_without_config, stop_on_errors

__all__ = [
    "Finding",
    "Level",
    "PlannedRun",
    "check_cfg",
    "count",
    "preflight",
    "preflight_without_config",
    "stop_on_errors",
    "worst",
]
