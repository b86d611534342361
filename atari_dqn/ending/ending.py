"""The end of a run: its score, curve and film, made without being asked, and the commands to continue with."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from atari_dqn.cli.command import typed
from atari_dqn.cli.output import StatusLine, say
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.single import one_line
from atari_dqn.evaluation.references import with_human
from atari_dqn.runs.directory import checkpoints_in, read_config
from atari_dqn.runs.records import read_rows
from atari_dqn.system.files import replace


def conclude(run_dir: Path, console: Console, done: bool, skip: Callable[[], bool] = lambda: False) -> None:
    """Print the score of a run, `done` or stopped, draw its curve, film 12 seconds and name the next commands.

    What cannot be made is named with the reason, and what is not begun yet when `skip` is true is left out, the film at
    any time. Raises nothing.
    """
    try:
        if not checkpoints_in(run_dir):
            return
        config = read_config(run_dir)
        lines = [*_scores(run_dir, config)]
        with StatusLine(console, "drawing the curve and filming a game") as status:
            try:
                for line in _pictures(run_dir, config, status, skip):
                    lines.append(line)
            except KeyboardInterrupt:
                lines.append(("skipped", "what else there was to draw and film"))
        python, place = typed(), shlex.quote(str(run_dir))
        lines += [
            ("play", f"{python} -m atari_dqn.play {place} --best"),
            ("evaluate", f"{python} -m atari_dqn.evaluate {place}"),
            ("continue", f"{python} -m atari_dqn.train --run-dir {place}{_longer(run_dir, config, done)}"),
        ]
        for name, text in lines:
            say(console, f"{name:<12}{text}", wrap=name in ("score", "evaluation"))  # the rest is to copy
    except Exception as error:  # the run is saved, and its end is not to be one of an error
        say(console, f"no summary of {run_dir}: {_reason(error)}")


def _scores(run_dir: Path, config: TrainConfig) -> Iterator[tuple[str, str]]:
    def shown(value: float) -> str:
        return with_human(config.env.env_id, round(value, 2))

    if games := read_rows(run_dir / "metrics.jsonl", "charts/episodic_return"):
        yield "score", f"{shown(games[-1]['charts/episodic_return'])}, mean of the last 100 games of training"
    own = (config.env.protocol, config.run.eval_epsilon)
    rows = read_rows(run_dir / "evaluations.jsonl", "mean", "episodes", "protocol", "epsilon")
    if rows := [row for row in rows if (row["protocol"], row["epsilon"]) == own]:
        best, last = max(rows, key=lambda row: row["mean"]), rows[-1]
        text = f"{shown(last['mean'])}, mean of {last['episodes']} games at env step {last['env_step']:,}"
        yield (
            "evaluation",
            text + ("" if best is last else f"; the best: {shown(best['mean'])} at {best['env_step']:,}"),
        )


def _pictures(
    run_dir: Path, config: TrainConfig, status: StatusLine, skip: Callable[[], bool]
) -> Iterator[tuple[str, str]]:
    """The curve and, made meanwhile in another process, the film: what each is named, and its file or why not."""
    from atari_dqn.policy.source import playable_source
    from atari_dqn.render.clips import Recorder

    def check() -> None:
        if skip():
            raise KeyboardInterrupt

    check()
    try:
        policy = playable_source(run_dir).load("cpu")
        film = run_dir / "videos" / f"{policy.env_step}-clip.mp4"
        recorder = Recorder(run_dir, config, policy.spec, config.run.seed)
        problem = "" if film.exists() else recorder.begin(policy.env_step, policy.network)
    except Exception as error:
        recorder, film, problem = None, run_dir, _reason(error)
    with contextlib.closing(recorder) if recorder else contextlib.nullcontext():
        check()
        try:
            yield "curve", str(_curve(run_dir))
        except Exception as error:
            yield "no curve", _reason(error)
        if recorder and not problem:
            recorder.shorten_deadline()
            while (made := recorder.poll(0.25)) is None and recorder.env_step is not None:
                check()
                status.update("filming 12 seconds; Ctrl-C skips it")
            problem = made if isinstance(made, str) else ""
        yield ("no film", problem) if problem else ("film", str(film))


def _curve(run_dir: Path) -> Path:
    """Draw the learning curve to plots/curve.png in the run's directory."""
    from atari_dqn.comparison.figure import draw
    from atari_dqn.comparison.runs import configurations, read_run

    picture, file = io.BytesIO(), run_dir / "plots" / "curve.png"
    draw(configurations([read_run(run_dir)])).savefig(picture, dpi=120, format="png")
    file.parent.mkdir(exist_ok=True)
    replace(file, picture.getvalue())
    return file


def _longer(run_dir: Path, config: TrainConfig, done: bool) -> str:
    """The flag that a run which is `done` needs to continue: twice its length, or no --stop-score."""
    total = config.run.total_env_steps
    if max(checkpoints_in(run_dir)) >= total:
        return f" --total-env-steps {2 * total}"
    return " --stop-score None" if done else ""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ConfigError) else one_line(error)
