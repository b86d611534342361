"""Functions and classes as settings: kept as `module:name`, which other processes import."""

import importlib
import re
from typing import Any

from atari_dqn.config.setting import ConfigError, flag

_given: dict[str, Any] = {}
"""Objects by name that were given in this process, which may not be importable: a notebook's, or local ones"""
_imported: set[str] = set()
"""Names that settings had in this process"""


def name_of(thing: Any) -> str:
    """The name under which `named` returns `thing` in this process; text is a name already. Raises `ConfigError`."""
    if isinstance(thing, str):
        return thing
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or module is None or name is None:
        raise ConfigError(f"{thing!r:.60} has no name to keep; try a function, a class or the text module:name")
    name = f"{module}:{re.sub(r'[<>]', '', name)}"
    _given[name] = thing
    return name


def named(setting: str, name: str) -> Any:
    """The object `module:name` of a setting. Raises `ConfigError` if it was not given and cannot be imported."""
    if name in _given:
        return _given[name]
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
    _imported.add(name)
    return found


def in_use(name: str) -> bool:
    """Whether this process was given the object or has used it already."""
    return name in _given or name in _imported


def sendable(*names: str) -> dict[str, Any]:
    """Those of `names` that were given in this process, for `receive` in another one."""
    return {name: _given[name] for name in names if name in _given}


def receive(objects: dict[str, Any]) -> None:
    """Take what `sendable` returned in the process that sent it."""
    _given.update(objects)
