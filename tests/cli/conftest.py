"""Calls of the console command in this process, as starting one takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from frcnn_plugin.cli import __main__ as command


def frcnn(*words: object) -> Any:
    """Run a command that has to succeed; return what it gives to callers in Python."""
    module, args = command.parse([str(word) for word in words])
    return module.run(args)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which has to fail, and returns the line that says why."""

    def call(*words: object) -> str:
        assert command.main([str(word) for word in words]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return call
