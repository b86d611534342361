"""Command `python -m atari_dqn.dashboard`: serves labml's page on this machine's loopback address.

The page shows the runs that `train --labml-url` reports, and changes their hyperparameters.
"""

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

from atari_dqn.cli.command import DONE, parse_flags, run_command, typed
from atari_dqn.config.setting import Setting, help_from_settings
from atari_dqn.labml.http import API
from atari_dqn.labml.launch import PORT
from atari_dqn.labml.server import check_labml_app, listening_socket, locked_data_dir, make_app, serve, user_dir


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class DashboardCommand:
    """Serve the labml dashboard on 127.0.0.1 until Ctrl-C.

    The first start downloads the page's three packages from the npm registry; later ones need no internet.
    """

    port: Annotated[int, Setting("port to listen at; 0 for any free one", "", 0, 65535)] = PORT
    data_dir: Annotated[
        Path | None,
        Setting("where runs are kept; by default ~/.local/share/atari_dqn/dashboard"),
    ] = None
    until_stdin_ends: Annotated[
        bool, Setting("stop also when standard input ends, as it does when the parent program exits")
    ] = False


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.dashboard") -> int:
    """Serve until a signal. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(DashboardCommand, argv, prog=prog)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    if command.until_stdin_ends:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()  # before imports that take seconds
    check_labml_app()
    data_dir = (command.data_dir or user_dir("XDG_DATA_HOME", ".local/share")).absolute()
    # The socket first: of two dashboards started at once the second says that the port is taken, not the directory.
    with listening_socket(command.port) as listener, locked_data_dir(data_dir):
        port = listener.getsockname()[1]
        app = make_app(port, data_dir)
        url = f"http://127.0.0.1:{port}"
        print(f"dashboard: {url}\nto report to it: {typed()} -m atari_dqn.train --labml-url {url}{API}", flush=True)
        serve(app, listener)
    return DONE


def _exit(number: int, frame: FrameType | None) -> None:
    # Called before uvicorn handles signals, and after it has shut down, when it raises them again.
    sys.exit(DONE)


def _exit_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_command(main)
