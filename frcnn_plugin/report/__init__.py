"""The training report: one self-contained HTML page from what a run left in its folder."""

from .page import write_report
from .recorder import RunRecorder

__all__ = ["RunRecorder", "write_report"]
