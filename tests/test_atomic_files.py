"""A file is there completely, or as it was before."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import frcnn_plugin
from frcnn_plugin.atomic_files import replacing, safe_file_name, sha256, write_text
from frcnn_plugin.errors import UserError

resource = pytest.importorskip("resource")

# For a process of its own. The package's __init__ is not run, as it loads PyTorch, which takes
# seconds; that this works shows that the module needs next to nothing of the package.
ALONE = f"""
import os, signal, sys, types
sys.modules["frcnn_plugin"] = package = types.ModuleType("frcnn_plugin")
package.__path__ = [{str(Path(frcnn_plugin.__file__).parent)!r}]
from frcnn_plugin.atomic_files import replacing, write_text
assert "torch" not in sys.modules
path, word = sys.argv[1:]
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("before", [None, "old and longer"])
def test_appears_when_the_block_ends(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path  # a move to another disk would not be one step
        assert not temporary.exists()
        temporary.write_text("new")
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(str(tmp_path / "a.txt"), "bête\n")
    assert (tmp_path / "a.txt").read_bytes() == b"b\xc3\xaate\n"


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("fixed", [False, True])
def test_error_while_writing(
    tmp_path: Path, before: str | None, error: type[BaseException], fixed: bool
) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    name = tmp_path / "a.txt.partial" if fixed else None
    with pytest.raises(error, match="stop"), replacing(path, temporary=name) as temporary:
        temporary.write_text("ne")
        raise error("stop")
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or path.read_text() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_error_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert names(tmp_path) == ["a.txt"] and path.read_text() == "old"


def test_first_error_is_told(tmp_path: Path) -> None:
    """Also if the temporary file cannot be removed, here because it is a folder."""
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "a.txt") as temporary:
        temporary.mkdir()
        raise ValueError("stop")


@pytest.mark.parametrize("path", ["no/a.txt", ".", "a"])
def test_path_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """No such folder; a folder is in the way."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert names(tmp_path) == ["a"]


def test_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_on_the_disk_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut may leave an empty file under the final name."""
    calls: list[str] = []

    fsync, replace = os.fsync, os.replace

    def record_fsync(file: int) -> None:
        calls.append("fsync")
        assert os.fstat(file).st_size == len("new")
        fsync(file)

    def record_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_text(tmp_path / "a.txt", "new")
    assert calls == ["fsync", "replace"]


def test_two_writers_in_turn(tmp_path: Path) -> None:
    """Each has a file of its own; the one that ends last stays."""
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first, and longer")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, and longer" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("before", [None, "old"])
def test_killed_while_writing(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a.pkl"
    if before:
        path.write_text(before)
    script = ALONE + (
        "with replacing(path) as temporary:\n"
        "    temporary.write_text(word)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path, "half"])
    assert done.returncode == -signal.SIGKILL
    # What is left cannot be taken for a complete file, not by its ending either.
    (left,) = [file for file in tmp_path.iterdir() if file != path]
    assert left.read_text() == "half" and left.match(".a.pkl.*.partial")
    assert (path.read_text() if path.exists() else None) == before
    write_text(path, "new")
    assert path.read_text() == "new"


def test_fixed_name_takes_the_place_of_what_was_left(tmp_path: Path) -> None:
    path, name = tmp_path / "a.pth", tmp_path / "a.pth.partial"
    name.write_text("left by a killed process")
    with replacing(path, temporary=str(name)) as temporary:
        assert temporary == name
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.pth"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """Not only for the owner, as those of Python's temporary files are."""
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "a.txt", "new")
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == expected


def test_link_is_replaced(tmp_path: Path) -> None:
    """What it points to, perhaps shared with others, stays as it is."""
    (tmp_path / "shared").write_text("old")
    (tmp_path / "a.txt").symlink_to("shared")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "shared").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new" and not (tmp_path / "a.txt").is_symlink()


def test_sha256(tmp_path: Path) -> None:
    """Of "abc", and of a million "a", which are several pieces: the examples of FIPS 180-2."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    (tmp_path / "million").write_bytes(b"a" * 1_000_000)
    assert sha256(tmp_path / "million") == (
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    )


def test_a_full_disk_is_a_line_with_path_and_reason(tmp_path: Path) -> None:
    """torch's own error, which follows, does not say why."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with (
            pytest.raises(UserError, match=r"model\.pth cannot be written: File too large$"),
            replacing(path) as temporary,
            temporary.open("wb") as file,
        ):
            torch.save(torch.zeros(10000), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_a_line_another_error_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_text(tmp_path / "no" / "file", "x")
    with pytest.raises(OSError, match="cannot be written: No such file"):
        write_text(tmp_path / "no" / "file", "x")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        open(tmp_path / "input")


@pytest.mark.parametrize(
    "text", ["voc07_test", "traffic light", "Löwe", "a.b-c_(1) + d", "x" * 100, "-", "a.."]
)
def test_an_ordinary_text_is_its_own_file_name(text: str) -> None:
    assert safe_file_name(text) == text


ODD_NAMES = [
    "", ".", "..", "a/b", "a_b", "./lists/.test", "/abs/olute", "../up", "a\\b", "a:b", "a\nb",
    "a\0b", ".hidden", " a", "a ", "a", "x" * 101, "x" * 300, "x" * 299 + "y", "é" * 51, "猫" * 100,
    "\udc80", "\\udc80", "a~b", "a\x1b[31m", safe_file_name("a/b"),
]  # fmt: skip


def test_odd_texts_have_safe_and_distinct_file_names(tmp_path: Path) -> None:
    found = [safe_file_name(text) for text in ODD_NAMES]
    assert len(set(found)) == len(ODD_NAMES)
    for name in found:
        assert len(name.encode()) <= 100 and name.isprintable()
        write_text(tmp_path / f"comp4_det_{name}_{name}.txt", "")
        write_text(tmp_path / name, "")
    assert len(names(tmp_path)) == 2 * len(ODD_NAMES)
    assert safe_file_name("a/b").startswith("a_b~")
