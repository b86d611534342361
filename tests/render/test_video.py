"""Videos: playable in browsers, in true colours, written as pictures arrive, and complete after any failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.render.video import VideoFile, check_display, enlarge

COLOURS = ((200, 72, 72), (72, 160, 72), (66, 72, 200), (142, 142, 142), (0, 0, 0), (255, 255, 255))


def decode(file: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]  # type: ignore[misc]


def flat(colour: tuple[int, int, int], height: int = 210, width: int = 160) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def test_browsers_can_play_the_file(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "videos" / "game.mp4", fps=60) as video:
        for colour in COLOURS:
            video.add(flat(colour))
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["game.mp4"]
    with av.open(str(video.file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 60)
        assert (stream.width, stream.height, stream.frames) == (480, 630, len(COLOURS))
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == pytest.approx(len(COLOURS) / 60)
    data = video.file.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first, so that a page can play while it loads"


def test_pictures_keep_their_order_and_colours(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "game.mp4", fps=30) as video:
        for colour in COLOURS:
            video.add(flat(colour))
    for picture, colour in zip(decode(video.file), COLOURS, strict=True):
        np.testing.assert_allclose(picture.reshape(-1, 3).mean(axis=0), colour, atol=4)


def test_small_pictures_are_enlarged_by_a_whole_factor_and_odd_sides_padded() -> None:
    picture = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(enlarge(picture)[1::3, 1::3], picture)
    assert enlarge(picture).shape == (630, 480, 3)
    assert enlarge(picture[:8].repeat(2, axis=1)).shape == (96, 3840, 3)
    large = np.random.default_rng(0).integers(256, size=(401, 601, 3), dtype=np.uint8)
    assert enlarge(large).shape == (402, 602, 3)
    np.testing.assert_array_equal(enlarge(large)[:401, :601], large)


def test_the_file_grows_while_pictures_arrive(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    with VideoFile(tmp_path / "game.mp4", fps=30) as video:
        sizes = []
        for _ in range(3):
            for _ in range(40):
                video.add(noise.integers(256, size=(330, 64, 3), dtype=np.uint8))
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_what_was_filmed_before_a_failure_is_kept(tmp_path: Path) -> None:
    def film() -> None:
        with VideoFile(tmp_path / "game.mp4", fps=30) as video:
            for colour in COLOURS[:4]:
                video.add(flat(colour))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film()
    assert len(decode(tmp_path / "game.mp4")) == 4
    with VideoFile(tmp_path / "empty.mp4", fps=30):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["game.mp4"]


def test_opencv_is_loaded_before_pyav_or_its_windows_hang() -> None:
    probe = "import atari_dqn.render.video, sys; names = list(sys.modules); "
    probe += "sys.exit(names.index('cv2') > names.index('av'))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_no_display_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=r"^--window needs (a display|an OpenCV with windows)[^\n]*$"):
        check_display()
    monkeypatch.setattr(cv2, "currentUIFramework", str)  # as opencv-python-headless says
    with pytest.raises(ConfigError, match=r"try pip install opencv-python$"):
        check_display()
