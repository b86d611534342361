"""The trainer's end of the reports to a labml server: rows and live values go in, edits come out.

A process of its own does the talking (`labml_side`). Nothing here waits for it, raises, or grows: a message is
handed to the kernel or, when its buffer is full, dropped and counted.
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

from atari_dqn.config.setting import ConfigError
from atari_dqn.labml import http as labml_http
from atari_dqn.labml import reporter as labml_side
from atari_dqn.labml.client import Introduction, LiveSlider
from atari_dqn.system.processes import quiet_spawn

EXIT_SECONDS = 4.7
"""Seconds that `close` waits for the side process, which itself gives up sooner, before it is killed."""
EDITS_KEPT = 1_000


class LiveParam(Protocol):
    """What the page needs of a live hyperparameter."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> type:
        """`float` or `int`"""

    @property
    def suggested(self) -> tuple[float, float]:
        """the slider's range"""


def check_url(url: str) -> str:
    """The address of the labml API meant by `url`. Raises `ConfigError` unless it is a plain http or https address."""
    try:
        return labml_http.check_url(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None


Param = TypeVar("Param", bound=LiveParam)


class LabmlLink:
    """Reports one run to the labml server at `url` from a side process; a view for the monitor.

    `live` gives each live hyperparameter its present value, a number; `env_step` is where the run begins or goes on.
    The revision told is that of the git `repository`. Every link is a new run on the server.
    Raises `ConfigError` for a URL that `check_url` refuses; whatever the server does, nothing else is ever raised.
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
        """the run's name on the server"""
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
        # Unlike a pipe's, its messages go whole or not at all.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        process = multiprocessing.get_context("spawn").Process(
            target=labml_side.serve, args=(theirs, introduction), name="labml-side", daemon=True
        )
        with theirs, quiet_spawn():
            process.start()
        self.process = process
        # Runs once: at close, or before multiprocessing would join the process at exit.
        self._end = util.Finalize(self, _end, args=(self._channel, process, introduction.directory), exitpriority=10)
        self._unshown: dict[str, float] = {}
        self._edits: list[tuple[str, Any]] = []
        self._problem: str | None = None
        self._dropped_here = self._dropped_there = 0

    def write(self, row: Mapping[str, float]) -> None:
        """Hand over a row: `env_step`, and the scalars named `a/b`, which are what the page shows."""
        try:
            message = labml_side.ROW + json.dumps(row, default=float).encode()
        except (TypeError, ValueError):
            self._dropped_here += 1
            return
        if not self._send(message):
            self._dropped_here += 1

    def show(self, values: Mapping[str, float]) -> None:
        """Let the page show these values of live hyperparameters: after each edit, taken or refused, from anywhere."""
        self._unshown.update((name, value) for name, value in values.items() if _is_number(value))
        self._show()

    def poll(self) -> list[tuple[str, Any]]:
        """The edits asked for on the page since the last call: names and values as they came in JSON, unchecked.

        Numbers from the real server are floats, those for whole numbers too. Costs microseconds.
        """
        self._receive()
        edits, self._edits = self._edits, []
        return edits

    @property
    def dropped(self) -> int:
        """Points (rows) that never reached the server, since it was away or too slow; final after `close`."""
        self._receive()
        return self._dropped_here + self._dropped_there

    def problem(self) -> str | None:
        """One line about the latest trouble, once; None when there is none or it was told."""
        self._receive()
        problem, self._problem = self._problem, None
        return problem

    def close(self) -> None:
        """Send what is left and end the side process, within 5 s whatever the server does. A second time: nothing."""
        self._receive()
        self._end()
        self._receive()
        self._channel.close()

    def _show(self) -> None:
        if self._unshown and self._send(labml_side.SHOW + json.dumps(self._unshown).encode()):
            self._unshown = {}

    def _send(self, message: bytes) -> bool:
        if len(message) > labml_side.MESSAGE_BYTES:
            return False
        try:
            self._channel.send(message)
        except OSError:  # no room, too large, or nobody there any more
            return False
        return True

    def _receive(self) -> None:
        self._show()
        while True:
            try:
                message = self._channel.recv(labml_side.MESSAGE_BYTES)
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
        channel.settimeout(EXIT_SECONDS / 2)  # for a side process that does not even read
        channel.send(labml_side.CLOSE)
    with contextlib.suppress(OSError):
        channel.setblocking(False)
    process.join(max(0.0, deadline - time.monotonic()))
    process.kill()
    process.join()
    shutil.rmtree(directory, ignore_errors=True)
