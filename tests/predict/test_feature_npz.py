"""Features of detections in one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from frcnn_plugin.predict.feature_npz import FeatureFile

from .found import NAMES, NONE, TWO


def test_features(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    with FeatureFile(path, NAMES) as file:
        for name, instances in (("a.jpg", TWO), ("b.jpg", NONE), ("ü.jpg", TWO)):
            file.add(name, instances)
        assert not path.exists()
    content = np.load(path)  # without pickle
    assert content["file_names"].tolist() == ["a.jpg", "b.jpg", "ü.jpg"]
    assert content["image_sizes"].tolist() == [[40, 60]] * 3
    assert content["class_names"].tolist() == ["cat", "dog"]
    assert content["image_index"].tolist() == [0, 0, 2, 2]
    assert content["boxes"].tolist()[0] == [1, 2, 11, 22]
    assert content["scores"].dtype == np.float32 and content["scores"].tolist() == [0.75, 0.5] * 2
    assert content["classes"].tolist() == [1, 0, 1, 0]
    assert content["fc7"].tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    assert content["proposal_index"].dtype == np.int64
    assert content["proposal_index"].tolist() == [5, 6, 5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_features_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    with FeatureFile(path, NAMES) as file:
        file.add("b.jpg", NONE)
    content = np.load(path)
    assert content["fc7"].shape == (0, 3) and content["boxes"].shape == (0, 4)
    with FeatureFile(path, NAMES):
        pass
    assert np.load(path)["image_sizes"].shape == (0, 2)


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), FeatureFile(path, NAMES) as file:
        file.add("a.jpg", TWO)
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f.npz"]
