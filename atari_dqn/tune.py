"""`python -m atari_dqn.tune RUN name=value...`: edits of a running training in, its answers out.

Without edits it lists the live hyperparameters: present values, bounds, and what was asked so far. It speaks to the
run through files in its directory, so it needs no server, and imports no torch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.live import SCHEDULE, Edit, Request, live_settings, new_request
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.directory import read_config
from atari_dqn.runs.edits import Inbox, present_values, read_edits, to_undo
from atari_dqn.runs.lock import is_training

PATIENCE_SECONDS = 10.0
"""For an answer; a run answers within one iteration, unless it starts, evaluates or saves."""
LOOK_SECONDS = 0.05
HISTORY = 12
"""Lines of history shown"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """Change hyperparameters of a running training, or list them.

    An edit is taken or refused between two updates, and remembered in the run's hparam_edits.jsonl. `epsilon=schedule`
    and `beta=schedule` go back to the schedule. Play before --learning-starts is random whatever epsilon is.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the run's directory", metavar="RUN")]
    edits: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help="such as learning_rate=5e-5", metavar="[NAME=VALUE ...]"),
    ] = ()
    undo: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="take back the newest edit that was taken")
    ] = False


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.tune") -> int:
    """Ask and list as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(TuneCommand, argv, prog=prog)
    config = read_config(command.run)
    if command.undo and command.edits:
        raise ConfigError("--undo takes back the newest edit alone; give either it or new edits")
    if command.undo:
        last = to_undo(read_edits(command.run))
        if last is None:
            raise ConfigError(f"nothing to undo: no edit of {command.run} stands")
        requests = [new_request(last.name, last.old, undo=True)]
    else:
        requests = [_parsed(text) for text in command.edits]
    if not requests:
        _list(config, command.run)
        return DONE
    if not is_training(command.run):
        raise ConfigError(f"no process is training in {command.run}; start one with flags, and tune it while it runs")
    answers = [_ask(command.run, request) for request in requests]
    refused = [answer.reason for answer in answers if not answer.taken]
    if refused:
        raise ConfigError("; ".join(refused))
    return DONE


def _parsed(text: str) -> Request:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise ConfigError(f"{text!r} is no edit; write name=value, such as learning_rate=5e-5")
    return new_request(name.strip(), _number(value.strip()))


def _number(text: str) -> Any:
    """What the user typed as a number if it is one, else as it is: the run refuses it with a reason."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _ask(run_dir: Path, request: Request) -> Edit:
    """Leave a request, wait for the answer and print it. Raises `CommandFailed` when none comes.

    Raises `ConfigError` when the run is one that this user may not write to.
    """
    try:
        file = Inbox(run_dir).put(request)
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be asked: {error.filename}: {error.strerror}") from None
    try:
        return _answer(run_dir, request, file)
    except KeyboardInterrupt:
        file.unlink(missing_ok=True)  # whoever gives up does not want it taken afterwards
        raise


def _answer(run_dir: Path, request: Request, file: Path) -> Edit:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        alive = is_training(run_dir)  # before looking: the last answer may come just before the end
        for edit in read_edits(run_dir):
            if edit.id == request.id:
                if edit.taken:
                    open_console().print(f"env step {edit.env_step:,}: {edit}", highlight=False, soft_wrap=True)
                return edit
        if not alive:
            file.unlink(missing_ok=True)
            raise CommandFailed(f"the training in {run_dir} ended before it could take {request.name}")
        if time.monotonic() > give_up:
            raise CommandFailed(
                f"asked, and not answered within {PATIENCE_SECONDS:g} s: {run_dir} is starting, evaluating, saving"
                f" or busy with very many updates, and takes {request.name} afterwards; `tune {run_dir}` will show it"
            )
        time.sleep(LOOK_SECONDS)


def _list(config: TrainConfig, run_dir: Path) -> None:
    from rich import box
    from rich.table import Table

    edits = read_edits(run_dir)
    values = present_values(config, edits)
    console = open_console()
    table = Table(box=box.SIMPLE_HEAD, title=f"{run_dir}: live hyperparameters", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("bounds")
    table.add_column("unit")
    for name, live in live_settings().items():
        value = values[name]
        bounds = f"{live.setting.bounds}, or {SCHEDULE}" if live.scheduled else live.setting.bounds
        shown = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"
        table.add_row(name, shown, bounds, live.setting.unit)
    console.print(table)
    for edit in edits[-HISTORY:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(edit.time))
        console.print(f"  {when}  env step {edit.env_step:>11,}  {edit}", highlight=False, soft_wrap=True)
    if not edits:
        console.print("  no edit yet; change one with NAME=VALUE", highlight=False)


if __name__ == "__main__":
    run_command(main)
