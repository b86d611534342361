"""atari_dqn: a prioritized, dueling, double DQN fed by many worker processes.

`Policy` is for other people's programs. It is imported when it is asked for: a worker process imports `atari_dqn.envs`
and must not pay for more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atari_dqn.policy.policy import Policy

__all__ = ["Policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Policy":
        from atari_dqn.policy.policy import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
