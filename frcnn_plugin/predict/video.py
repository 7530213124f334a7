"""Frames of videos and webcams, with OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UserError

Frame = npt.NDArray[np.uint8]


class VideoFrames:
    """Iterates over the frames of a video file or a webcam, (H, W, 3) uint8 BGR.

    Attributes:
        name: for files made of it, "street" for street.mp4, "webcam0" for webcam 0.
        rate: frames per second; 25 if unknown.
        number: of frames, as far as the file says; None if it does not.
    """

    def __init__(self, source: str, limit: int | None = None) -> None:
        """Open.

        Args:
            source: file, or index of a webcam, such as "0".
            limit: frames at most.

        Raises:
            UserError: it is not there or cannot be read.
        """
        webcam = source.isdecimal() and not os.path.exists(source)
        if not webcam and not os.path.isfile(source):
            raise UserError(
                f"there is no video {source}; a webcam is given by its number, 0, 1 ..."
            )
        self._source, self._limit = source, limit
        self._capture = cv2.VideoCapture(int(source) if webcam else source)
        if not self._capture.isOpened():
            what = f"webcam {source}" if webcam else f"the video {source}"
            raise UserError(f"OpenCV cannot open {what}")
        self.name = f"webcam{source}" if webcam else Path(source).stem
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not 0 < self.rate < 1000:
            self.rate = 25.0
        number = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if limit is not None:
            number = min(number, limit) if number > 0 else limit
        self.number = number if number > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the end.

        Raises:
            UserError: there is not even one.
        """
        count = 0
        try:
            while self._limit is None or count < self._limit:
                there, frame = self._capture.read()
                if not there:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if not count:
            raise UserError(f"no frame of {self._source} can be read")


class VideoFile(AbstractContextManager["VideoFile"]):
    """Writes an .mp4 file of frames of one size; it appears when the ``with`` block ends well."""

    def __init__(self, path: str | os.PathLike[str], rate: float) -> None:
        """Start; nothing is written before the first frame.

        Args:
            path: file to write, ending in ``.mp4``.
            rate: frames per second.
        """
        self.path = Path(path)
        self._rate = rate
        self._temporary = self.path.with_suffix(".partial.mp4")
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: Frame) -> None:
        """Append a frame, (H, W, 3) uint8 BGR.

        Raises:
            UserError: OpenCV cannot write videos here.
        """
        if self._writer is None:
            size = (frame.shape[1], frame.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), codec, self._rate, size)
            if not self._writer.isOpened():
                raise UserError(f"OpenCV cannot write the video {self.path}: add --no-pictures")
        self._writer.write(frame)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Put the file in place, or remove it."""
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)
