"""`python -m atari_dqn.dashboard`: labml's own server on this machine's loopback, with its page made private.

A port and a directory flow in; a server of labml-app 0.0.102 comes out, whose page shows the runs that
`train --labml-url` reports and lets their hyperparameters be changed. `start` runs the same command as a subprocess
that ends with its parent. The page is prepared by `dashboard_page`, the requests are checked by `dashboard_guard`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro

from atari_dqn.cli.command import DONE, parse_flags, run_command
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml.launch import API, PORT
from atari_dqn.labml.server import check_installed, default_data_dir, held, listening, make_app, serve


@dataclasses.dataclass(frozen=True, kw_only=True)
class DashboardCommand:
    """Serve the labml dashboard on 127.0.0.1, until Ctrl-C.

    The first start fetches the page's three packages from the npm registry; from then on it needs no internet.
    """

    port: Annotated[int, tyro.conf.arg(help="0 takes any free port [from 0 to 65535]")] = PORT
    data_dir: Annotated[
        Path | None,
        tyro.conf.arg(help="where runs are kept; by default atari_dqn/dashboard among the user's data"),
    ] = None
    until_stdin_ends: Annotated[
        bool, tyro.conf.arg(help="stop too when standard input ends, as it does with the program that holds it")
    ] = False


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.dashboard") -> int:
    """Serve until a signal. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(DashboardCommand, argv, prog=prog)
    if not 0 <= command.port <= 65535:
        raise ConfigError(f"--port is {command.port}; it must be from 0 to 65535")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if command.until_stdin_ends:
        threading.Thread(target=_leave_with_stdin, daemon=True).start()  # before what takes seconds to import
    check_installed()
    data_dir = (command.data_dir or default_data_dir()).expanduser().absolute()
    # The socket first: two servers started at once must not both get as far as the data.
    with listening(command.port) as listener, held(data_dir):
        port = listener.getsockname()[1]
        app = make_app(port, data_dir)
        url = f"http://127.0.0.1:{port}"
        print(f"dashboard: {url}\nto report to it: python -m atari_dqn.train --labml-url {url}{API}", flush=True)
        serve(app, listener)
    return DONE


def _leave(number: int, frame: FrameType | None) -> None:
    # Both before uvicorn takes the signals over and after it has closed down, when it raises them once more.
    sys.exit(DONE)


def _leave_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_command(main)
