"""tools/install_detectron2.py: the order of its sources, each of them, what it says.

pip is given folders with small wheels made here, so nothing needs the network.
"""

import base64
import email
import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"
LABGYM_FILES = {
    "LabGym/__init__.py": "import tensorflow",
    "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
    "LabGym/detectron2/engine.py": (
        "from LabGym.detectron2.utils import comm\nimport LabGym.detectron2.data as data\n"
        'LOGGER = "LabGym.detectron2.engine"\n'
    ),
    "LabGym/detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
    "labgym-3.1.2.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: labgym\nVersion: 3.1.2\nRequires-Python: <3.9\n"
        "Requires-Dist: tensorflow\n"
    ),
    "labgym-3.1.2.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
    "labgym-3.1.2.dist-info/RECORD": "",
}


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/install_detectron2.py, no DETECTRON2 given."""
    monkeypatch.delenv("DETECTRON2", raising=False)
    # Not "from tools": a checkout of Detectron2 on the path has a package of that name.
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def labgym(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return write_wheel(tmp_path / "index" / "labgym-3.1.2-py3-none-any.whl", LABGYM_FILES)


@pytest.fixture
def offline_pip(tmp_path: Path, labgym: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give pip the LabGym wheel's folder for an index; returns the folder it installs into."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(labgym.parent))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "installed"))
    return tmp_path / "installed"


# ---------------------------------------------------------------------------- order of the sources


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
        monkeypatch.setattr(installer, "install_opencv", lambda constraint: None)
        monkeypatch.setattr(installer, "check_installed", lambda: next(answers))
        monkeypatch.setattr(installer, "installed_by_us", lambda: ours)
        monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments[0]))
        return calls

    return install_fakes


ABSENT, USABLE, BROKEN = ("absent", ""), ("usable", "/site/detectron2"), ("broken", "undefined")


@pytest.mark.parametrize(
    ("states", "given", "failing", "ours", "status", "calls", "said"),
    [
        ([USABLE], "", [], False, 0, [], ["installed at /site/detectron2, left as it is\n"]),
        ([USABLE], "mine", [], False, 0, [], ["left as it is; DETECTRON2=mine is ignored"]),
        ([ABSENT, USABLE], "", [], False, 0, ["upstream"], ["from upstream commit 02b5c4e295\n"]),
        (
            [ABSENT, USABLE], "", ["upstream"], False, 0, ["upstream", "labgym"],
            ["installed from the January 2024 copy in labgym==3.1.2 (not from", "upstream failed"],
        ),
        (
            [ABSENT, BROKEN, USABLE], "", [], False, 0, ["upstream", "uninstall", "labgym"],
            ["cannot be used: undefined"],
        ),
        (
            [ABSENT], "", ["upstream", "labgym"], False, 1, ["upstream", "labgym"],
            ["could not be installed", "upstream failed", "labgym failed", "Do this: run it again"],
        ),
        ([ABSENT, USABLE], "m.whl", [], False, 0, ["given"], ["installed from DETECTRON2=m.whl\n"]),
        ([ABSENT], "m.whl", ["given"], False, 1, ["given"], ["Do this: correct DETECTRON2"]),
        ([BROKEN], "", [], False, 1, [], ["did not install; it is left as it is.\nundefined"]),
        ([BROKEN, USABLE], "", [], True, 0, ["uninstall", "upstream"], ["copy is replaced"]),
        ([("no torch", "pip install torch")], "", [], False, 1, [], ["come first.\npip install t"]),
    ],
    ids=[
        *("usable", "usable, one given", "upstream first", "labgym next", "does not work"),
        *("none works", "given", "given fails", "broken of the user", "broken of ours", "no torch"),
    ],
)  # fmt: skip
def test_order_of_the_sources(
    installer: ModuleType,
    fakes: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    states: list[tuple[str, str]],
    given: str,
    failing: list[str],
    ours: bool,
    status: int,
    calls: list[str],
    said: list[str],
) -> None:
    if given:
        monkeypatch.setenv("DETECTRON2", given)
    called = fakes(*states, failing=tuple(failing), ours=ours)
    assert installer.main([]) == status
    assert called == calls
    output = capsys.readouterr().out
    assert output.startswith("detectron2: ")
    for text in said:
        assert text in output


def test_opencv_is_installed_where_there_is_none(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments))
    installer.install_opencv(["--constraint", "c.txt"])  # there is one here
    assert calls == []
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    installer.install_opencv(["--constraint", "c.txt"])
    assert calls == [("install", "--constraint", "c.txt", "opencv-python-headless>=4.5")]


def test_script_is_known_by_its_help() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--constraint" in done.stdout


# ----------------------------------------------------------------------------------- is there one?


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


# --------------------------------------------------------------------------------- given, upstream


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


# ------------------------------------------------------------------------------ the copy in LabGym


def test_wheel_holds_the_copy_under_its_own_name_and_nothing_else(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    wheel = installer.build_wheel(labgym, tmp_path / "built")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {name for name in files if "dist-info" not in name} == {
        "detectron2/__init__.py",
        "detectron2/engine.py",
        "detectron2/model_zoo/configs/Base.yaml",
    }
    assert files["detectron2/engine.py"] == (
        "from detectron2.utils import comm\nimport detectron2.data as data\n"
        'LOGGER = "detectron2.engine"\n'
    )
    assert files["detectron2-0.6.dist-info/top_level.txt"] == "detectron2\n"


def test_wheel_metadata_is_upstreams_and_says_where_it_came_from(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(installer.build_wheel(labgym, tmp_path)) as archive:
        metadata = email.message_from_bytes(archive.read("detectron2-0.6.dist-info/METADATA"))
    assert metadata["Name"] == "detectron2"
    assert metadata["Version"] == "0.6"
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Home-page"] == "https://github.com/facebookresearch/detectron2"
    requirements = metadata.get_all("Requires-Dist") or []
    assert requirements == installer.REQUIREMENTS
    assert "iopath>=0.1.7,<0.1.10" in requirements
    assert not [name for name in requirements if "tensorflow" in name]
    description = metadata.get_payload()
    assert installer.LABGYM in description
    assert installer.LABGYM_SHA256 in description


def test_wheel_record_lists_every_file_with_its_hash_and_size(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(installer.build_wheel(labgym, tmp_path)) as archive:
        lines = archive.read("detectron2-0.6.dist-info/RECORD").decode().splitlines()
        rows = [line.split(",") for line in lines]
        assert [row[0] for row in rows] == archive.namelist()
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            assert digest == "sha256=" + expected.rstrip("=")
            assert int(size) == len(content)
        assert rows[-1][1:] == ["", ""]


def test_wheel_without_a_copy_is_refused(installer: ModuleType, tmp_path: Path) -> None:
    other = write_wheel(tmp_path / "labgym.whl", {"LabGym/__init__.py": ""})
    with pytest.raises(installer.SourceError, match=r"labgym\.whl holds no LabGym/detectron2"):
        installer.build_wheel(other, tmp_path)


def test_labgym_source_installs_an_ordinary_distribution(
    installer: ModuleType, labgym: Path, offline_pip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {
        "needed-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: needed\nVersion: 1\n",
        "needed-1.dist-info/WHEEL": LABGYM_FILES["labgym-3.1.2.dist-info/WHEEL"],
        "needed-1.dist-info/RECORD": "",
    }
    write_wheel(labgym.parent / "needed-1-py3-none-any.whl", needed)
    digest = hashlib.sha256(labgym.read_bytes()).hexdigest()
    monkeypatch.setattr(installer, "LABGYM_SHA256", digest)
    monkeypatch.setattr(installer, "REQUIREMENTS", ["needed"])
    installer.install_labgym([])

    found = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[offline_pip])}
    assert set(found) == {"detectron2", "needed"}  # neither labgym nor tensorflow
    detectron2 = found["detectron2"]
    assert detectron2.version == "0.6"
    assert detectron2.read_text("INSTALLER").strip() == "pip"
    assert detectron2.read_text("direct_url.json") is None  # no temporary path in `pip freeze`
    assert (offline_pip / "detectron2" / "engine.py").is_file()


def test_labgym_of_another_hash_is_refused(installer: ModuleType, offline_pip: Path) -> None:
    with pytest.raises(installer.SourceError, match="DO NOT MATCH THE HASHES"):
        installer.install_labgym([])
    assert not offline_pip.exists()


def test_labgym_out_of_reach_is_reported(
    installer: ModuleType, labgym: Path, offline_pip: Path
) -> None:
    labgym.unlink()
    with pytest.raises(installer.SourceError, match=r"No matching distribution.*labgym==3\.1\.2"):
        installer.install_labgym([])
