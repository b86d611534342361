"""`python -m atari_dqn.dashboard`: labml's own server on this machine's loopback, with its page made private.

A port and a directory flow in; a server of labml-app 0.0.102 comes out, whose page shows the runs that
`train --labml-url` reports and lets their hyperparameters be changed. `start` runs the same command as a subprocess
that ends with its parent. The page is prepared by `dashboard_page`, the requests are checked by `dashboard_guard`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import http.client
import importlib.metadata
import json
import logging
import logging.handlers
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Annotated

import tyro

from atari_dqn.cli.command import BAD_INPUT, DONE, CommandFailed, parse_flags, run_command
from atari_dqn.config.schema import ConfigError
from atari_dqn.labml.guard import App, Guard
from atari_dqn.labml.page import PACKAGES, Packages, PageError, localise

PORT = 5005
API = "/api/v1"
LABML_APP = "0.0.102"
GOODBYE_SECONDS = 4
"""labml's server answers each report after a pause of 3 s; a reply under way, which may carry an edit, is let out."""
START_SECONDS = 120.0
"""For `start`: fetching the page's packages over a slow line is the long part."""


def default_data_dir() -> Path:
    return _user_dir("XDG_DATA_HOME", ".local/share") / "dashboard"


def _user_dir(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / usual) / "atari_dqn"


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
    _check_installed()
    data_dir = (command.data_dir or default_data_dir()).expanduser().absolute()
    # The socket first: two servers started at once must not both get as far as the data.
    with _listening(command.port) as listener, _held(data_dir):
        port = listener.getsockname()[1]
        app = _app(port, data_dir)
        url = f"http://127.0.0.1:{port}"
        print(f"dashboard: {url}\nto report to it: python -m atari_dqn.train --labml-url {url}{API}", flush=True)
        _serve(app, listener)
    return DONE


def _leave(number: int, frame: FrameType | None) -> None:
    # Both before uvicorn takes the signals over and after it has closed down, when it raises them once more.
    sys.exit(DONE)


def _leave_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _check_installed() -> None:
    command = f'python -m pip install "labml-app=={LABML_APP}" requests'
    try:
        found = importlib.metadata.version("labml-app")
        importlib.metadata.version("requests")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the dashboard needs {error.name}, which is not installed: {command}") from None
    if found != LABML_APP:
        raise ConfigError(f"labml-app is {found}; only {LABML_APP} tunes live without a database: {command}")


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; name another one, or 0 for any") from None
        yield listener


@contextlib.contextmanager
def _held(data_dir: Path) -> Iterator[None]:
    """Create `data_dir`, for this user alone (labml keeps pickles in it), and hold it for this process."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data_dir / ".lock").open("a")
    except OSError as error:
        raise ConfigError(f"--data-dir {data_dir}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another dashboard serves {data_dir}; name another --data-dir") from None
        yield


def _app(port: int, data_dir: Path) -> App:
    """labml's app, kept to `data_dir`, with our page and behind our guard."""
    log = logging.handlers.RotatingFileHandler(data_dir / "server.log", maxBytes=2**20, backupCount=1, delay=True)
    logging.basicConfig(handlers=[log], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    os.environ.update(
        LABML_APP_SERVER_IP="127.0.0.1",
        LABML_APP_SERVER_PORT=str(port),
        GIT_PYTHON_REFRESH="quiet",  # or importing it fails where no git is installed
        GIT_DIR="/",  # it looks for its own revision in the repository around, and fails where that has no commit
    )
    os.chdir(data_dir)  # labml-app opens a log of its own in the working directory

    import labml.internal.computer.configs as labml_computer

    # In place of `~/.labml`; the server wants nothing else of it.
    labml_computer._internal = SimpleNamespace(app_folder=data_dir)

    from labml_app.logger import logger as chatter

    chatter.handlers.clear()
    chatter.setLevel(logging.CRITICAL)  # its errors are news like the revision it was deployed from
    from labml_app import flask_app

    page = data_dir / "labml_app_page"  # made anew each time; nobody else would call a folder so
    try:
        policy = localise(flask_app.STATIC_PATH, page, _fetched_packages())
    except PageError as error:
        raise CommandFailed(f"the dashboard's page could not be prepared: {error}") from None
    flask_app.STATIC_PATH = page
    return Guard(flask_app.app, port, policy)


def page_packages() -> Packages:
    """The npm packages of the page, in the user's cache."""
    return Packages(_user_dir("XDG_CACHE_HOME", ".cache") / "dashboard")


def _fetched_packages() -> Packages | None:
    """The page's packages, from the cache or fetched; None, after a line that says why, when there are none."""
    packages = page_packages()
    if packages.missing():
        print(f"fetching the page's packages ({', '.join(package.name for package in PACKAGES)})", flush=True)
        try:
            packages.fetch()
        except PageError as error:
            print(f"{error}: until a later start gets them, the page needs the internet", flush=True)
            return None
    return packages


def _serve(app: App, listener: socket.socket) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
        )
    )
    server.run(sockets=[listener])


class Server:
    """A dashboard in a subprocess; it ends with this process, however that ends."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: list[str]) -> None:
        self._process = process
        self.url = url
        """Of the page."""
        self.api_url = url + API
        """What `train --labml-url` takes."""
        self.said = said
        """Lines for the user, of before it was ready."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Stop it, within `GOODBYE_SECONDS` and a little."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(GOODBYE_SECONDS + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(port: int = PORT, data_dir: Path | None = None) -> Server:
    """Start a dashboard and return when it answers. Raises `ConfigError` or `CommandFailed` when it does not."""
    command = [sys.executable, "-m", "atari_dqn.dashboard", "--port", str(port), "--until-stdin-ends"]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # nobody else has the other end, so the kernel ends it with us
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the training, which still has to report its end
    )
    assert process.stdout is not None
    alarm = threading.Timer(START_SECONDS, process.kill)
    alarm.start()
    said: list[str] = []
    try:
        for line in process.stdout:
            ready = re.fullmatch(r"dashboard: (http://\S+)\n", line)
            if ready:
                return Server(process, ready[1], said)
            said.append(line.rstrip())
    finally:
        alarm.cancel()
    why = (said or ["it said nothing"])[-1].removeprefix("error: ")
    if process.wait() == BAD_INPUT:
        raise ConfigError(f"dashboard: {why}")
    raise CommandFailed(f"the dashboard did not start: {why}")


def running(url: str, seconds: float = 2.0) -> bool:
    """Whether a labml server answers at `url` (its page's, or the one with /api/v1), within `seconds` a step."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url.rstrip('/').removesuffix(API)}{API}/auth/is_logged", timeout=seconds) as reply:
            answer = json.loads(reply.read(1000))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return isinstance(answer, dict) and "is_user_logged" in answer


if __name__ == "__main__":
    run_command(main)
