"""tools/install_detectron2.py: whether there is one, whether it works, whose it is."""

import sys
from pathlib import Path
from types import ModuleType

import pytest


def test_check_finds_the_detectron2_of_this_environment(installer: ModuleType) -> None:
    state, folder = installer.check_installed()
    assert state == "usable", folder
    assert (Path(folder) / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("detectron2", "state"), [(None, "absent"), ("", "broken"), ("exit", "broken")]
)
def test_check_tells_absent_from_broken(
    installer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    detectron2: str | None,
    state: str,
) -> None:
    torch = "__version__ = '2'\nclass ops:\n    class torchvision:\n        nms = None\n"
    files = {"torch.py": torch, "torchvision.py": "__version__ = '2'"}
    if detectron2 is not None:
        ending = "import os; os._exit(139)" if detectron2 == "exit" else ""
        files["detectron2.py"] = ending
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # -S: none of this environment's packages, only those of the folder.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(installer.sys, "executable", str(python))
    assert installer.check_installed()[0] == state


@pytest.mark.parametrize(
    ("record", "text", "ours"),
    [
        ("METADATA", "wheel (sha256 {LABGYM_SHA256})", True),
        ("direct_url.json", '"commit_id": "{UPSTREAM_COMMIT}"', True),
        ("direct_url.json", '"commit_id": "0123456789"', False),
        ("METADATA", "Name: detectron2", False),
    ],
)
def test_only_what_this_script_pins_is_its_own(
    installer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: str,
    text: str,
    ours: bool,
) -> None:
    (tmp_path / "detectron2-0.6.dist-info").mkdir()
    (tmp_path / "detectron2-0.6.dist-info" / record).write_text(text.format(**vars(installer)))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installer.installed_by_us() is ours


def test_nothing_installed_is_not_ours(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert installer.installed_by_us() is False
