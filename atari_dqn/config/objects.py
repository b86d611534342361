"""Functions and classes as settings: kept as `module:name`, which other processes import."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.config.setting import ConfigError, flag

if TYPE_CHECKING:
    from atari_dqn.config.schema import TrainConfig

_received: dict[str, Any] = {}
"""Objects by name that another process sent, which may not be importable here: a notebook's, or local ones"""
_given: dict[Path, dict[str, Given]] = {}
"""Those that were given in this process, by run: two closures may have the same name"""
_used: set[str] = set()
"""Names that settings had in this process"""


class Given(str):
    """The name of an object that was given in this process, with the object. Pickled it is the name alone."""

    thing: Any

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, (str(self),)

    def __deepcopy__(self, memo: object) -> Given:
        return self


def name_of(thing: Any) -> str:
    """The name under which `named` returns `thing`; text is a name already. Raises `ConfigError`."""
    if isinstance(thing, str):
        return thing
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or module is None or name is None:
        raise ConfigError(f"{thing!r:.60} has no name to keep; try a function, a class or the text module:name")
    given = Given(f"{module}:{re.sub(r'[<>]', '', name)}")
    given.thing = thing
    _used.add(str(given))
    return given


def remember(run_dir: Path, config: TrainConfig) -> None:
    """Keep the objects that were given for a run; a process that has not got them cannot use it."""
    given = {str(name): name for name in config.to_dict().values() if isinstance(name, Given)}
    if given:
        _given[run_dir.resolve()] = given


def recall(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """The settings of a run, as they were read, with the objects that were given for it in this process."""
    given, settings = _given.get(run_dir.resolve(), {}), config.to_dict()
    return config.replace(**{name: given[value] for name, value in settings.items() if str(value) in given})


def named(setting: str, name: str) -> Any:
    """The object `module:name` of a setting. Raises `ConfigError` if it was not given and cannot be imported."""
    if isinstance(name, Given):
        return name.thing
    if name in _received:
        return _received[name]
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise ConfigError(
            f"{flag(setting)} {name}: cannot import it ({type(error).__name__}: {error}); if a script or a notebook has"
            f" it, give it there again: atari_dqn.train({setting}=...)"
        ) from None
    _used.add(name)
    return found


def in_use(name: str) -> bool:
    """Whether this process was given the object or has used it already."""
    return name in _received or name in _used


def sendable(*names: str) -> dict[str, Any]:
    """Those of `names` that were given in this process, for `receive` in another one."""
    return {str(name): name.thing for name in names if isinstance(name, Given)}


def receive(objects: dict[str, Any]) -> None:
    """Take what `sendable` returned in the process that sent it."""
    _received.update(objects)
