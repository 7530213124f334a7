"""Reading config files: what is refused, and with which words; what is read as before."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from frcnn_plugin import UserError, add_frcnn_config, get_config_file, load_config_file
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.config_files import merge_overrides, read_config_text, saved_config
from tests.conftest import CONFIGS

Read = Callable[[str | bytes], CfgNode]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A function that writes a text to my.yaml and loads it."""

    def call(text: str | bytes) -> CfgNode:
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        cfg = plugin_cfg()
        load_config_file(cfg, path)
        return cfg

    return call


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_reads_what_detectron2_reads(path: Path) -> None:
    ours, theirs = plugin_cfg(), plugin_cfg()
    load_config_file(ours, path)
    theirs.merge_from_file(str(path))
    assert ours == theirs


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{{', '.join(f'k{i}: *{before}' for i in range(10))}}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


# What a file holds, and what is said after its path.
FILES: list[tuple[str | bytes, str]] = [
    ("SOLVER:\n  LR: 0.1", ", line 2: there is no key SOLVER.LR; did you mean SOLVER.BASE_LR"),
    ("SOLVER: {base_lr: 0.1}", ", line 1: there is no key SOLVER.base_lr; did you mean SOLVER.BA"),
    ("\nBASE_LR: 0.1", ", line 2: there is no key BASE_LR; did you mean SOLVER.BASE_LR?"),
    ("solver: {BASE_LR: 0.1}", ", line 1: there is no section solver; did you mean SOLVER?"),
    ("SOLVER: 3", ", line 1: SOLVER is a section: give keys in it, such as SOLVER."),
    ("SOLVER:\n", ", line 1: SOLVER is a section: give keys in it, such as SOLVER."),
    ("SOLVER: {BASE_LR: 1}", ", line 1: SOLVER.BASE_LR 1: write the number with a point, 1.0"),
    ("SOLVER: {BASE_LR: fast}", ", line 1: SOLVER.BASE_LR fast: write a number, such as 0.001"),
    ("SOLVER: {MAX_ITER: 1.0e+3}", ", line 1: SOLVER.MAX_ITER 1000.0: write 1000"),
    ("SOLVER: {MAX_ITER: }", ", line 1: SOLVER.MAX_ITER has no value: write a whole number, such"),
    ("SEED: {a: 1}", ", line 1: SEED {'a': 1}: write a whole number, such as -1"),
    ("INPUT: {MIN_SIZE_TRAIN: 300}", ", line 1: INPUT.MIN_SIZE_TRAIN 300: write (300,)"),
    ("DATASETS: {TRAIN: my_set}", ", line 1: DATASETS.TRAIN my_set: write ('my_set',)"),
    ("DATASETS: {TRAIN: (a, b)}", ", line 1: DATASETS.TRAIN (a: it was split at a space or comma"),
    ("DATASETS:\n  TRAIN: (a, b)", ", line 2: DATASETS.TRAIN (a, b): write ('a', 'b')"),
    ("DATASETS: {REGISTER: {name: a}}", ", line 1: DATASETS.REGISTER {'name': 'a'}: write a list"),
    ("MODEL: {MASK_ON: 1}", ", line 1: MODEL.MASK_ON 1: write True or False"),
    ("MODEL: {WEIGHTS: }", ', line 1: MODEL.WEIGHTS has no value: write text, or "" for none'),
    ("OUTPUT_DIR: 2007", ', line 1: OUTPUT_DIR 2007: write it in quotes, "2007"'),
    ("OUTPUT_DIR: 2007-01-01", ", line 1: OUTPUT_DIR 2007-01-01: write text, such as './output'"),
    ("SEED: 1\nSEED: 2", ", line 2: SEED occurs already, in line 1: put what belongs to it"),
    ("SOLVER:\n  GAMMA: 0.1\nSOLVER:\n  STEPS: [1]", ", line 3: SOLVER occurs already"),
    ("VERSION: 1", ", line 1: VERSION 1: only configs of VERSION 2 can be read"),
    ("- SEED", " holds a list, not sections of keys"),
    ("SEED", " holds one value, not sections of keys"),
    ("1: 2", ", line 1: the key 1 is not text"),
    ("? [a]\n: 1", ", line 1: the key sequence is not text"),
    ("SOLVER:\n\tGAMMA: 0.1", ", line 2 is not YAML: .*. Indent with spaces, not with tabs"),
    ("SOLVER: [", ", line 1 is not YAML: while parsing a flow node"),
    ("SEED: 1\n---\nSEED: 2", ", line 2 is not YAML: expected a single document"),
    ("SEED: !!python/object/apply:os.getpid []", ", line 1 is not YAML: .*os.getpid.*tags"),
    ("SEED: !!int ''", " is not YAML: "),
    ("SEED: " + "9" * 5000, " is not YAML: Exceeds the limit"),
    ("SEED: \0", " is not YAML: unacceptable character #x0000"),
    ("SOLVER: {BASE_LR: '{[]: 1}'}", ", line 1: SOLVER.BASE_LR {[]: 1} cannot be read: unhashable"),
    ("# \n# caf\xe9".encode("latin-1"), ", line 2 is not UTF-8 text: save it as UTF-8"),
    ("SEED: 1".encode("utf-16"), " is not in UTF-8 but in UTF-16 or UTF-32: save it as UTF-8"),
    ("SEED: 1".encode("utf-32-be"), " is not in UTF-8 but in UTF-16 or UTF-32: save it as UTF-8"),
    (BOMB, ", line 5: more than 100000 values follow: it is no config"),
    (MERGED, ", line 6: more than 100000 values follow: it is no config"),
    ("a: &a [*a]", ", line 1: an alias (*name) is part of what it stands for"),
    ("a: " + "[" * 60 + "]" * 60, ", line 1: more than 50 levels follow: it is no config"),
    ("[" * 5000, " is not YAML: maximum recursion depth exceeded"),
    ("#" * 2**21, " is larger than 1 MiB: it is no config"),
    ("_BASE_: 3", ", line 1: _BASE_ is 3: give the path of a YAML on this machine"),
    ("_BASE_: https://a.b/c.yaml", ", line 1: _BASE_ is https://a.b/c.yaml: give the path"),
    ("_BASE_: my.yaml", ", line 1: _BASE_ my.yaml is itself based on this file"),
    ("_BASE_: [my.yaml]", ", line 1: _BASE_ my.yaml is itself based on this file"),
    ("_BASE_: .", ", line 1: _BASE_: no config file .*; it is a folder"),
    ("_BASE_: configs/Base-Paper.yaml", ", line 1: _BASE_: no config file .* is frcnn://Base-Pap"),
    ("_BASE_: frcnn://Base-Papers.yaml", ", line 1: _BASE_: no config .* mean Base-Paper.yaml"),
]  # fmt: skip


