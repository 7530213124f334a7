"""What explains the end of a run: losses that are not finite, and memory that runs out."""

from .memory_errors import memory_errors_explained
from .step_guard import StepGuard

__all__ = ["StepGuard", "memory_errors_explained"]
