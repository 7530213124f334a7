"""What the package needs of its host: a usable one, and few of its private members."""

import ast
import importlib
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.registry import Registry
from torch import nn

import frcnn_plugin
from frcnn_plugin import host
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
def test_import_says_what_is_wrong_and_how_to_repair_it(case: str, tmp_path: Path) -> None:
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
    assert set(frcnn_plugin.__all__) == {
        "UserError", "__version__", "add_frcnn_config", "get_config_file", "load_config_file",
        "tune_process",
    }  # fmt: skip
    for name in frcnn_plugin.__all__:
        assert hasattr(frcnn_plugin, name)


# ---- private members ------------------------------------------------------------------------


def make_trainer() -> DefaultTrainer:
    """A DefaultTrainer without its constructor, which needs data."""
    trainer = DefaultTrainer.__new__(DefaultTrainer)
    model = nn.Linear(1, 1)
    inner = SimpleTrainer(model, [1, 2], None)
    host.set_inner_trainer(trainer, inner)
    return trainer


def test_trainer_within_the_trainer() -> None:
    trainer = make_trainer()
    assert host.inner_trainer(trainer) is host.inner_trainer(weakref.proxy(trainer))
    assert trainer.model is host.inner_trainer(trainer).model, "Detectron2 uses the same one"


def test_data_loader_is_started_once() -> None:
    started = []

    class Loader:
        def __iter__(self) -> Iterator[int]:
            started.append(1)
            return iter([1])

    trainer = make_trainer()
    host.inner_trainer(trainer).reset_data_loader(Loader)
    for _ in range(2):
        host.start_data_loader(trainer)
    assert started == [1]


def test_registered_hooks() -> None:
    inner, hook = host.inner_trainer(make_trainer()), hooks.IterationTimer()
    inner.register_hooks([hook])
    assert host.registered_hooks(inner) == [hook]


def test_last_results() -> None:
    trainer = make_trainer()
    assert host.last_results(trainer) is None
    host.set_last_results(trainer, {"bbox": {"AP": 1.0}})
    assert host.last_results(trainer) == {"bbox": {"AP": 1.0}}


def test_period_and_function_of_an_evaluation() -> None:
    assert host.eval_period_and_function(hooks.EvalHook(7, dict)) == (7, dict)


def test_forgotten_scalars() -> None:
    storage = EventStorage()
    storage.put_scalars(loss_cls=1.0, total_loss=2.0, lr=0.1)
    host.forget_scalars(storage, "loss")
    assert storage.histories().keys() == storage.latest().keys() == {"lr"}
    host.forget_scalars(SimpleNamespace(), "loss")  # kept elsewhere: nothing happens


def test_forgotten_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", object())
    host.forget_process_groups()
    assert comm._LOCAL_PROCESS_GROUP is None
    monkeypatch.delattr(comm, "_get_global_gloo_group")  # gone in a later version
    host.forget_process_groups()


@pytest.mark.parametrize(
    "use", [host.inner_trainer, host.registered_hooks, host.eval_period_and_function]
)
def test_missing_member_is_named(use) -> None:
    with pytest.raises(RuntimeError, match=r"SimpleNamespace has no _\w+, .* January 2024 to June"):
        use(SimpleNamespace())


# Private names that are not made in this package: what classes of Detectron2, fvcore and iopath
# hand down to ours, and names of torch. All others belong into host.py.
INHERITED = {
    "_best_checking", "_checkpointer", "_file_prefix", "_update_best", "_val_metric",  # hooks
    "_do_eval", "_period",  # hooks.EvalHook
    "_load_model", "_torch_load",  # Checkpointer
    "_check_kwargs",  # PathHandler
    "_metadata", "_results",  # COCOEvaluator
    "_transform_annotations",  # DatasetMapper
    "_decode_proposals", "_subsample_labels",  # RPN
}  # fmt: skip
OF_TORCH = {
    "_exit", "_on_queue_feeder_error",  # of Python
    "_is_amx_tile_supported", "_forward_hooks", "_forward_pre_hooks", "_version",
    "_global_forward_hooks", "_global_forward_pre_hooks", "_C", "_parameters", "_apply",
    "_len_torch_dispatch_stack", "_are_functorch_transforms_active",
    # layers/packed.py, which tries them first
    "_convolution_pointwise", "_linear_pointwise",
    "_reorder_convolution_weight", "_reorder_linear_weight",
}  # fmt: skip


def private_names(tree: ast.AST) -> tuple[set[str], set[tuple[str, int, bool]]]:
    """Names with an underscore that a file makes; those it uses, their lines, whether on itself."""
    made: set[str] = set()
    used: set[tuple[str, int, bool]] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) in ("self", "cls", "super()")
            if own and isinstance(node.ctx, ast.Store):
                made.add(node.attr)
            else:
                used.add((node.attr, node.lineno, own))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            if isinstance(node.args[1], ast.Constant):
                used.add((node.args[1].value, node.lineno, False))
    return made, {entry for entry in used if entry[0][0] == "_" != entry[0][1:2]}


def test_private_members_are_touched_in_host_only() -> None:
    files = {
        file: private_names(ast.parse(file.read_text()))
        for file in (ROOT / "frcnn_plugin").rglob("*.py")
        if file.name != "host.py"
    }
    ours = {name for made, _ in files.values() for name in made}
    strange = sorted(
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file, (_, used) in files.items()
        for name, line, own in used
        if name not in ours | OF_TORCH and not (own and name in INHERITED)
    )
    assert not strange, "move what needs it into frcnn_plugin/host.py"


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


def test_a_name_that_another_project_has_taken(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry("BACKBONE")

    @registry.register()
    class VGG16:
        pass

    theirs = VGG16

    @host.register(registry)
    class VGG16:
        pass

    assert registry.get("VGG16") is theirs and registry.get("frcnn_plugin.VGG16") is VGG16
    (message,) = caplog.messages
    assert message == (
        f"VGG16 of {__name__} is registered already; frcnn_plugin's class is 'frcnn_plugin.VGG16' "
        "in a config"
    )


def test_every_component_has_its_own_name() -> None:
    """In Detectron2's registries, when no other project is there."""
    code = (
        "import logging, sys; logging.basicConfig(stream=sys.stdout)\n"
        "from detectron2.modeling import BACKBONE_REGISTRY as r\n"
        "import frcnn_plugin.modeling as m\n"
        "assert r.get('VGG16') is m.VGG16 and r.get('ZF') is m.ZF\n"
        "assert not [n for n, _ in r if '.' in n]"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


def test_another_project_is_imported_first() -> None:
    code = (
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "BACKBONE_REGISTRY.register(type('VGG16', (), {}))\n"
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling import build_backbone\n"
        "from frcnn_plugin import add_frcnn_config\n"
        "cfg = get_cfg(); add_frcnn_config(cfg)\n"
        "cfg.MODEL.BACKBONE.NAME = 'frcnn_plugin.VGG16'\n"
        "print(build_backbone(cfg).output_shape()['conv5'].stride)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "16\n", run.stderr
    assert "frcnn_plugin's class is 'frcnn_plugin.VGG16'" in run.stderr
