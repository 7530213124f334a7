"""Commands, called in this process, as starting one takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from frcnn_plugin import get_config_file
from frcnn_plugin.cli import predict, proposals
from frcnn_plugin.cli import weights as weights_commands
from frcnn_plugin.cli.__main__ import main, parse
from frcnn_plugin.engine import setup_cfg
from tests.checkpoint.conftest import cache, server  # noqa: F401

DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")
SMALL = [
    *("MODEL.VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.DEVICE", "cpu"),
]


def frcnn(*words: object) -> Any:
    """Run a command that raises nothing; return what it gives to callers in Python."""
    command, args = parse([str(word) for word in words])
    return command.run(args)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's network, small and untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.save({"model": build_model(setup_cfg(DEMO, SMALL)).state_dict()}, path)
    return path


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
