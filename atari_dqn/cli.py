"""How every command begins and ends: argv in, a parsed dataclass out, and one exit code for each kind of ending.

Exit codes: 0 done; 1 a failure that is not the user's; 2 the user's input was wrong, said in one line; 3 interrupted
with the state saved. Nothing here imports torch, so that bad input is answered at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

import tyro

from atari_dqn.config import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

Schema = TypeVar("Schema")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3


class CommandFailed(Exception):
    """A failure with an explanation for the user; the message is printed without a traceback, exit code 1."""


def parse(schema: type[Schema], argv: Sequence[str] | None, *, prog: str, default: Schema | None = None) -> Schema:
    """Read `argv` (None: the process's own) into `schema`. Wrong flags end the process with a short box and code 2."""
    if default is None:
        return tyro.cli(schema, args=argv, prog=prog)
    return tyro.cli(schema, args=argv, prog=prog, default=default)


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Call `command` and end the process with its exit code; `ConfigError` becomes one line and code 2."""
    try:
        sys.exit(command() or DONE)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except CommandFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Drop what cannot be printed, the disk under it being full.

    Else whoever flushes next fails of it: the start of a process, or Python's end, with an exit code of its own.
    """
    if sys.stdout is None:  # closed before Python began
        return
    try:
        sys.stdout.flush()
    except OSError:
        output = sys.stdout.fileno()
        kept, nowhere = os.dup(output), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        sys.stdout.flush()
        os.dup2(kept, output)
        os.close(kept)
        os.close(nowhere)


def console() -> Console:
    """Where a command talks to the user. Paths are printed as they are.

    A reader that leaves ends nothing, nor does a full disk under the file that the output goes to.
    """
    from rich.console import Console

    class Steady(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the process here, and a training with it, because `| head` or a pager was closed.
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        def _write_buffer(self) -> None:
            try:
                super()._write_buffer()
            except BrokenPipeError:
                raise
            except OSError:
                self._buffer.clear()
                _let_go_of_output()

    return Steady(markup=False)
