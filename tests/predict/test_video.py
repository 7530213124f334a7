"""Reading and writing videos with OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.video import VideoFile, VideoFrames


def frame(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, dtype=np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "street.mp4"
    with VideoFile(path, 10.0) as file:
        for value in (20, 120, 220):
            file.add(frame(value))
        assert not path.exists()
    return path


def test_written_and_read(video: Path) -> None:
    frames = VideoFrames(str(video))
    assert (frames.name, frames.rate, frames.number) == ("street", 10.0, 3)
    read = list(frames)
    assert [f.shape for f in read] == [(48, 64, 3)] * 3
    assert [round(float(f.mean()) / 20) for f in read] == [1, 6, 11]  # the codec loses a little
    assert [p.name for p in video.parent.iterdir()] == ["street.mp4"]


def test_limit(video: Path) -> None:
    frames = VideoFrames(str(video), limit=2)
    assert frames.number == 2 and len(list(frames)) == 2
    assert VideoFrames(str(video), limit=9).number == 3


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), VideoFile(tmp_path / "a.mp4", 10.0) as file:
        file.add(frame(1))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no video no.mp4; a webcam is given by its number, 0, 1"):
        VideoFrames("no.mp4")
    damaged = tmp_path / "a.mp4"
    damaged.write_text("no video")
    with pytest.raises(UserError, match=r"OpenCV cannot open the video .*a.mp4"):
        VideoFrames(str(damaged))
    with pytest.raises(UserError, match=r"OpenCV cannot open webcam 97"):
        VideoFrames("97")


def test_no_frames(video: Path) -> None:
    with pytest.raises(UserError, match=r"no frame of .*street.mp4 can be read"):
        list(VideoFrames(str(video), limit=0))


def test_no_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        fourcc = staticmethod(lambda *c: 0)

        def __init__(self, *args: object) -> None: ...
        def isOpened(self) -> bool:
            return False

        def release(self) -> None: ...

    monkeypatch.setattr("cv2.VideoWriter", Closed)
    with (
        pytest.raises(UserError, match=r"cannot write the video .*a.mp4: add --no-pictures"),
        VideoFile(tmp_path / "a.mp4", 10.0) as file,
    ):
        file.add(frame(1))
