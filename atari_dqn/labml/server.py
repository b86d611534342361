"""labml's own server on this machine's loopback address, with our page and behind our guard."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging.handlers
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml.http import API
from atari_dqn.labml.launch import SHUTDOWN_SECONDS
from atari_dqn.labml.page import PACKAGES, Packages, PageError, localise
from atari_dqn.system.files import exclusive

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LABML_APP = "0.0.102"


def user_dir(variable: str, default: str) -> Path:
    """The dashboard's folder in one of the user's directories, such as `~/.local/share`."""
    return Path(os.environ.get(variable) or Path.home() / default) / "atari_dqn" / "dashboard"


def check_labml_app() -> None:
    """Raise `ConfigError` with the pip command to run unless the right labml-app is installed."""
    command = f'python -m pip install "labml-app=={LABML_APP}" requests'
    try:
        found = importlib.metadata.version("labml-app")
        importlib.metadata.version("requests")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the dashboard needs {error.name}, which is not installed: {command}") from None
    if found != LABML_APP:
        raise ConfigError(f"labml-app is {found}; only {LABML_APP} tunes live without a database: {command}")


@contextlib.contextmanager
def listening_socket(port: int) -> Iterator[socket.socket]:
    """A socket that listens at `port` of the loopback address. Raises `ConfigError` if the port cannot be used."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; try another one, or 0 for any free port") from None
        yield listener


@contextlib.contextmanager
def locked_data_dir(data_dir: Path) -> Iterator[None]:
    """Create `data_dir` for this user alone (labml keeps pickles in it), and lock it. Raises `ConfigError`."""
    with contextlib.ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(exclusive(data_dir / ".lock"))
        except BlockingIOError:
            raise ConfigError(f"another dashboard uses {data_dir}; try another --data-dir") from None
        except OSError as error:
            raise ConfigError(f"--data-dir {data_dir}: {error.strerror}") from None
        yield


def make_app(port: int, data_dir: Path) -> ASGIApp:
    """Return labml's app with our page, behind our guards, and move this process to `data_dir`."""
    log = logging.handlers.RotatingFileHandler(data_dir / "server.log", maxBytes=2**20, backupCount=1, delay=True)
    logging.basicConfig(handlers=[log], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    os.environ.update(
        LABML_APP_SERVER_IP="127.0.0.1",
        LABML_APP_SERVER_PORT=str(port),
        GIT_PYTHON_REFRESH="quiet",  # or importing it fails where git is not installed
        GIT_DIR="/",  # it looks for its revision in the repository around it, and fails if that has no commit
    )
    os.chdir(data_dir)  # labml-app opens a log of its own in the working directory

    import labml.internal.computer.configs as labml_computer

    # The only thing that the server wants of it is the folder, which would be `~/.labml`.
    labml_computer._internal = SimpleNamespace(app_folder=data_dir)

    from labml_app.logger import logger as labml_logger

    labml_logger.handlers.clear()
    labml_logger.setLevel(logging.CRITICAL)  # it logs its revision and the like as errors

    from labml_app import flask_app

    from atari_dqn.labml.guard import guarded

    page = data_dir / "labml_app_page"
    try:
        content_security_policy = localise(flask_app.STATIC_PATH, page, _download_packages())
    except PageError as error:
        raise CommandFailed(f"cannot prepare the dashboard's page: {error}") from None
    flask_app.STATIC_PATH = page
    return guarded(with_answers(flask_app.app), port, content_security_policy)


def with_answers(app: ASGIApp) -> ASGIApp:
    """`app` with a place for the answers to edits, which a run sends and the page shows beside the fields."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    answers: dict[str, dict[str, str]] = {}

    async def endpoint(request: Request) -> JSONResponse:
        of_run = answers.setdefault(request.path_params["uuid"], {})
        if request.method == "PUT":
            of_run |= await request.json()
        return JSONResponse(of_run)

    return Starlette(routes=[Route(f"{API}/answers/{{uuid}}", endpoint, methods=["GET", "PUT"]), Mount("/", app)])


def page_packages() -> Packages:
    """The npm packages of the page, in the user's cache."""
    return Packages(user_dir("XDG_CACHE_HOME", ".cache"))


def _download_packages() -> Packages | None:
    """The page's packages, downloaded if need be; None, after a line that says why, if that fails."""
    packages = page_packages()
    if packages.missing():
        names = ", ".join(package.name for package in PACKAGES)
        print(f"downloading the page's packages ({names})", flush=True)
        try:
            packages.download()
        except PageError as error:
            print(f"{error}: the page needs the internet until a later start can download them", flush=True)
            return None
    return packages


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve `app` until a signal."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])
