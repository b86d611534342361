"""Video files that browsers play, and windows on the screen; both take one picture at a time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import TracebackType

# OpenCV before PyAV: the other way round its windows hang, since PyAV brings an X library of its own (PyAV issue 978).
import cv2

# isort: split
import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from atari_dqn.config.setting import ConfigError

Picture = npt.NDArray[np.uint8]

ENCODING = {"preset": "veryfast", "crf": "18"}
ENLARGED_HEIGHT = 640
"""Height in pixels up to which small pictures are enlarged, by a whole factor: yuv420p halves the resolution of
colours, which would smear the console's single-pixel sprites."""
ENLARGED_WIDTH = 4096
"""Width in pixels that enlarged pictures do not exceed: encoders and players have limits."""
EncoderError = av.FFmpegError
"""What PyAV raises; some of these errors are `OSError`s too."""


def enlarge(picture: Picture) -> Picture:
    """Repeat the pixels of a [height, width, 3] picture; an odd side is padded to an even one, as yuv420p needs."""
    factor = max(1, min(ENLARGED_HEIGHT // picture.shape[0], ENLARGED_WIDTH // picture.shape[1]))
    height, width = (factor * side for side in picture.shape[:2])
    large = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)  # three times as quick as np.repeat
    return np.pad(np.asarray(large, np.uint8), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class VideoFile:
    """Encodes RGB pictures as H.264 while they arrive. The file gets its name when it is complete and closed.

    Raises `OSError` or `EncoderError` when it cannot be written; then no part of it is left.
    """

    def __init__(self, file: Path, fps: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.pictures = file, 0
        self._partial = file.with_name(f".{file.name}.partial")
        # faststart puts the index first, so that a browser can begin before it has the whole file.
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        self._fps = fps
        self._stream: VideoStream | None = None

    def add(self, picture: Picture) -> None:
        """Append one picture, [height, width, 3] uint8, all of one size."""
        large = enlarge(picture)
        if self._stream is None:
            self._stream = stream = self._container.add_stream("libx264", rate=self._fps, options=ENCODING)
            stream.height, stream.width, _ = large.shape
            stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, self._fps)
            # Declared in the file too: for small pictures players would guess another colour matrix.
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_range = ColorRange.MPEG
        frame = av.VideoFrame.from_ndarray(large, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(frame))
        self.pictures += 1

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What has been filmed so far is kept and playable, unless the disk failed: an encoder that is used again after
        # an error crashes the process.
        kept = self._stream is not None and not isinstance(error, EncoderError)
        try:
            if kept and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kept:
                self._partial.replace(self.file)
        except (OSError, EncoderError):
            kept = False
            with contextlib.suppress(OSError, EncoderError):
                self._container.close()
            if error is None:
                raise
        finally:
            if not kept:
                self._partial.unlink(missing_ok=True)


def check_display() -> None:
    """Raise `ConfigError` where no window can be opened."""
    if not cv2.currentUIFramework():  # opencv-python-headless, which needs no libraries of a desktop
        raise ConfigError("--window needs an OpenCV with windows; try pip install opencv-python")
    # In a process of its own: without a display OpenCV's toolkit does not raise but aborts.
    trial = "import cv2; cv2.namedWindow('display?'); cv2.waitKey(1)"
    if subprocess.run([sys.executable, "-c", trial], capture_output=True).returncode:
        raise ConfigError("--window needs a display, and none can be opened here; omit it to write the video alone")


class Window:
    """Shows pictures at natural speed. `closed` becomes true when the user closes it or presses q or Escape."""

    def __init__(self, title: str, fps: int) -> None:
        self._title, self._interval = title, 1 / fps
        cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        self._due = time.monotonic()
        self.closed = False

    def add(self, picture: Picture) -> None:
        """Show one picture, [height, width, 3] uint8 RGB, when it is due."""
        cv2.imshow(self._title, np.ascontiguousarray(enlarge(picture)[..., ::-1]))
        now = time.monotonic()
        key = cv2.waitKey(max(1, round(1000 * (self._due - now)))) & 0xFF
        # A late picture delays the following ones, which do not catch up.
        self._due = max(self._due, now) + self._interval
        hidden = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        self.closed = self.closed or hidden or key in (ord("q"), 27)

    def close(self) -> None:
        cv2.destroyAllWindows()
