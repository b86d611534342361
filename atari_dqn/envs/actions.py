"""An env's id flows in; what each of its actions is called flows out."""

from __future__ import annotations

import gymnasium as gym

from atari_dqn.envs.make import EnvSpec, Protocol

CLASSICS = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "coast", "right"),
    "Acrobot": ("torque -1", "torque 0", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
}
"""As gymnasium's pages describe them: these envs do not tell the names themselves."""


def action_names(spec: EnvSpec, protocol: Protocol) -> tuple[str, ...]:
    """The `num_actions` names, in order: the console's (NOOP, FIRE, ...), an env's own, or `action 0`, `action 1`..."""
    modes = {"full_action_space": protocol.full_action_space} if spec.is_atari else {}
    env = gym.make(spec.env_id, disable_env_checker=True, **modes)
    tell = getattr(env.unwrapped, "get_action_meanings", None)
    names = tell() if tell is not None else CLASSICS.get(spec.env_id.split("-v")[0], ())
    env.close()
    if len(names) != spec.num_actions:
        return tuple(f"action {action}" for action in range(spec.num_actions))
    return tuple(map(str, names))
