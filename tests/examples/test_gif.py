"""`examples.gif`: the part of a film that it takes, its rate, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from atari_dqn.config.setting import ConfigError
from examples import gif


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds at 60 pictures a second: dark in the first, then bright."""
    place = tmp_path / "film.mp4"
    with av.open(str(place), "w") as out:
        stream = out.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(120):
            picture = np.full((48, 64, 3), 20 if index < 60 else 220, np.uint8)
            picture[:, index % 64] = 128  # a GIF joins pictures that are the same
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return place


def test_a_gif_shows_the_asked_part_at_the_asked_rate(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gif"
    assert gif.main([str(film), str(out), "--start", "1", "--seconds", "0.5", "--rate", "10", "--width", "32"]) == 0
    with Image.open(out) as picture:
        assert (picture.size, picture.n_frames, picture.info["duration"]) == ((32, 24), 5, 100)  # type: ignore[attr-defined]
        assert np.asarray(picture.convert("L")).mean() > 180


def test_a_film_that_is_too_short_or_none_is_refused(film: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends before --start 9"):
        gif.main([str(film), str(tmp_path / "out.gif"), "--start", "9"])
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(ConfigError, match="cannot be read as a film"):
        gif.main([str(tmp_path / "text.mp4"), str(tmp_path / "out.gif")])
    assert not (tmp_path / "out.gif").exists()
