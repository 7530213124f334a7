"""Where the time of a forward pass goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn


class Clock:
    """Adds up seconds by section, those of sub-modules by hooks.

    Sections may lie inside each other; each counts on its own.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[nn.Module]], synchronise: Callable[[], None]
    ) -> None:
        """Watch sub-modules.

        Args:
            parts: section -> modules whose calls belong to it.
            synchronise: waits for the device; called at every start and stop.
        """
        self.seconds: dict[str, float] = defaultdict(float)
        self._synchronise = synchronise
        self._starts: dict[str, float] = {}
        self._handles: list[Any] = []
        for name, modules in parts.items():
            for module in modules:
                self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        def before(*_: Any) -> None:
            self.start(name)

        def after(*_: Any) -> None:
            self.stop(name)

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after))

    def start(self, name: str) -> None:
        self._synchronise()
        self._starts[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        self._synchronise()
        self.seconds[name] += time.perf_counter() - self._starts.pop(name)

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
