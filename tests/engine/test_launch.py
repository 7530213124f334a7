"""Starting worker processes."""

from __future__ import annotations

from detectron2.utils import comm

from frcnn_plugin.engine import launch


def add(a: int, b: int) -> int:
    return a + b


def check_ranks(path: str) -> None:
    ranks = comm.all_gather(comm.get_rank())
    if comm.is_main_process():
        with open(path, "w") as file:
            file.write(str(ranks))


def test_single_process_returns_its_result() -> None:
    assert launch(add, 1, args=(2, 3)) == 5


def test_two_processes_meet_and_end(tmp_path) -> None:
    path = tmp_path / "ranks"
    assert launch(check_ranks, 2, args=(str(path),)) is None
    assert path.read_text() == "[0, 1]"
