"""How every command starts and ends: flags parsed into a dataclass, and an exit code for each kind of end.

Exit codes: 0 done; 1 a failure that is not the user's; 2 wrong input, explained in one line; 3 interrupted with the
state saved. Nothing here imports torch, so that bad input is answered at once.
"""

import inspect
import io
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import atari_dqn
from atari_dqn.cli.output import output_is_closed, release_output
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
    if {"--version", "-V"} & {*(sys.argv[1:] if argv is None else argv)}:
        print(f"atari_dqn {atari_dqn.__version__}")
        sys.exit(DONE)

    import tyro  # here, for doctor must run without it
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    # No shell expands the `~` in `--run-dir=~/run`.
    readers: dict[Any, Callable[[str], Any]] = {int: whole, Path: lambda text: Path(os.path.expanduser(text))}

    @registry.primitive_rule
    def read(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type not in readers:
            return None
        name, reader = info.type.__name__.upper(), readers[info.type]
        fits = lambda value: isinstance(value, info.type) and not isinstance(value, bool)  # noqa: E731
        return PrimitiveConstructorSpec(1, name, lambda texts: reader(texts[0]), fits, lambda value: [str(value)])

    named: dict[str, Any] = {"description": _description(schema), "registry": registry}
    if default is not None:
        named["default"] = default
    command: Schema = tyro.cli(schema, args=argv, prog=prog, **named)
    for name, setting in settings(schema).items():
        if hasattr(command, name):  # the settings of a section are for `TrainConfig.validate`
            setting.check(name, getattr(command, name))
    return command


def whole(text: str) -> int:
    """The whole number that is written as `200000`, `200_000` or `2e5`. Raises `ValueError`."""
    if "." not in text and "e" not in text.lower():
        return int(text)
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text} is not a whole number")
    return int(number)


def _description(schema: type) -> str:
    """The docstring, wrapped. tyro would join its lines, except those that begin with a space."""
    paragraphs = inspect.cleandoc(schema.__doc__ or "").split("\n\n")
    width = shutil.get_terminal_size().columns
    wrap = textwrap.TextWrapper(width, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return "\n".join(map(wrap.fill, paragraphs))


def typed(program: str = "") -> str:
    """How the user starts a program of this Python's environment, or this Python: by its name where the shell finds
    this one, else by its path. Debian has no `python`, and an environment need not be activated.
    """
    python = Path(sys.executable or "python")
    own = python.with_name(program or python.name)
    if not own.exists() or shutil.which(own.name) == str(own):
        return own.name
    here = Path.cwd()
    return shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own))


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Call `command` and end the process with its exit code; `ConfigError` becomes one line and code 2.

    A character that the output's encoding lacks is replaced, and a reader that has seen enough (`| head`) is no error.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (None where it is closed)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(command() or DONE)
    except BrokenPipeError:
        if not output_is_closed():
            raise
        sys.exit(DONE)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except CommandFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on Python would print a traceback
        release_output()
