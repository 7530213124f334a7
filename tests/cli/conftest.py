"""Commands, called in this process, as starting one takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frcnn_plugin.cli import predict, proposals
from frcnn_plugin.cli import weights as weights_commands
from frcnn_plugin.cli.__main__ import main, parse
from tests.checkpoint.conftest import cache, server  # noqa: F401
from tests.small_demo import random_weights


def frcnn(*words: object) -> Any:
    """Run a command that raises nothing; return what it gives to callers in Python."""
    command, args = parse([str(word) for word in words])
    return command.run(args)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's network, small and untrained."""
    return Path(random_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which must fail; returns the line without "error: "."""

    def call(*words: object) -> str:
        assert main([str(word) for word in words]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


@pytest.fixture(autouse=True, scope="package")
def logging_of_pytest() -> Iterator[None]:
    """Commands leave the loggers as they are."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (predict, proposals, weights_commands):
            patch.setattr(module, "setup_logger", lambda *_, **__: None)
        yield
