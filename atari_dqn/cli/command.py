"""How every command starts and ends: flags parsed into a dataclass, and an exit code for each kind of end.

Exit codes: 0 done; 1 a failure that is not the user's; 2 wrong input, explained in one line; 3 interrupted with the
state saved. Nothing here imports torch, so that bad input is answered at once.
"""

from __future__ import annotations

import errno
import inspect
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from atari_dqn.cli.output import release_output
from atari_dqn.config.setting import ConfigError, settings

Schema = TypeVar("Schema")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3


class CommandFailed(Exception):
    """A failure explained to the user: the message is printed without a traceback; exit code 1."""


def parse_flags(
    schema: type[Schema], argv: Sequence[str] | None, *, prog: str, default: Schema | None = None
) -> Schema:
    """Parse `argv` (None: the process's own) into `schema`, and check the bounds of its settings.

    An unknown flag or a value of another type ends the process with a short box and code 2; a value out of bounds
    raises `ConfigError`.
    """
    import tyro  # here, for doctor must run without it

    named: dict[str, Any] = {} if default is None else {"default": default}
    command: Schema = tyro.cli(schema, args=argv, prog=prog, description=_description(schema), **named)
    for name, setting in settings(schema).items():
        if hasattr(command, name):  # the settings of a section are for `TrainConfig.validate`
            setting.check(name, getattr(command, name))
    return command


def _description(schema: type) -> str:
    """The docstring, wrapped. tyro would join its lines, except those that begin with a space."""
    paragraphs = inspect.cleandoc(schema.__doc__ or "").split("\n\n")
    width = shutil.get_terminal_size().columns
    wrap = textwrap.TextWrapper(width, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return "\n".join(map(wrap.fill, paragraphs))


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
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on Python would print a traceback
        release_output()