def fits(text: str, pattern: str) -> bool:
    """Whether a text begins with the first part of a pattern, and the others follow somewhere."""
    first, *others = pattern.split(".*")
    at = len(first)
    for part in others:
        at = text.find(part, at)
    return text.startswith(first) and at >= 0


@pytest.mark.parametrize(("text", "message"), FILES, ids=range(len(FILES)))
def test_mistakes_in_a_file(read: Read, tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    line, path = str(caught.value), f"{tmp_path}/my.yaml"
    assert line.startswith(path) and line.isprintable()  # in one line, too
    assert fits(line.removeprefix(path), message), line


OVERRIDES = [
    ("SOLVER.LR 0.1", "there is no key SOLVER.LR; did you mean SOLVER.BASE_LR"),
    ("NUM_CLASSES 3", "there is no key NUM_CLASSES; did you mean .*MODEL.ROI_HEADS.NUM_CLASSES"),
    ("SOLVER.BASE_LR.X 1", "there is no key SOLVER.BASE_LR.X; did you mean SOLVER.BASE_LR"),
    ("SOLVER 1", "SOLVER is a section: give keys in it, such as SOLVER."),
    ("SEED", "SEED has no value, it is the last word: overrides are pairs, KEY VALUE"),
    ("SEED --resume", "SEED has no value, --resume follows: overrides are pairs, KEY VALUE"),
    ("SOLVER.BASE_LR=0.1", "SOLVER.BASE_LR=0.1: write SOLVER.BASE_LR 0.1, with a space instead"),
    ("SOLVER.STEPS (30, 40)", 'SOLVER.STEPS (30,: it was split at a space or comma: put all'),
    ("DATASETS.REGISTER [{'n':a}]", "DATASETS.REGISTER [{'n':a}]: write \"[{'n': 'a'}]\""),
    ("SEED 1 my.yaml", "my.yaml is where a key is expected: write --config-file my.yaml"),
    ("SEED 1 a/b.pth", "a/b.pth is where a key is expected: .*files need the name of their opt"),
    ("SOLVER.BASE_LR 1", "SOLVER.BASE_LR 1: write the number with a point, 1.0"),
    ("SOLVER.MAX_ITER 1e4", "SOLVER.MAX_ITER 1e4: write 10000"),
    ("DATASETS.TRAIN mine", "DATASETS.TRAIN mine: write \"('mine',)\""),
    ("DATASETS.TRAIN a,b", "DATASETS.TRAIN a,b: write \"('a', 'b')\""),
    ("FOUR_STEP.ITERS 100", 'FOUR_STEP.ITERS 100: write "[100]"'),
    ("MODEL.MASK_ON yes", "MODEL.MASK_ON yes: write True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), OVERRIDES, ids=[words for words, _ in OVERRIDES])
def test_mistakes_in_overrides(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").touch()
    cfg = plugin_cfg()
    with pytest.raises(UserError) as caught:
        merge_overrides(cfg, ["SOLVER.GAMMA", "0.5", *words.split(" ")])
    assert fits(str(caught.value), message), caught.value
    assert cfg == plugin_cfg()


@pytest.mark.parametrize(
    "text", ["2007", "1_000", "None", "(1)", "[a]", "it's", "a b?\n", "caf\xe9"]
)
def test_text_stays_text(read: Read, text: str) -> None:
    """yacs alone makes numbers and lists of names that look so."""
    cfg = plugin_cfg()
    merge_overrides(cfg, ["OUTPUT_DIR", text, "SOLVER.BASE_LR", "1e-3"])
    assert (cfg.OUTPUT_DIR, cfg.SOLVER.BASE_LR) == (text, 0.001)
    quoted = text.replace("\n", "\\n")
    assert read(f'OUTPUT_DIR: "{quoted}"').OUTPUT_DIR == text


def test_what_may_stand_in_a_file(read: Read) -> None:
    assert read("") == read("# nothing") == plugin_cfg()
    assert read(b"\xef\xbb\xbfSEED: 3\r\n").SEED == 3
    aliases = "INPUT: &i {MIN_SIZE_TRAIN: &s [3], MAX_SIZE_TRAIN: 5}\nSOLVER: {STEPS: *s}"
    assert read(aliases).SOLVER.STEPS == (3,)
    assert read("SOLVER: {<<: {GAMMA: 0.3, MAX_ITER: 7}, GAMMA: 0.2}").SOLVER.GAMMA == 0.2
    assert read("SOLVER: {WEIGHT_DECAY_BIAS: 0.1}").SOLVER.WEIGHT_DECAY_BIAS == 0.1


def test_bases(read: Read, tmp_path: Path) -> None:
    """Packaged ones by name; of several, the later ones win."""
    cfg = read("_BASE_: frcnn://demo/vgg16_shapes_joint.yaml\nSEED: 7")
    expected = plugin_cfg()
    expected.merge_from_file(get_config_file("demo/vgg16_shapes_joint.yaml"))
    expected.SEED = 7
    assert cfg == expected
    (tmp_path / "a.yaml").write_text("SOLVER: {GAMMA: 0.1, MAX_ITER: 1}")
    (tmp_path / "b.yaml").write_text("SOLVER: {GAMMA: 0.2}")
    solver = read("_BASE_: [a.yaml, b.yaml]").SOLVER
    assert (solver.GAMMA, solver.MAX_ITER) == (0.2, 1)
    (tmp_path / "b.yaml").write_text("SOLVER: {GAMMA: x}")
    with pytest.raises(UserError, match=r"/b.yaml, line 1: SOLVER.GAMMA x: write a number"):
        read("_BASE_: [a.yaml, b.yaml]")
    for name, base in pairwise("abcdef"):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: [{', '.join([f'{base}.yaml'] * 9)}]")
    (tmp_path / "f.yaml").write_text("SEED: 1")
    with pytest.raises(UserError, match="is based on more than 100 files"):
        read("_BASE_: a.yaml")


def test_tags_of_a_base_run_nothing(read: Read, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/made']"
    )
    with pytest.raises(UserError, match=r"/base.yaml, line 1 is not YAML"):
        read("_BASE_: base.yaml")
    assert not (tmp_path / "made").exists()


def test_nothing_else_reads_configs() -> None:
    """Detectron2's own functions run the code of YAML tags, or know no limits."""
    package = Path(get_config_file("Base-Common.yaml")).parents[1] / "frcnn_plugin"
    other = re.compile(
        r"\.(merge_from_file|load_cfg|load_yaml_with_base|unsafe_load)\(|yaml\.load\("
    )
    files = list(package.rglob("*.py"))
    assert len(files) > 100
    assert [file.name for file in files if other.search(file.read_text(encoding="utf-8"))] == []


def test_random_and_damaged_files(read: Read) -> None:
    """Whatever a file holds, it is read or refused in one line."""
    rng = random.Random(0)
    texts = [path.read_bytes() for path in CONFIGS.rglob("*.yaml")]
    pieces = [b"\n", b"  ", b"\t", b": ", b"- ", b"[", b"]", b"{", b"}", b"&a", b"*a", b"!!", b"'"]
    pieces += [
        b"<<: ",
        b"\0",
        b"\xff",
        b"1e999",
        b"_BASE_",
        b"null",
        b"-1",
        b"? ",
        b"|",
        b"%",
        b"#",
    ]
    for _ in range(150):
        text = bytearray(rng.choice(texts) if rng.random() < 0.8 else rng.randbytes(40))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choice([rng.choice(pieces), rng.randbytes(2)])
        try:
            read(bytes(text))
        except UserError as error:
            assert str(error).isprintable(), text


# ---- keys of earlier versions, and of other projects ------------------------------------------


OLD = "MODEL: {VGG: {CHANNELS: [1, 2, 3, 4, 5]}, ZF: {OUT_FEATURES: [conv4]}}"


def check_renamed(cfg: CfgNode) -> None:
    assert cfg.MODEL.PAPER_VGG.CHANNELS == [1, 2, 3, 4, 5]
    assert cfg.MODEL.PAPER_ZF.OUT_FEATURES == ["conv4"]
    assert "VGG" not in cfg.MODEL


def test_old_names_still_load(read: Read, tmp_path: Path) -> None:
    check_renamed(read(OLD))
    (tmp_path / "base.yaml").write_text(OLD)
    check_renamed(read("_BASE_: base.yaml\nMODEL: {PAPER_VGG: {OUT_FEATURES: [conv3]}}"))
    cfg = plugin_cfg()
    merge_overrides(
        cfg, ["MODEL.VGG.CHANNELS", [1, 2, 3, 4, 5], "MODEL.ZF.OUT_FEATURES", "['conv4']"]
    )
    check_renamed(cfg)
    check_renamed(saved_config(OLD))
    check_renamed(CfgNode(read_config_text(OLD, "YAML")))
    with pytest.raises(UserError, match=r"line 1: MODEL.VGG is now called MODEL.PAPER_VGG"):
        read("MODEL: {VGG: {CHANELS: [1]}}")
    with pytest.raises(UserError, match=r"line 1: MODEL.VGG is now called MODEL.PAPER_VGG"):
        read("MODEL: {VGG: {CHANNELS: [1]}, PAPER_VGG: {CHANNELS: [2]}}")


def test_a_program_that_merges_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    with pytest.raises(KeyError, match=r"MODEL.VGG was renamed to MODEL.PAPER_VGG"):
        plugin_cfg().merge_from_file(str(tmp_path / "old.yaml"))


def add_foreign_config(cfg: CfgNode) -> None:
    """What another project adds."""
    cfg.MODEL.VGG = CfgNode({"CHANNELS": "wide", "DEPTH": 16})
    cfg.SOLVER.THEIRS = 1


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_another_projects_node(read: Read, tmp_path: Path, ours_first: bool) -> None:
    cfg = get_cfg()
    for add in (add_frcnn_config, add_foreign_config)[:: 1 if ours_first else -1]:
        add(cfg)
    add_frcnn_config(cfg)
    assert cfg.MODEL.VGG.DEPTH == 16 and len(cfg.MODEL.PAPER_VGG.CHANNELS) == 5
    assert cfg.MODEL.RPN.LOSS_NORM == "samples" and cfg.SOLVER.THEIRS == 1
    (tmp_path / "theirs.yaml").write_text("MODEL: {VGG: {CHANNELS: narrow}}")
    load_config_file(cfg, tmp_path / "theirs.yaml")
    merge_overrides(cfg, ["MODEL.VGG.DEPTH", "11"])
    assert (cfg.MODEL.VGG.CHANNELS, cfg.MODEL.VGG.DEPTH) == ("narrow", 11)
    # Saved with a run, and read again without the other project.
    again = saved_config(cfg.dump())
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_keys_are_added_one_by_one() -> None:
    cfg = get_cfg()
    cfg.MODEL.RPN.LOSS_NORM = "samples"  # ours, as it is
    cfg.MODEL.PAPER_VGG = CfgNode({"THEIRS": 1})
    add_frcnn_config(cfg)
    assert cfg.MODEL.PAPER_VGG.THEIRS == 1
    del cfg.MODEL.PAPER_VGG["THEIRS"]
    assert cfg == plugin_cfg()
    del cfg.TEST["KEEP_TIES"]
    cfg.TEST.VOC_MATCH = ">"
    add_frcnn_config(cfg)
    assert cfg.TEST.KEEP_TIES is False and cfg.TEST.VOC_MATCH == ">"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RPN.LOSS_NORM", "focal"),
        ("TEST.KEEP_TIES", 0),
        ("INPUT.RESIZE", CfgNode()),
        ("FOUR_STEP", True),
        ("DATASETS.REGISTER", ["coco"]),
    ],
)
def test_a_key_with_another_meaning_is_refused(key: str, value: object) -> None:
    cfg = get_cfg()
    node = cfg
    *sections, name = key.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    cfg.SOLVER.CAFFE_MOMENTUM = "yes"
    before = cfg.clone()
    with pytest.raises(UserError) as caught:
        add_frcnn_config(cfg)
    assert key in str(caught.value) and "SOLVER.CAFFE_MOMENTUM 'yes'" in str(caught.value)
    assert cfg == before
