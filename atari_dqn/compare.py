"""`python -m atari_dqn.compare RUN...`: draw learning curves of runs and print tables of their scores."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atari_dqn.cli.command import DONE, parse_flags, run_command
from atari_dqn.cli.output import StatusLine, open_console, say
from atari_dqn.comparison.runs import Run, configurations, find_runs, names_of, read_run
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.runs.directory import named, newest_run
from atari_dqn.system.files import replace

if TYPE_CHECKING:  # matplotlib takes a second, which bad input need not wait for
    from matplotlib.figure import Figure

    from atari_dqn.comparison.tables import Table


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Draw learning curves and compare runs over seeds.

    Writes a PNG and the same tables as Markdown beside it. Runs that differ only in game, seed and settings that cannot
    change learning (workers, device, log intervals) form one configuration. The curve of several runs is the
    interquartile mean of their scores, shaded with its 95% interval; that of a single run is its score as logged: the
    mean of the last 100 games of training, not smoothed further. A point is an evaluation with its 95% interval, a
    dashed vertical line a live edit. Statistics: Agarwal et al. 2021.
    """

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        Setting("run directories, or directories with some in them (default: the newest in runs/)"),
    ]
    threshold: Annotated[
        float | None, Setting("also report when the mean raw score of 100 games of training reached this")
    ] = None
    out: Annotated[
        Path | None,
        Setting("the PNG to write, with the tables beside it (by default plots/compare.png in the first run)"),
    ] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.compare") -> int:
    """Compare as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(CompareCommand, argv, prog=prog)
    console = open_console()
    given = [named(path, takes="run seeds runs") for path in command.runs or (newest_run(partial(say, console)),)]
    places = find_runs(given)
    out = command.out or given[0].path / "plots" / "compare.png"
    _check_out(out)
    with StatusLine(console, "reading") as status:
        runs: list[Run] = []
        left_out: list[str] = []
        for place, name in zip(places, names_of(places), strict=True):
            status.update(f"{len(runs)} of {len(places)} runs read")
            try:
                runs.append(read_run(place, name))
            except ConfigError as error:
                left_out.append(str(error))
        if not runs:
            raise ConfigError(left_out[0])
        for reason in left_out:
            say(console, f"left out: {reason}")
        found = configurations(runs)

        from atari_dqn.comparison.all_games import all_games
        from atari_dqn.comparison.figure import draw
        from atari_dqn.comparison.tables import tables, terminal

        status.update(f"{len(runs)} runs read; drawing bootstrap samples")
        made = [*tables(found, command.threshold), *all_games(found)]
        status.update("drawing curves")
        figure = draw(found, command.threshold)
    beside = _write(out, figure, made)
    for table in made:
        console.print(terminal(table))
    say(console, f"{out}\n{beside}")
    return DONE


def _check_out(out: Path) -> None:
    """Raise `ConfigError` unless a picture can go to `out`."""
    if os.path.exists(out) and not out.is_file():
        raise ConfigError(f"--out {out} is not a regular file; name a PNG to write")
    if out.suffix == ".md":
        raise ConfigError(f"--out {out} names the tables; name the picture, such as {out.with_suffix('.png')}")


def _write(out: Path, figure: Figure, made: Sequence[Table]) -> Path:
    """Write the figure to `out` and the tables beside it. Returns the tables' file; raises `ConfigError`."""
    from atari_dqn.comparison.tables import markdown

    beside = out.with_suffix(".md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # In memory first: on a full disk matplotlib may leave half a picture without an error.
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format=out.suffix[1:] or "png")
        replace(out, picture.getvalue())
        replace(beside, markdown(made, picture=out.name).encode(errors="replace"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write --out {out}: {error}") from None
    return beside


if __name__ == "__main__":
    run_command(main)
