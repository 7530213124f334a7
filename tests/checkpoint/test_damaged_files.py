"""Whatever is in a file of weights: it is read, or a UserError says why not."""

from __future__ import annotations

import io
import logging
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from frcnn_plugin.checkpoint import KEY, AtomicCheckpointer, peek, read_weights, write_caffemodel
from frcnn_plugin.checkpoint.metadata import CAFFE, Metadata
from frcnn_plugin.checkpoint.read import read_checkpoint, read_metadata
from frcnn_plugin.errors import UserError
from tests.damage import check_reader, damaged

from . import networks


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def saved(content: object, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def damaged_inside(content: bytes, runs: int) -> list[bytes]:
    """Archives with right checksums of a damaged pickle."""
    rng = random.Random(1)
    found = []
    for _ in range(runs):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, damaged(rng, data) if name.endswith(".pkl") else data)
        found.append(buffer.getvalue())
    return found


CHECKPOINT = saved(
    {
        "model": {"backbone.a.weight": torch.ones(3, 4), "b": torch.arange(5)},
        KEY: Metadata("detector", CAFFE, ("a", "b"), "MODEL: {}", {"file": "x"}).to_dict(),
        "trainer": {"hooks": {"FourStepHook": {"step": 2}}},
        "iteration": 3,
    }
)


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    old = saved({"state_dict": OrderedDict(a=torch.ones(2))}, _use_new_zipfile_serialization=False)
    vgg16 = saved({name: tensor[:1] for name, tensor in networks.torchvision_vgg16().items()})

    def read() -> None:
        refused = 0
        for function in (read_checkpoint, peek, read_metadata, read_weights):
            try:
                result = function(path)
                if function is peek:
                    _ = result.metadata, result.iteration, result.stage
            except UserError:
                refused += 1
        if refused:
            raise UserError

    check_reader(read, path, [CHECKPOINT, old, vgg16, *damaged_inside(CHECKPOINT, 100)])


def test_caffemodels(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    layers = networks.detector(networks.zf(), classes=2, rpn_conv="rpn_conv1")
    small = {name: [blob[:1] for blob in blobs] for name, blobs in networks.vgg16().items()}
    contents = []
    for net in (layers, small):
        write_caffemodel(path, net)
        contents.append(path.read_bytes())
    check_reader(lambda: read_weights(path).not_finite(), path, contents)


def test_pickles_of_the_model_zoo(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    ours = {"model": {"a": np.ones((2, 3), "f4"), "b": np.arange(3)}, "__author__": "x"}
    contents = [pickle.dumps(ours, protocol) for protocol in range(5)]
    caffe2 = OrderedDict(a_w=np.ones(3), a_w_momentum=np.ones(3))
    check_reader(
        lambda: read_checkpoint(path), path, [*contents, pickle.dumps({"blobs": caffe2}, 2)]
    )


def test_checkpoints_that_a_run_resumes(tmp_path: Path) -> None:
    """The optimizer's part is damaged, too."""

    def checkpointer() -> tuple[AtomicCheckpointer, torch.optim.Optimizer, torch.nn.Module]:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return AtomicCheckpointer(model, str(tmp_path), optimizer=optimizer), optimizer, model

    writer, optimizer, model = checkpointer()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    writer.save("model_0000001", iteration=1)
    path = tmp_path / "model_0000001.pth"
    content = path.read_bytes()
    contents = [content, *damaged_inside(content, 150)]
    check_reader(lambda: checkpointer()[0].resume_or_load("", resume=True), path, contents)


def test_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model_0000001.pth").write_bytes(saved({"model": {"weight": torch.ones(1, 1)}}))

    def read() -> None:
        AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)

    check_reader(read, tmp_path / "last_checkpoint", [b"model_0000001.pth"], runs=100)
