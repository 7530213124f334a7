"""Mistakes on the command line and in the config that it names: one line that says what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from frcnn_plugin.cli import split_overrides, train
from frcnn_plugin.cli.__main__ import main, parse
from frcnn_plugin.data.synthetic import write_synthetic_voc
from tests.cli.conftest import frcnn

DEMO = "frcnn://demo/vgg16_shapes_joint.yaml"
RUN = f"train --config-file {DEMO}"

# Files in the current folder.
FILES = {
    "misspelt.yaml": f"_BASE_: {DEMO}\nSOLVER:\n  LR: 0.1\n",
    "section.yaml": f"_BASE_: {DEMO}\nSOLVER:\n",
    "indented.yaml": f"_BASE_: {DEMO}\n  SEED: 3\n",
    "tab.yaml": f"_BASE_: {DEMO}\nSOLVER:\n\tGAMMA: 0.1\n",
    "twice.yaml": f"_BASE_: {DEMO}\nSEED: 3\nSEED: 4\n",
    "set.yaml": f"_BASE_: {DEMO}\nDATASETS:\n  TRAIN: my_train\n",
    "list.yaml": "- SEED: 3\n",
    "circle.yaml": "_BASE_: circle2.yaml\n",
    "circle2.yaml": "_BASE_: circle.yaml\n",
    "base.yaml": "_BASE_: configs/faster_rcnn_vgg16_voc.yaml\n",
    "url.yaml": "_BASE_: https://example.org/base.yaml\n",
    "unsafe.yaml": "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n",
    "bom16.yaml": "SEED: 3\n".encode("utf-16"),
    "latin.yaml": "# caf\xe9\n".encode("latin-1"),
    "zeros.yaml": bytes(50),
    "old.yaml": "MODEL: {VGG: {DEPTH: 16}}\n",
    "a b?\n\xe9.yaml": "SEED: x\n",
    "file": "",
}

MISTAKES = [
    # files
    ("train --config-file none.yaml", "no config file 'none.yaml'; give the path of a"),
    ("train --config-file .", "no config file '.'; it is a folder"),
    ("train --config-file configs/demo/vgg16_shapes_joint.yaml", f"rcnn_plugin is {DEMO}"),
    ("train --config-file frcnn://none.yaml", "no config 'none.yaml' comes with frcnn_plugin; did"),
    ("train --config-file misspelt.yaml", "misspelt.yaml, line 3: there is no key SOLVER.LR; did"),
    ("train --config-file section.yaml", "section.yaml, line 2: SOLVER is a section: give keys in"),
    ("train --config-file indented.yaml", "indented.yaml, line 2 is not YAML: mapping values are"),
    ("train --config-file tab.yaml", "tab.yaml, line 3 is not YAML: .*Indent with spaces, not"),
    ("train --config-file twice.yaml", "twice.yaml, line 3: SEED occurs already, in line 2"),
    ("train --config-file set.yaml", "set.yaml, line 3: DATASETS.TRAIN my_train: write ('my_train"),
    ("train --config-file list.yaml", "list.yaml holds a list, not sections of keys"),
    ("train --config-file circle.yaml", "circle2.yaml, line 1: _BASE_ circle.yaml is itself based"),
    ("train --config-file base.yaml", "base.yaml, line 1: _BASE_: .*is frcnn://faster_rcnn_vgg16"),
    ("train --config-file url.yaml", "url.yaml, line 1: _BASE_ is https://example.org/base.yaml: "),
    ("train --config-file unsafe.yaml", "unsafe.yaml, line 1 is not YAML: .*without such tags"),
    ("train --config-file bom16.yaml", "bom16.yaml is not in UTF-8 but in UTF-16 or UTF-32: save"),
    ("train --config-file latin.yaml", "latin.yaml, line 1 is not UTF-8 text: save it as UTF-8"),
    ("train --config-file zeros.yaml", "zeros.yaml is not in UTF-8"),
    ("train --config-file old.yaml", "old.yaml, line 1: MODEL.VGG is now called MODEL.PAPER_VGG"),
    ("train --config-file 'a b?\n\xe9.yaml'", "line 1: SEED x: write a whole number, such as"),
    ("train --config-file file", "DATASETS.TRAIN is empty: name at least one data set to train on"),
    ("visualize --mode data --config-file misspelt.yaml", "misspelt.yaml, line 3: there is no key"),
    ("proposals dump --dataset x --config-file list.yaml", "list.yaml holds a list, not sections"),
    ("proposals convert --dataset x --input y --config-file tab.yaml", "tab.yaml, line 3 is not"),
    # overrides
    (f"{RUN} SOLVER.LR 0.1", "there is no key SOLVER.LR; did you mean SOLVER.BASE_LR"),
    (f"{RUN} SOLVER.BASE_LR", "SOLVER.BASE_LR has no value, it is the last word"),
    (f"{RUN} SOLVER.BASE_LR --overwrite", "SOLVER.BASE_LR has no value, --overwrite follows"),
    (f"{RUN} SOLVER.BASE_LR=0.1", "write SOLVER.BASE_LR 0.1, with a space instead of ="),
    (f"{RUN} SOLVER.BASE_LR 1", "SOLVER.BASE_LR 1: write the number with a point, 1.0"),
    (f"{RUN} SOLVER.STEPS 30", 'SOLVER.STEPS 30: write "(30,)"'),
    (f"{RUN} SOLVER.STEPS '(30' '40)'", "SOLVER.STEPS (30: it was split at a space or comma: put"),
    (f"{RUN} DATASETS.TRAIN x", "DATASETS.TRAIN x: write \"('x',)\""),
    (f"{RUN} DATASETS x", "DATASETS is a section: give keys in it, such as DATASETS.TRAIN"),
    (f"{RUN} SEED 1 SEDE 2", "there is no key SEDE; did you mean SEED"),
    (f"{RUN} circle.yaml", "circle.yaml is where a key is expected: write --config-file circle"),
    (f"{RUN} -- SEED 1", "-- is where a key is expected"),
    ("visualize --mode data --config-file set.yaml DATASETS.TRAIN y", "set.yaml, line 3: "),
    (f"{RUN} OUTPUT_DIR 'what?'", "OUTPUT_DIR 'what?' contains '?': a run in it could not be res"),
    (f"{RUN} OUTPUT_DIR 'two\nlines'", "OUTPUT_DIR 'two\\nlines' contains '\\n': a run in it"),
    # options
    (f"{RUN} --resume --overwrite", "--resume continues the run in OUTPUT_DIR, --overwrite loses "),
    (f"{RUN} SEED 1 --resume SEED 2 --overwrite", "--resume continues the run in OUTPUT_DIR, "),
    (f"{RUN} --eval-only --resume", "--eval-only evaluates MODEL.WEIGHTS and resumes nothing: lea"),
    (f"{RUN} --num-gpus 0", "--num-gpus is 0: it must be 1 or more"),
    (f"{RUN} SEED 1 --num-gpus -2", "--num-gpus is -2: it must be 1 or more"),
    (f"{RUN} --num-machines 0", "--num-machines is 0: it must be 1 or more"),
    (f"{RUN} --machine-rank 1", "--machine-rank is 1: .*--num-machines 1 it must be from 0 to"),
    (f"{RUN} --num-machines 2 --machine-rank -1", "--machine-rank is -1: .*it must be from 0 to 1"),
    (f"{RUN} --num-gpus 2 --dist-url here", "--dist-url here: give auto, or tcp://ADDRESS:PORT"),
    (f"{RUN} --num-machines 2 --dist-url auto", "--dist-url auto is for one machine: give tcp://"),
    (f"{RUN} --num-gpus 2 --dist-url tcp://host", "--dist-url tcp://host has no port: give tcp"),
    (f"{RUN} --num-gpus 2 --dist-url tcp://host:x", "--dist-url tcp://host:x has no port: give"),
    (f"{RUN} --num-gpus 5000", "--num-gpus is 5000, and this machine has "),
    (f"{RUN} --num-gpus 99999999999999999999", "--num-gpus is 9"),
    (f"doctor --config-file {DEMO} --json .", "--json . is a folder: name a file in it"),
    ("visualize --mode data --config-file x --seed -1", "--seed is -1: it must be from 0 to"),
    ("visualize --mode data --config-file x --topk 9999999999", "--topk is 9999999999: .*at most"),
    ("visualize --mode roi-cells --config-file x --box nan 1 2 3", "--box nan 1.0 2.0 3.0: give "),
    ("proposals dump --dataset x --config-file x --output ''", "--output . is a folder: name"),
    ("proposals dump --dataset x --config-file x --output file/p.pkl", "file/p.pkl cannot be wri"),
    ("proposals convert --dataset x --input y.npz --output file", "--output file must end in .pkl"),
    ("predict --weights w x.jpg --json x.json --device meta", "--device is 'meta': give cpu, cud"),
    # generated images
    ("make-data new --num-trainval 999999", "too many images asked for, 999999 and 50: together"),
    ("make-data file", "file exists and is not this synthetic set"),
    ("make-data file/data", "file/data cannot be written: "),
    ("make-data new --num-test -1", "no images asked for: num_trainval 200, num_test -1"),
    ("make-data new --num-test 0 --num-trainval 0", "no images asked for: num_trainval 0, num_tes"),
    ("make-data new --seed -1", "the seed is -1: it must be 0 or more"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files above."""
    for name, content in FILES.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(
    words: str,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "launch", lambda *_, **__: pytest.fail("training started"))
    assert main(shlex.split(words)) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and line[:-1].isprintable()
    at = 0
    for part in message.split(".*"):
        at = line.find(part, at)
        assert at >= 0, line
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    "words",
    [
        "SEED 1 OUTPUT_DIR o --resume --num-gpus 2",
        "--num-gpus 2 SEED 1 --resume OUTPUT_DIR o",
        "SEED 1 --num-gpus 2 OUTPUT_DIR o --resume",
    ],
)
def test_options_may_follow_overrides(words: str) -> None:
    for command in ("train", "doctor"):
        _, args = parse([command, *words.split(), "--config-file", "a.yaml"])
        assert (args.num_gpus, args.resume, args.config_file) == (2, True, "a.yaml")
        assert args.opts == ["SEED", "1", "OUTPUT_DIR", "o"]
    command = "visualize --mode data --config-file a.yaml SEED -1 --limit 3"
    _, args = parse(command.split())
    assert (args.limit, args.opts) == (3, ["SEED", "-1"])


