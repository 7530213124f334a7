"""Starting worker processes."""

from __future__ import annotations

import pytest
from detectron2.utils import comm

from frcnn_plugin.errors import UserError
from frcnn_plugin.process import launch


def add(a: int, b: int) -> int:
    return a + b


def check_ranks(path: str) -> None:
    ranks = comm.all_gather(comm.get_rank())
    if comm.is_main_process():
        with open(path, "w") as file:
            file.write(str(ranks))


def make_a_mistake() -> None:
    raise UserError("MODEL.X is 1: set MODEL.X 2")


def fail() -> None:
    raise ZeroDivisionError("not the user's")


def test_single_process_returns_its_result() -> None:
    assert launch(add, 1, args=(2, 3)) == 5


def test_two_processes_meet_and_end(tmp_path) -> None:
    path = tmp_path / "ranks"
    assert launch(check_ranks, 2, args=(str(path),)) is None
    assert path.read_text() == "[0, 1]"


def test_a_mistake_found_by_a_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^MODEL.X is 1: set MODEL.X 2$"):
        launch(make_a_mistake, 2)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(Exception, match="ZeroDivisionError: not the user's"):
        launch(fail, 2)
