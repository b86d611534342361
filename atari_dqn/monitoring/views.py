"""Protocols of what the monitor writes to: views of the rows, the dashboard's page, and films to show."""

from collections.abc import Generator, Mapping
from typing import Any, Protocol, TypeVar

Row = dict[str, float]
"""`env_step`, `update`, `time` (seconds), and scalars named `group/name`."""
Result = TypeVar("Result")


def result_of(rows: Generator[Row, None, Result]) -> Result:
    """What a generator returns once all its rows are read."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            result: Result = end.value
            return result


class View(Protocol):
    """Shows rows of metrics somewhere."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class Page(View, Protocol):
    """A view that shows live hyperparameters and lets people edit them; `labml.link.LabmlLink` is one."""

    def poll(self) -> list[tuple[str, Any]]:
        """Edits requested since the last call: names and unchecked values."""

    def show(self, values: Mapping[str, float]) -> None:
        """Show the live values."""

    def answer(self, name: str, text: str) -> None:
        """Say beside a hyperparameter what became of its last edit."""

    def problem(self) -> str | None:
        """One line about the latest error, once; None when there is nothing new."""

    @property
    def dropped(self) -> int:
        """Number of rows that did not reach the page."""


class Film(Protocol):
    """A short film of a game; `render.clips.Clip` is one."""

    @property
    def env_step(self) -> int: ...

    @property
    def gif(self) -> bytes: ...

    @property
    def gif_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
