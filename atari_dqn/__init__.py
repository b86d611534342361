"""atari_dqn: a prioritized, dueling, double DQN fed by many worker processes.

`train`, `training`, `Run`, `Policy` and `ConfigError` are for programs; see docs/python.md. They are imported on first
use: worker processes import `atari_dqn.envs` and must not pay for them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atari_dqn.api import Run, train, training
    from atari_dqn.config.setting import ConfigError
    from atari_dqn.policy.policy import Policy

__all__ = ["ConfigError", "Policy", "Run", "train", "training"]
__version__ = "0.1.0"

_HOMES = {"ConfigError": "config.setting", "Policy": "policy.policy"} | dict.fromkeys(
    ("Run", "train", "training"), "api"
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"atari_dqn.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import of the command `train` or the package `training` would put the module in the function's place.
        if name not in _HOMES:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
