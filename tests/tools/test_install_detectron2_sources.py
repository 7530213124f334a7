"""tools/install_detectron2.py: what is given in DETECTRON2, and upstream."""

from pathlib import Path
from types import ModuleType

import pytest


def test_given_folder_that_pip_cannot_install(
    installer: ModuleType, tmp_path: Path, offline_pip: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(installer.SourceError, match=r"pip install failed: ERROR: .*empty"):
        installer.install_given(str(tmp_path / "empty"), [])


def test_given_folder_reaches_pip_as_an_absolute_path(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    installer.install_given("mine", ["--constraint", "c.txt"])
    installer.install_given("git+https://example.org/d.git@main", [])
    options = ("install", "--no-build-isolation")
    assert calls == [
        (*options, "--constraint", "c.txt", str(tmp_path / "mine")),
        (*options, "git+https://example.org/d.git@main"),
    ]


def test_given_name_that_is_no_path_is_not_looked_up_on_the_index(installer: ModuleType) -> None:
    with pytest.raises(installer.SourceError, match="'detectron3' is neither an existing file"):
        installer.install_given("detectron3", [])


def add_command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ({}, "git is not installed"),
        ({"git": "exit 0"}, "there is no C++ compiler"),
        ({"git": "exit 128", "c++": "exit 0"}, "git cannot reach https://github.com/"),
        ({"git": "exec /bin/sleep 30", "c++": "exit 0"}, "git cannot reach https://github.com/"),
    ],
    ids=["no git", "no compiler", "no repository", "no answer"],
)
def test_upstream_is_passed_over_fast(
    installer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commands: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(installer, "GIT_SECONDS", 0.5)
    monkeypatch.setattr(installer, "pip", lambda *_: pytest.fail("pip must not run"))
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda _: str(tmp_path))
    (tmp_path / "Python.h").touch()
    for name, body in commands.items():
        add_command(tmp_path / "bin", name, body)
    with pytest.raises(installer.SourceError) as raised:
        installer.install_upstream([])
    assert str(raised.value).startswith(reason)


def test_upstream_is_built_at_the_pinned_commit_without_isolation(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(installer.SourceError):
        installer.install_upstream([])  # nothing is there
    for name in ("git", "c++"):
        add_command(tmp_path / "bin", name, "exit 0")
    with pytest.raises(installer.SourceError, match="headers"):
        installer.install_upstream([])
    (tmp_path / "Python.h").touch()
    installer.install_upstream(["--constraint", "c.txt"])
    (call,) = calls
    assert call[:4] == ("install", "--no-build-isolation", "--constraint", "c.txt")
    assert call[4].startswith("detectron2 @ git+https://") and installer.UPSTREAM_COMMIT in call[4]
