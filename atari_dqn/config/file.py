"""Reading `config.json`."""

import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from atari_dqn.config.objects import Given
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag


def load_config(file: Path) -> TrainConfig:
    """Read a `config.json` written by a run. Raises `ConfigError` naming what is missing, torn or unknown."""
    try:
        stored = json.loads(Path(file).read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise ConfigError(f"{file} holds no settings; a run's config.json is a JSON object")
    try:
        return from_dict(stored)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def from_dict(stored: Mapping[str, Any], default: TrainConfig | None = None) -> TrainConfig:
    """The inverse of `TrainConfig.to_dict`; settings that are absent are those of `default`. Raises `ConfigError`."""
    hints = {
        name: hint
        for section in typing.get_type_hints(TrainConfig).values()
        for name, hint in typing.get_type_hints(section).items()
    }
    changes = {name: _typed(name, hints[name], value) if name in hints else value for name, value in stored.items()}
    return (default or TrainConfig()).replace(**changes)


def _typed(name: str, hint: Any, value: Any) -> Any:
    """`value`, as JSON or Python gave it, as the type of the setting `name`. Raises `ConfigError`."""
    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        value = value.tolist()
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value in choices:
            return value
        raise ConfigError(f"{flag(name)} is {value!r}; it must be one of {', '.join(choices)}")
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, choices[0], element) for element in value)
    if hint == Path | None and (value is None or isinstance(value, str | Path)):
        return Path(value) if value else None
    if hint == float | None:
        return None if value is None else _typed(name, float, value)
    if hint is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():  # 1e6
        return int(value)
    if isinstance(hint, type) and (type(value) is hint or isinstance(value, Given)):
        return value
    words = f"a list of {choices[0].__name__}" if choices else hint.__name__
    raise ConfigError(f"{flag(name)} is {value!r:.60}; it must be {words}")
