"""The package as a user gets it: a wheel built here, installed into an empty folder, used there."""

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import frcnn_plugin

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(file.relative_to(ROOT / "configs")) for file in ROOT.glob("configs/**/*.yaml"))


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    copy.mkdir()
    rubbish = shutil.ignore_patterns("__pycache__")
    for name in ("frcnn_plugin", "configs", "benchmarks", "tools", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=rubbish)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    return copy


def build_wheel(source: Path, folder: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", *options, "--wheel-dir", str(folder), str(source), cwd=folder)
    (wheel,) = folder.glob("frcnn_plugin-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-index", "--target", str(folder))
    run(*pip, "install", *options, str(wheel), cwd=folder)
    return folder


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def test_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "frcnn_plugin").rglob("*.py")}
    data = {"frcnn_plugin/py.typed", *(f"frcnn_plugin/report/page.{x}" for x in ("html", "css"))}
    words = ("page.html", "en.yaml", "zh.yaml", "sections.yaml")
    data |= {f"frcnn_plugin/explain/{name}" for name in words}
    configs = {f"frcnn_plugin/configs/{name}" for name in CONFIGS}
    assert names == modules | data | configs | {"frcnn_command.py"}
    assert CONFIGS


def test_wheel_metadata(wheel: Path) -> None:
    data = metadata(wheel)
    assert data["Name"] == "frcnn-plugin"
    assert data["Version"] == frcnn_plugin.__version__
    assert data["Requires-Python"] == ">=3.10"
    requirements = data.get_all("Requires-Dist") or []
    assert "setuptools<82" in requirements
    assert {"torch>=2.4", "torchvision>=0.19"} <= set(requirements)
    # It has no release on the index: naming it would make every installation fail.
    assert not [text for text in requirements if text.startswith("detectron2")]
    assert "dev" in (data.get_all("Provides-Extra") or [])
    assert "Typing :: Typed" in (data.get_all("Classifier") or [])


def test_a_working_environment_is_left_as_it_is(wheel: Path) -> None:
    """What people run Detectron2 with, of 2024, satisfies every requirement."""
    installed = {
        "torch": "2.4.0", "torchvision": "0.19.0", "numpy": "1.22.4", "pillow": "9.5.0",
        "fvcore": "0.1.5.post20221221", "iopath": "0.1.9", "portalocker": "3.0.0",
        "pyyaml": "5.4", "pycocotools": "2.0.4", "matplotlib": "3.6.0", "jinja2": "3.0.3",
        "tabulate": "0.8.10", "tqdm": "4.62", "setuptools": "65.0", "opencv-python": "4.5.5.64",
        "protobuf": "4.25.3",
    }  # fmt: skip
    new = {"requests"}  # in pure Python, with requirements that such an environment satisfies
    for text in metadata(wheel).get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        # With a marker, it belongs to an extra.
        if requirement.marker is None and requirement.name not in new:
            version = installed[requirement.name.lower()]
            assert requirement.specifier.contains(version), f"{text} replaces {version}"
            # A second copy of cv2 would overwrite the files of the first.
            assert not requirement.name.startswith("opencv")


def test_installed_wheel_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    """Imports, registers, and finds and reads every config, from another folder."""
    code = f"""
import frcnn_plugin
from pathlib import Path
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
site = Path({str(site)!r})
assert Path(frcnn_plugin.__file__) == site / "frcnn_plugin/__init__.py", frcnn_plugin.__file__
assert "PaperRCNN" in META_ARCH_REGISTRY and "PaperRPN" in PROPOSAL_GENERATOR_REGISTRY
assert "VGG16" in BACKBONE_REGISTRY and "ZF" in BACKBONE_REGISTRY
import frcnn_plugin.data.datasets.voc, frcnn_plugin.engine, frcnn_plugin.evaluation
for name in {CONFIGS!r}:
    file = Path(frcnn_plugin.get_config_file(name))
    assert file == site / "frcnn_plugin/configs" / name, file
    cfg = get_cfg()
    frcnn_plugin.add_frcnn_config(cfg)
    frcnn_plugin.load_config_file(cfg, "frcnn://" + name)
print(frcnn_plugin.__version__)
"""
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert out.splitlines()[-1] == frcnn_plugin.__version__


def test_installed_wheel_has_the_command(site: Path, tmp_path: Path) -> None:
    out = run(str(site / "bin" / "frcnn"), "--version", cwd=tmp_path, PYTHONPATH=str(site))
    assert out == f"frcnn_plugin {frcnn_plugin.__version__}\n"


def test_checkout_finds_its_own_configs() -> None:
    for name in CONFIGS:
        assert Path(frcnn_plugin.get_config_file(name)) == ROOT / "configs" / name


def test_editable_installation_finds_the_checkout(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("frcnn-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("frcnn-plugin is not installed in this environment")
    code = f"import frcnn_plugin; print(frcnn_plugin.get_config_file({CONFIGS[0]!r}))"
    file = Path(run(sys.executable, "-c", code, cwd=tmp_path).splitlines()[-1])
    assert file.name == Path(CONFIGS[0]).name
    assert file.is_file()


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # of unpacking archives
def test_source_distribution_builds_the_same_wheel(
    checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    for name in ("LICENSE", "constraints.txt", "Makefile", "tools/install_detectron2.py"):
        assert (source / name).is_file()
    (tmp_path / "wheel").mkdir()
    again = build_wheel(source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert set(first.namelist()) == set(second.namelist())


def test_setup_reads_the_version_without_importing_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("torch", "detectron2", "frcnn_plugin"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now raises ImportError
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py", run_name="__main__")
    assert capsys.readouterr().out.strip().endswith(frcnn_plugin.__version__)


def test_every_direct_requirement_states_its_reason() -> None:
    lines = (ROOT / "setup.py").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "install_requires" in line)
    stop = next(i for i, line in enumerate(lines) if line.strip() == "},")
    requirements = [line for line in lines[start:stop] if line.strip().startswith('"')]
    requirements = [line for line in requirements if not line.rstrip().endswith("[")]
    assert len(requirements) > 10
    assert [line for line in requirements if '",  # ' not in line] == []


def test_constraints_cover_the_direct_requirements(wheel: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    for requirement in metadata(wheel).get_all("Requires-Dist") or []:
        name = Requirement(requirement).name.lower()
        assert name in pinned, f"{name} has no tested version in constraints.txt"
