"""labml's own server, kept to this machine, with our page and behind our guard."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import logging.handlers
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml.guard import App, Guard
from atari_dqn.labml.launch import GOODBYE_SECONDS
from atari_dqn.labml.page import PACKAGES, Packages, PageError, localise

LABML_APP = "0.0.102"


def default_data_dir() -> Path:
    return _user_dir("XDG_DATA_HOME", ".local/share") / "dashboard"


def _user_dir(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / usual) / "atari_dqn"


def check_installed() -> None:
    command = f'python -m pip install "labml-app=={LABML_APP}" requests'
    try:
        found = importlib.metadata.version("labml-app")
        importlib.metadata.version("requests")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the dashboard needs {error.name}, which is not installed: {command}") from None
    if found != LABML_APP:
        raise ConfigError(f"labml-app is {found}; only {LABML_APP} tunes live without a database: {command}")


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; name another one, or 0 for any") from None
        yield listener


@contextlib.contextmanager
def held(data_dir: Path) -> Iterator[None]:
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


def make_app(port: int, data_dir: Path) -> App:
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


def serve(app: App, listener: socket.socket) -> None:

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
