"""The trainer's connection to the process that reports to a labml server.

Nothing here waits for that process, raises, or grows: a message is given to the kernel or, if its buffer is full,
dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from multiprocessing import util
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

from atari_dqn.labml.client import Introduction, LiveSlider
from atari_dqn.labml.http import check_url
from atari_dqn.labml.reporter import CLOSE, MESSAGE_BYTES, ROW, SHOW, run_reporter
from atari_dqn.system.processes import quiet_spawn

EXIT_SECONDS = 4.7
"""Time that `close` gives the reporter process, which itself gives up sooner, before killing it."""
EDITS_KEPT = 1_000
"""Number of edits that wait for `poll`; later ones are dropped."""


class LiveParam(Protocol):
    """What the page needs to know about a live hyperparameter."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> type:
        """`float` or `int`."""

    @property
    def suggested(self) -> tuple[float, float]:
        """Range of the slider."""


Param = TypeVar("Param", bound=LiveParam)


class LabmlLink:
    """Reports one run to a labml server through a process of its own; a view for the monitor.

    Every link is a new run on the server. Whatever the server does, no method raises.

    Args:
        url: The server, with or without `/api/v1`.
        name: The run's name on the page.
        config: The run's settings.
        live: The present value of each live hyperparameter.
        repository: The git repository whose revision is reported.
        env_step: The environment step at which the run starts or resumes.

    Raises:
        ConfigError: `url` is not a plain http or https address.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        config: Mapping[str, Any],
        live: Mapping[Param, float],
        repository: Path,
        env_step: int = 0,
    ) -> None:
        self.uuid = uuid.uuid4().hex
        """Identifier of the run on the server."""
        sliders = tuple(
            LiveSlider(param.name, param.kind is int, *param.suggested, value) for param, value in live.items()
        )
        introduction = Introduction(
            uuid=self.uuid,
            url=check_url(url),
            name=name,
            config=dict(config),
            live=sliders,
            repository=repository,
            env_step=env_step,
            directory=Path(tempfile.mkdtemp(prefix="atari_dqn-labml-")),
        )
        # Unlike a pipe, it sends a message as a whole or not at all.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        process = multiprocessing.get_context("spawn").Process(
            target=run_reporter, args=(theirs, introduction), name="labml-reporter", daemon=True
        )
        with theirs, quiet_spawn():
            process.start()
        self.process = process
        # Runs once, at `close` or at exit, where it must come before multiprocessing joins its children.
        self._end = util.Finalize(self, _end, args=(self._channel, process, introduction.directory), exitpriority=10)
        self._unshown: dict[str, float] = {}
        self._edits: list[tuple[str, Any]] = []
        self._problem: str | None = None
        self._dropped_here = self._dropped_there = 0

    def write(self, row: Mapping[str, float]) -> None:
        """Report a row: `env_step` and the scalars named `a/b`, which the page shows."""
        try:
            message = ROW + json.dumps(row, default=float).encode()
        except (TypeError, ValueError):
            self._dropped_here += 1
            return
        if not self._send(message):
            self._dropped_here += 1

    def show(self, values: Mapping[str, float]) -> None:
        """Show these values of live hyperparameters on the page; to be called after each edit, accepted or refused."""
        self._unshown.update((name, value) for name, value in values.items() if _is_number(value))
        self._show()

    def poll(self) -> list[tuple[str, Any]]:
        """Return the edits made on the page since the last call: names and values from JSON, unchecked.

        The real server sends whole numbers as floats, too. Takes microseconds.
        """
        self._receive()
        edits, self._edits = self._edits, []
        return edits

    @property
    def dropped(self) -> int:
        """Number of rows that never reached the server, since it was down or too slow; final after `close`."""
        self._receive()
        return self._dropped_here + self._dropped_there

    def problem(self) -> str | None:
        """Return one line about the latest problem; None if there is none or it was returned before."""
        self._receive()
        problem, self._problem = self._problem, None
        return problem

    def close(self) -> None:
        """Send what is left and end the reporter process, within 5 s. A second call does nothing."""
        self._receive()
        self._end()
        self._receive()
        self._channel.close()

    def _show(self) -> None:
        if self._unshown and self._send(SHOW + json.dumps(self._unshown).encode()):
            self._unshown = {}

    def _send(self, message: bytes) -> bool:
        if len(message) > MESSAGE_BYTES:
            return False
        try:
            self._channel.send(message)
        except OSError:  # no room, too long, or the process has ended
            return False
        return True

    def _receive(self) -> None:
        self._show()
        while True:
            try:
                message = self._channel.recv(MESSAGE_BYTES)
                if not message:
                    return
                self._take(json.loads(message))
            except (OSError, ValueError, RecursionError):
                return

    def _take(self, news: dict[str, Any]) -> None:
        if "edit" in news and len(self._edits) < EDITS_KEPT:
            name, value = news["edit"]
            self._edits.append((name, value))
        self._dropped_there = news.get("dropped", self._dropped_there)
        self._problem = news.get("problem", self._problem)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _end(channel: socket.socket, process: SpawnProcess, directory: Path) -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    with contextlib.suppress(OSError):
        channel.settimeout(EXIT_SECONDS / 2)  # in case the process does not read
        channel.send(CLOSE)
    with contextlib.suppress(OSError):
        channel.setblocking(False)
    process.join(max(0.0, deadline - time.monotonic()))
    process.kill()
    process.join()
    shutil.rmtree(directory, ignore_errors=True)
