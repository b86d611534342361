"""atari_dqn: a prioritized, dueling, double DQN fed by many worker processes.

`Policy`, a trained agent for other programs, is imported on first use: worker processes import `atari_dqn.envs` and
must not pay for it.
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
