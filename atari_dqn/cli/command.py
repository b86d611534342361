"""How every command starts and ends: flags parsed into a dataclass, and an exit code for each kind of end.

Exit codes: 0 done; 1 a failure that is not the user's; 2 wrong input, explained in one line; 3 interrupted with the
state saved. Nothing here imports torch, so that bad input is answered at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from atari_dqn.cli.output import release_output
from atari_dqn.config.setting import ConfigError, settings

Schema = TypeVar("Schema")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3


class CommandFailed(Exception):
    """A failure explained to the user: the message is printed without a traceback; exit code 1."""


def parse_flags(
    schema: type[Schema], argv: Sequence[str] | None, *, prog: str, default: Schema | None = None
) -> Schema:
    """Parse `argv` (None: the process's own) into `schema`. Wrong flags end the process with a short box and code 2.

    Raises `ConfigError` for a value out of its setting's bounds.
    """
    if default is None:
        command = tyro.cli(schema, args=argv, prog=prog)
    else:
        command = tyro.cli(schema, args=argv, prog=prog, default=default)
    for name, setting in settings(schema).items():
        if hasattr(command, name):  # a section is checked as a whole, with what it may be combined with
            setting.check(name, getattr(command, name))
    return command


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
        release_output()
