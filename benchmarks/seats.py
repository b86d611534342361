"""Contestants of a benchmark that take turns, each in a process of its own.

Allocator settings, threads and caches of one do not affect the others, and each waits while the others are measured.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Kinds = dict[str, Callable[[float], Any]]
"""Kinds of turns a contestant can take: each maps a length in seconds to a result, usually a `measure.Turn`."""


class Seat:
    """A contestant in a process of its own."""

    def __init__(self, contestant: Callable[..., contextlib.AbstractContextManager[Kinds]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_sit, args=(theirs, contestant, arguments))
        self._process.start()
        theirs.close()
        self.kinds: list[str] = self._answer()

    def turn(self, kind: str, seconds: float) -> Any:
        self._pipe.send((kind, seconds))
        return self._answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise SystemExit(f"error: a contestant ended with exit code {self._process.exitcode}") from None


def _sit(pipe: Connection, contestant: Callable[..., contextlib.AbstractContextManager[Kinds]], arguments: Any) -> None:
    with contestant(*arguments) as kinds, contextlib.suppress(EOFError):
        pipe.send(list(kinds))
        while True:
            kind, seconds = pipe.recv()
            pipe.send(kinds[kind](seconds))
