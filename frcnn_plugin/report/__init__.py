"""The training report: one self-contained HTML page from what a run left in its folder."""

from .page import write_report

__all__ = ["write_report"]
