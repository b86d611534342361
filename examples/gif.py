"""A film of `play` as an animated GIF, for a README: `python -m examples.gif FILM OUT --start 60 --seconds 20`.

A GIF shows 256 colours and compresses only what stays the same from one picture to the next, so it holds a part of the
film, smaller, and with fewer pictures a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image

from atari_dqn.cli.command import DONE, run_command
from atari_dqn.config.setting import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Write the GIF. Returns the exit code; raises `ConfigError` for a film that cannot be read or is too short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=float, default=0.0, help="seconds of the film to leave out")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the GIF")
    parser.add_argument("--rate", type=int, default=15, help="pictures a second")
    parser.add_argument("--width", type=int, default=400, help="pixels")
    parser.add_argument("--colors", type=int, default=32)
    asked = parser.parse_args(argv)
    pictures: list[Image.Image] = []
    try:
        with av.open(str(asked.film)) as film:
            for frame in film.decode(video=0):
                due = asked.start + len(pictures) / asked.rate
                if due >= asked.start + asked.seconds:
                    break
                if frame.time >= due:
                    height = round(frame.height * asked.width / frame.width)
                    picture = frame.to_image().resize((asked.width, height), Image.Resampling.LANCZOS)
                    # One palette for all pictures: with one each, pixels that stay the same would change.
                    palette = pictures[0] if pictures else None
                    pictures.append(picture.quantize(asked.colors, palette=palette, dither=Image.Dither.NONE))
    except (OSError, av.FFmpegError) as error:
        raise ConfigError(f"{asked.film} cannot be read as a film: {error}") from None
    if not pictures:
        raise ConfigError(f"{asked.film} ends before --start {asked.start:g}")
    pictures[0].save(
        asked.out, save_all=True, append_images=pictures[1:], duration=round(1000 / asked.rate), loop=0, optimize=True
    )
    print(f"{asked.out}: {len(pictures)} pictures, {asked.out.stat().st_size / 1e6:.2f} MB")
    return DONE


if __name__ == "__main__":
    run_command(main)
