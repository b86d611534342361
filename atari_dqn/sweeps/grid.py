"""From settings with several values to the runs of a sweep: games times seeds times settings, each with a name."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atari_dqn.config.file import from_dict
from atari_dqn.config.presets import Preset, auto, settings_of
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag, settings
from atari_dqn.envs.ids import is_atari, short_name
from atari_dqn.envs.make import resolve_env, resolve_env_id
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.sweeps.members import Member
from atari_dqn.system.machine import usable_cores

LONGEST = 150
"""Most bytes of a name; a directory's may have 255"""


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to vary."""

    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of every run; all others are the preset's"""
    axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    """Values of the settings that vary, each combined with each"""
    variants: Sequence[Mapping[str, Any]] = ({},)
    """Settings that vary together, with a `name`"""
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Ranges and choices of the settings that a search draws"""
    preset: Preset = "paper"
    """What the settings of Atari games begin with"""


def read_grid(file: Path) -> Grid:
    """Read a TOML file. Raises `ConfigError` naming what is wrong in it."""
    try:
        tables = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"--file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--file {file} is not TOML: {error}") from None
    try:
        return Grid(
            base=_table(tables, "base"),
            axes={name: _values(name, values) for name, values in _table(tables, "grid").items()},
            variants=list(_variants(tables.pop("variant", [{}]))),
            search={name: _range(name, wanted) for name, wanted in _table(tables, "search", rest=True).items()},
        )
    except ConfigError as error:
        raise ConfigError(f"--file {file}: {error}") from None


def _table(tables: dict[str, Any], name: str, *, rest: bool = False) -> dict[str, Any]:
    table = tables.pop(name, {})
    if rest and tables:
        raise ConfigError(f"unknown table {next(iter(tables))!r}; it takes [base], [grid], [[variant]] and [search]")
    if not isinstance(table, dict):
        raise ConfigError(f"{name} is not a table; write [{name}] above its settings")
    for setting, value in table.items():
        _check_name(setting)
        if name == "base":
            _check_value(setting, value)
    return table


def _check_name(name: str) -> None:
    if name not in settings(TrainConfig) or name == "run_dir":
        raise ConfigError(f"unknown setting {name!r}; train --help lists them")


def _values(name: str, values: Any) -> list[Any]:
    a_list = isinstance(TrainConfig().to_dict()[name], list)
    if not isinstance(values, list) or not values or (a_list and not isinstance(values[0], list)):
        what = "a list of lists, one for each run" if a_list else "a list with a value for each run"
        raise ConfigError(f"{name} in [grid] must be {what}")
    for value in values:
        _check_value(name, value)
    return values


def _variants(tables: Any) -> Iterator[dict[str, Any]]:
    if tables == []:
        raise ConfigError("variant is empty, so there is nothing to run; leave it out, or write a [[variant]] for each")
    for table in tables if isinstance(tables, list) else [tables]:
        if not isinstance(table, dict) or (table and not isinstance(table.get("name"), str)):
            raise ConfigError('each [[variant]] needs a name and its settings, such as name = "three-step"')
        for setting in table.keys() - {"name"}:
            _check_name(setting)
            _check_value(setting, table[setting])
        yield table


def _range(name: str, wanted: Any) -> Any:
    """A list of choices, or `{"low": ..., "high": ..., "log": ...}` within the bounds of the setting `name`."""
    if name in ("env_id", "seed"):
        raise ConfigError(f"{name} cannot be in [search], for scores would not compare; give it in [base]")
    if isinstance(wanted, list) and wanted:
        for value in wanted:
            _check_value(name, value)
        return wanted
    numbers = isinstance(TrainConfig().to_dict()[name], (int, float)) and isinstance(wanted, dict)
    if not numbers or not {"low", "high"} <= wanted.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{name} in [search] must be a list of choices, or {{low = ..., high = ..., log = true}}")
    for end in ("low", "high"):
        _check_value(name, wanted[end])
    if not isinstance(wanted.get("log", False), bool):
        raise ConfigError(f"{name} in [search]: log must be true or false")
    if not wanted["low"] < wanted["high"] or (wanted.get("log") and not wanted["low"] > 0):
        raise ConfigError(f"{name} in [search]: low must be below high, and above 0 with log = true")
    return wanted


def _check_value(name: str, value: Any) -> None:
    typed = from_dict({name: value}).to_dict()[name]
    settings(TrainConfig)[name].check(name, tuple(typed) if isinstance(typed, list) else typed)


def members_of(grid: Grid) -> tuple[list[Member], dict[str, EnvSpec]]:
    """The runs of a grid, those of the first seed first, and the environment of each by its name.

    Makes one environment of each game. Raises `ConfigError` for the first setting that is wrong, or if two runs have
    one name.
    """
    members: list[Member] = []
    specs: dict[str, EnvSpec] = {}
    known: dict[Any, EnvSpec] = {}
    axes = {"seed": [grid.base.get("seed", TrainConfig().run.seed)], **grid.axes}
    for values in itertools.product(*axes.values(), grid.variants):
        drawn = dict(zip(axes, values, strict=False))
        variant = dict(values[-1])
        label = variant.pop("name", "")
        asked = {**grid.base, **drawn, **variant}
        config = from_dict({**_beginning(grid.preset, from_dict(asked)), **asked}).validate()
        config, spec = _resolved(config, known)
        vary = {name: value for name, value in drawn.items() if len(axes[name]) > 1 and name not in ("seed", "env_id")}
        parts = [short_name(config.env.env_id.rpartition(":")[2]), *([label] if label else [])]
        name = f"{'-'.join([*map(_plain, parts), *itertools.starmap(_part, vary.items())])}/seed-{config.run.seed}"
        if name in specs:
            raise ConfigError(f"two runs have the name {name}; remove values given twice, or name them as [[variant]]s")
        if len(os.fsencode(name)) > LONGEST:
            raise ConfigError(f"the name {name[:40]}... is too long; give such settings a short name in a [[variant]]")
        members.append(Member(name, config.replace(run_dir=None)))
        specs[name] = spec
    return members, specs


def _beginning(preset: Preset, asked: TrainConfig) -> dict[str, Any]:
    """Settings with which a run begins that is `asked` for. Raises `ConfigError` for one that the preset is not for."""
    if preset == "paper":
        return {}
    if is_atari(resolve_env_id(asked.env.env_id)):
        name = auto(asked.run.device) if preset == "auto" else preset
        return settings_of(name, usable_cores(), max(1, asked.run.total_env_steps), alone=False).to_dict()
    if preset != "auto":
        raise ConfigError(f"--preset {preset} is for Atari games; leave it out for {asked.env.env_id}")
    return {}


def specs_of(members: Sequence[Member]) -> dict[str, EnvSpec]:
    """The environment of each member by its name. Raises `ConfigError` if one cannot be made."""
    known: dict[Any, EnvSpec] = {}
    return {member.name: _resolved(member.config, known)[1] for member in members}


def _resolved(config: TrainConfig, known: dict[Any, EnvSpec]) -> tuple[TrainConfig, EnvSpec]:
    key = (config.env, bool(config.run.record_interval))
    if key not in known:
        known[key] = resolve_env(config)[1]
    return config.replace(env_id=known[key].env_id), known[key]


def _part(name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return _plain("-".join([name, *(f"{each:g}" if isinstance(each, float) else str(each) for each in values)]))


def _plain(text: str) -> str:
    """`text` with characters that need no quotes in a shell."""
    return re.sub(r"[^\w.+-]+", "_", text)


def combined(grid: Grid, given: Mapping[str, Sequence[Any]]) -> Grid:
    """`grid` with settings that were given as flags, with one or several values, in place of its own."""
    for name in given:
        if name in grid.search or any(name in variant for variant in grid.variants):
            raise ConfigError(f"{flag(name)} varies in --file, too; give it in one place")
    base = {name: value for name, value in grid.base.items() if name not in given}
    axes = {name: values for name, values in grid.axes.items() if name not in given}
    return dataclasses.replace(grid, base=base, axes={**axes, **given})
