"""`import frcnn_plugin` without a usable host: one sentence that says what, one command."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

import frcnn_plugin
from frcnn_plugin.host import check_host, replace_metadata

ROOT = Path(__file__).parents[1]

TORCH = {
    "torch/__init__.py": """
__version__ = "2.15.0+cu130"
class ops:
    class torchvision:
        nms = None
"""
}
TORCHVISION = {"torchvision/__init__.py": "__version__ = '0.29.2'"}
PAIR = TORCH | TORCHVISION
TRAINER = "class SimpleTrainer:\n    {}\n"

CASES = {
    "torch missing": ({}, ["torch is not installed", "pip install torch torchvision"]),
    "torch damaged": (
        {"torch/__init__.py": "raise OSError('libc10.so: cannot open shared object file')"},
        ["torch is damaged", "libc10.so", "pip install --force-reinstall torch"],
    ),
    "torchvision missing": (
        TORCH,
        ["torchvision is not installed", "pip install torch==2.15.0 torchvision"],
    ),
    "torchvision of another torch, refused at import": (
        TORCH
        | {
            "torchvision/__init__.py": "raise RuntimeError("
            "'operator torchvision::nms does not exist')"
        },
        [
            "torchvision does not match the installed torch",
            "operator torchvision::nms does not exist",
            "pip install --upgrade torch torchvision",
        ],
    ),
    "torchvision of another torch, imported without its operators": (
        TORCHVISION
        | {"torch/__init__.py": "__version__ = '2.4'\nclass ops:\n    class torchvision: pass"},
        [
            "torchvision 0.29.2 does not match torch 2.4",
            "torchvision::nms",
            "pip install --upgrade torch torchvision",
        ],
    ),
    "detectron2 missing": (
        PAIR,
        [
            "Detectron2 is not installed",
            "python tools/install_detectron2.py",
            "git+https://github.com/facebookresearch/detectron2.git",
        ],
    ),
    "a folder called detectron2 that holds no code": (
        PAIR | {"detectron2/setup.py": ""},
        ["Detectron2 is not installed (the folder ", "detectron2 is not it)"],
    ),
    "the 2021 release with current Pillow": (
        PAIR
        | {
            "detectron2/__init__.py": "",
            "detectron2/engine.py": "raise AttributeError("
            "\"module 'PIL.Image' has no attribute 'LINEAR'\")",
        },
        ["2021 release v0.6", "January 2024", "pip uninstall detectron2"],
    ),
    "the 2021 release with old Pillow": (
        PAIR | {"detectron2/__init__.py": "", "detectron2/engine.py": TRAINER.format("pass")},
        ["2021 release v0.6", "January 2024", "pip uninstall detectron2"],
    ),
    "detectron2 compiled for another torch": (
        PAIR
        | {
            "detectron2/__init__.py": "",
            "detectron2/engine.py": "raise ImportError('_C.so: undefined symbol: _ZN3c10\\nmore')",
        },
        [
            "_C.so: undefined symbol: _ZN3c10)",
            "compiled for another torch",
            "--force-reinstall --no-deps --no-build-isolation",
        ],
    ),
    "detectron2 without pkg_resources": (
        PAIR
        | {
            "detectron2/__init__.py": "",
            "detectron2/engine.py": "raise ModuleNotFoundError('No', name='pkg_resources')",
        },
        ["needs the module 'pkg_resources'", "pip install 'setuptools<82'"],
    ),
    "detectron2 without one of its requirements": (
        PAIR | {"detectron2/__init__.py": "", "detectron2/engine.py": "import fvcore"},
        ["needs the module 'fvcore'", "pip install fvcore"],
    ),
}
USABLE = PAIR | {
    "detectron2/__init__.py": "",
    "detectron2/engine.py": TRAINER.format("reset_data_loader = None"),
}


def run_with(
    files: dict[str, str], folder: Path, code: str = "import frcnn_plugin.host as host"
) -> subprocess.CompletedProcess:
    """Run `code` in a Python that sees `files`, this checkout and no installed package at all."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + code], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.parametrize("case", CASES)
def test_import_says_what_is_wrong_and_what_mends_it(case: str, tmp_path: Path) -> None:
    files, expected = CASES[case]
    done = run_with(files, tmp_path, "import frcnn_plugin")
    last_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last_line.startswith("ImportError: ")
    for text in expected:
        assert text in last_line


def test_check_host_accepts_a_usable_host(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'frcnn_plugin/host.py')!r})['check_host']()"
    done = run_with(USABLE, tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_check_host_accepts_this_environment() -> None:
    check_host()


def test_importing_again_registers_nothing_twice() -> None:
    importlib.reload(frcnn_plugin)


def test_public_names() -> None:
    assert set(frcnn_plugin.__all__) == {"__version__", "add_frcnn_config", "get_config_file"}
    for name in frcnn_plugin.__all__:
        assert hasattr(frcnn_plugin, name)


def test_metadata_can_be_replaced() -> None:
    """Detectron2's own ``set`` refuses; a subclass of ``dict`` or slots would break ours."""
    metadata = MetadataCatalog.get("test_host")
    metadata.set(thing_classes=["cat"])
    with pytest.raises(AssertionError):
        metadata.set(thing_classes=["dog"])
    replace_metadata("test_host", thing_classes=["dog"], dirname="/data")
    assert metadata.thing_classes == ["dog"] and metadata.get("dirname") == "/data"
    assert metadata.as_dict()["thing_classes"] == ["dog"]
    MetadataCatalog.remove("test_host")
