"""tools/install_detectron2.py: the order of its sources, what it says."""

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.tool_modules import TOOLS


@pytest.fixture
def fakes(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replace sources, check and pip; returns the list in which calls of them are noted."""

    def install_fakes(
        *states: tuple[str, str], failing: tuple[str, ...] = (), ours: bool = False
    ) -> list[str]:
        calls: list[str] = []
        answers = iter(states)

        def source(name: str) -> Callable[..., None]:
            def run(*arguments: object) -> None:
                calls.append(name)
                if name in failing:
                    raise installer.SourceError(f"{name} failed")

            return run

        for name in ("given", "upstream", "labgym"):
            monkeypatch.setattr(installer, f"install_{name}", source(name))
        monkeypatch.setattr(installer, "check_installed", lambda: next(answers))
        monkeypatch.setattr(installer, "installed_by_us", lambda: ours)
        monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments[0]))
        return calls

    return install_fakes


ABSENT, USABLE, BROKEN = ("absent", ""), ("usable", "/site/detectron2"), ("broken", "undefined")


def test_a_usable_one_is_left_alone(
    installer: ModuleType,
    fakes: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = fakes(USABLE, USABLE)
    assert installer.main([]) == 0
    expected = "detectron2: already installed at /site/detectron2, left as it is"
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setenv("DETECTRON2", "mine")
    assert installer.main([]) == 0
    assert capsys.readouterr().out.startswith(f"{expected}; DETECTRON2=mine is ignored")
    assert calls == []


def test_upstream_comes_before_labgym(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    calls = fakes(ABSENT, USABLE)
    assert installer.main([]) == 0
    assert calls == ["upstream"]
    assert capsys.readouterr().out == "detectron2: installed from upstream commit 02b5c4e295\n"


def test_labgym_is_next_and_the_line_says_why(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    calls = fakes(ABSENT, USABLE, failing=("upstream",))
    assert installer.main([]) == 0
    assert calls == ["upstream", "labgym"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("detectron2: installed from the January 2024 copy in labgym==3.1.2 (")
    assert "upstream failed" in line


def test_one_that_installs_but_does_not_work_is_taken_out_again(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    calls = fakes(ABSENT, BROKEN, USABLE)
    assert installer.main([]) == 0
    assert calls == ["upstream", "uninstall", "labgym"]
    assert "cannot be used: undefined" in capsys.readouterr().out


def test_failure_says_what_was_tried_and_what_to_do(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    fakes(ABSENT, failing=("upstream", "labgym"))
    assert installer.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("detectron2: could not be installed")
    assert "upstream failed" in lines[1] and "labgym failed" in lines[2]
    assert lines[3].startswith("Do this: ") and "DETECTRON2=" in lines[3]
    assert len(lines) == 4


def test_given_is_the_only_source_then(
    installer: ModuleType,
    fakes: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETECTRON2", "mine.whl")
    calls = fakes(ABSENT, USABLE)
    assert installer.main([]) == 0
    assert calls == ["given"]
    assert capsys.readouterr().out == "detectron2: installed from DETECTRON2=mine.whl\n"

    calls = fakes(ABSENT, failing=("given",))
    assert installer.main([]) == 1
    assert calls == ["given"]
    assert "Do this: correct DETECTRON2" in capsys.readouterr().out


def test_a_broken_one_of_the_user_is_reported_not_replaced(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    calls = fakes(BROKEN)
    assert installer.main([]) == 1
    assert calls == []
    assert "undefined" in capsys.readouterr().out


def test_a_broken_one_of_our_own_is_replaced(installer: ModuleType, fakes: Callable) -> None:
    calls = fakes(BROKEN, USABLE, ours=True)
    assert installer.main([]) == 0
    assert calls == ["uninstall", "upstream"]


def test_torch_comes_first(
    installer: ModuleType, fakes: Callable, capsys: pytest.CaptureFixture
) -> None:
    calls = fakes(("no torch", "torch is not installed. Install it: pip install torch"))
    assert installer.main([]) == 1
    assert calls == []
    assert "pip install torch" in capsys.readouterr().out


def test_script_is_known_by_its_help() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(TOOLS / "install_detectron2.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--constraint" in done.stdout
