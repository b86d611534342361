"""Command `python -m atari_dqn.tune RUN name=value...`: changes hyperparameters of a running training.

Without edits it lists the live hyperparameters with their present values, bounds and edits so far. It exchanges files
with the run in the run's directory, so it needs no server, and it imports no torch.
"""

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.live import SCHEDULE, Edit, Request, Value, live_settings, new_request
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.runs.directory import named, newest_run, read_config
from atari_dqn.runs.edits import Inbox, live_values, read_edits, to_undo
from atari_dqn.runs.lock import is_training

PATIENCE_SECONDS = 10.0
"""Time to wait for an answer. A run answers within one iteration unless it is starting, evaluating or saving."""
POLL_SECONDS = 0.05
HISTORY_LINES = 12
"""Number of the newest edits shown."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """Change hyperparameters of a running training, or list them. Of several new values all are taken, or none.

    The run accepts or refuses an edit between two updates and records it in its hparam_edits.jsonl. `epsilon=schedule`
    and `beta=schedule` return to the schedule. Before --learning-starts all actions are random, whatever epsilon is.
    """

    run: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[RUN]"),
        Setting("directory of the run (default: the newest in runs/)"),
    ] = None
    edits: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME=VALUE ...]"),
        Setting("new values, such as learning_rate=5e-5; omit them to list the present ones"),
    ] = ()
    undo: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("undo the newest accepted edit that is not undone yet")
    ] = False


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.tune") -> int:
    """Run the command. Returns the exit code; raises `ConfigError` for bad input and refused edits."""
    words = "\0".join(["", *(sys.argv[1:] if argv is None else argv)])
    # `--learning-rate 5e-5` and `--learning-rate=5e-5` are how a flag of train is written.
    words = re.sub(r"\0--(?!undo|help|version)([\w-]+)[=\0]", "\0\\1=", words)
    others: list[str] = []
    edits: list[str] = []
    for word in words.split("\0")[1:]:
        (edits if "=" in word and not os.path.exists(word) else others).append(word)
    command = parse_flags(TuneCommand, others, prog=prog)
    edits += command.edits
    run = named(command.run or newest_run(partial(say, open_console()))).path
    config, past = read_config(run), read_edits(run)
    if command.undo and edits:
        raise ConfigError("cannot undo and edit at once; give either --undo or new values")
    if command.undo:
        last = to_undo(past)
        if last is None:
            raise ConfigError(f"nothing to undo: {run} has no accepted edit that is not undone yet")
        requests = [new_request(last.name, last.old, undo=True)]
    else:
        requests = [_parsed(text) for text in edits]
    live = live_values(config, past)
    if not requests:
        _list(live.values, past, run)
        return DONE
    _raise_refusals([live.decide(request, 0, 0) for request in requests])  # all or nothing
    if not is_training(run):
        raise ConfigError(
            f"cannot tune {run}: no process is training there; set its hyperparameters with flags of train"
        )
    _raise_refusals(_ask(run, requests))
    return DONE


def _raise_refusals(answers: Sequence[Edit]) -> None:
    refused = [answer.reason for answer in answers if not answer.taken]
    if refused:
        raise ConfigError("; ".join(refused))


def _parsed(text: str) -> Request:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise ConfigError(f"cannot read the edit {text!r}; write name=value, such as learning_rate=5e-5")
    number: float | str = value.strip()
    with contextlib.suppress(ValueError):  # any other text is refused with a reason, unless it means the schedule
        number = float(number)
    return new_request(name.strip().replace("-", "_"), number)


def _ask(run_dir: Path, requests: Sequence[Request]) -> list[Edit]:
    """Write the requests into the run's inbox, wait for the answers and print them."""
    inbox = Inbox(run_dir)
    try:
        files = [inbox.put(request) for request in requests]
    except OSError as error:
        raise ConfigError(f"cannot write to {run_dir}: {error.filename}: {error.strerror}") from None
    try:
        return [_answer(run_dir, request, file) for request, file in zip(requests, files, strict=True)]
    except KeyboardInterrupt:
        for file in files:
            file.unlink(missing_ok=True)  # a user who gives up does not want the edit later
        raise


def _answer(run_dir: Path, request: Request, file: Path) -> Edit:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        alive = is_training(run_dir)  # read first: the run may answer just before it ends
        for edit in read_edits(run_dir):
            if edit.id == request.id:
                if edit.taken:
                    say(open_console(), f"env step {edit.env_step:,}: {edit}")
                return edit
        if not alive:
            file.unlink(missing_ok=True)
            raise CommandFailed(f"cannot change {request.name}: the training in {run_dir} ended before it answered")
        if time.monotonic() > give_up:
            raise CommandFailed(
                f"no answer within {PATIENCE_SECONDS:g} s: {run_dir} is starting, evaluating, saving or making many"
                f" updates; it will still answer the edit of {request.name}, see `tune {run_dir}`"
            )
        time.sleep(POLL_SECONDS)


def _list(values: Mapping[str, Value], edits: Sequence[Edit], run_dir: Path) -> None:
    from rich import box
    from rich.table import Table

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
    for edit in edits[-HISTORY_LINES:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(edit.time))
        say(console, f"  {when}  env step {edit.env_step:>11,}  {edit}")
    if not edits:
        say(console, "  no edits yet; change a value with NAME=VALUE")


if __name__ == "__main__":
    run_command(main)