def test_overrides_after_files(folder: Path) -> None:
    Path("SEED.X").touch()
    files = ["a.jpg", "SEED.X", "IMG.JPG", "SLVER", "solver.png"]
    for key in ("SOLVER.BASE_LR", "SLVER.BASE_LR", "MODL.X", "SEED"):
        assert split_overrides([*files, key, "1"]) == (files, [key, "1"])
    assert split_overrides(files) == (files, [])


def test_unknown_options_after_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "SEED", "1", "--resumee"])
    assert "unrecognized arguments: --resumee" in capsys.readouterr().err


def test_doctor_tells_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config-file", "misspelt.yaml"]) == 1
    assert "FAIL  config       misspelt.yaml, line 3: there is no key SOLVER.LR" in (
        capsys.readouterr().out
    )
    assert main(["doctor", "--config-file", DEMO, "--resume", "--overwrite"]) == 1
    assert "--resume continues the run in OUTPUT_DIR" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a b", "what?", "caf\xe9", "two\nlines", "a%20b", "#1", "2007"])
def test_any_name_may_be_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    frcnn("make-data", "demo_shapes", "--num-trainval", 2, "--num-test", 1)
    Path(f"{name}.yaml").write_text(f"_BASE_: {DEMO}\n")
    started = []
    monkeypatch.setattr(train, "launch", lambda *_, args, **__: started.append(args[0]))
    # What Detectron2 would take for the end of a checkpoint's name cannot be part of OUTPUT_DIR.
    output = name.replace("?", "").replace("\n", "")
    overrides = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", output]
    frcnn("train", "--config-file", f"{name}.yaml", *overrides)
    assert started[0].config_file == f"{name}.yaml"
    assert started[0].opts == [*overrides, "MODEL.DEVICE", "cpu"]  # which the processes use


def test_the_config_of_a_command_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2, which prints the file, gets its path."""
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=2, num_test=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    started: list[str] = []
    monkeypatch.setattr(train, "launch", lambda *_, args, **__: started.append(args[0].config_file))
    output = ("MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path / "run")
    frcnn("train", "--config-file", DEMO, *output)
    assert Path(started[0]).name == "vgg16_shapes_joint.yaml" and Path(started[0]).is_file()


@pytest.mark.parametrize(
    "words", ["predict --weights {} file --json x", "weights convert {} x.pth", "weights check {}"]
)
def test_weights_that_cannot_be_downloaded(words: str, folder: Path, fails) -> None:
    address = "http://127.0.0.1:9/w.pth"
    assert fails(*words.format(address).split()).startswith(f"{address} cannot be downloaded (")
