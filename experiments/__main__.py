"""`python -m experiments`: a table of the experiments with their expected score and duration.

`python -m experiments NAME` prints the description of one. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import tyro

import experiments
from atari_dqn.cli.command import DONE, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List the experiments with their expected score and duration. `python -m experiments.NAME` runs one."""

    name: Annotated[
        str, tyro.conf.Positional, Setting("experiment to describe in full: source, settings, measured result")
    ] = ""


def main(argv: Sequence[str] | None = None, prog: str = "python -m experiments") -> int:
    """List all experiments or describe one. Returns the exit code; raises `ConfigError` for an unknown name."""
    name = parse_flags(ListCommand, argv, prog=prog).name
    found, console = all_experiments(), open_console()
    if not name:
        console.print(_table(found))
    elif name in found:
        say(console, (found[name].__doc__ or "").strip())
    else:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{prog} lists all"
        raise ConfigError(f"unknown experiment {name}; {hint}")
    return DONE


def all_experiments() -> dict[str, ModuleType]:
    """Every module of this package that defines a `CONFIG`, by name, in alphabetical order."""
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.name.startswith("__")]
    modules = {name: importlib.import_module(f"experiments.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "CONFIG")}


def _table(found: dict[str, ModuleType]) -> object:
    from rich.table import Table

    table = Table(caption="python -m experiments NAME describes one, python -m experiments.NAME runs it")
    for column in ("name", "expected", "takes"):
        table.add_column(column, style="bold" if column == "name" else "", no_wrap=column == "name")
    for name, module in found.items():
        table.add_row(name, module.EXPECTED, module.TAKES)
    return table


if __name__ == "__main__":
    run_command(main)
