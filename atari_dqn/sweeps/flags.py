"""Flags of `sweep`: every setting of `train`, each with one or several values."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, flag, settings


@functools.cache
def sections() -> dict[str, type]:
    """The sections of `TrainConfig` by name, with a tuple of values in place of each setting; empty if not given.

    A setting that is a list by itself, such as `epsilon_values`, stays one list.
    """
    hints = typing.get_type_hints(TrainConfig)
    return {field.name: _several(hints[field.name]) for field in dataclasses.fields(TrainConfig)}


def _several(section: type) -> type:
    fields: list[Any] = []
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        if name == "run_dir":
            continue
        kind, *extras = typing.get_args(hint)
        setting = next(extra for extra in extras if isinstance(extra, Setting))
        if typing.get_origin(kind) is not tuple:
            kind = tuple[kind, ...]  # type: ignore[valid-type]
        note = tyro.conf.arg(help=setting.describe(), help_behavior_hint="")
        fields.append((name, Annotated[kind, setting, note], dataclasses.field(default=())))
    several = dataclasses.make_dataclass(section.__name__, fields, frozen=True, kw_only=True)
    several.__doc__ = section.__doc__
    return several


def spelled_out(argv: Sequence[str]) -> list[str]:
    """`argv` with a value for each switch, as `train` takes them: `--deterministic`, `--no-dueling`.

    Raises `ConfigError` for a setting that is given without a value.
    """
    defaults = TrainConfig().to_dict()
    words: list[str] = []
    for index, word in enumerate(argv):
        name = word.removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        bare = index + 1 == len(argv) or re.match(r"--\w", argv[index + 1]) is not None
        positive = name.removeprefix("no_")
        if type(defaults.get(positive)) is bool and (bare or positive != name):
            words += [flag(positive), str(positive == name)]
            continue
        if bare and name in defaults:
            raise ConfigError(f"{word} has no value; give one, or several for a run of each")
        words.append(word)
    return words


def given(command: Any) -> dict[str, list[Any]]:
    """Values of the settings that were given, by flat name. Raises `ConfigError` for one out of bounds."""
    found: dict[str, list[Any]] = {}
    bounds = settings(TrainConfig)
    for section in sections():
        for name, values in vars(getattr(command, section)).items():
            bounds[name].check(name, values)
            if values:
                found[name] = [list(values)] if isinstance(TrainConfig().to_dict()[name], list) else list(values)
    return found
