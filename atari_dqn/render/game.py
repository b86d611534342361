"""Rollout of one game in an environment that is watched: a decision, a step and the score so far at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from atari_dqn.envs.film import FilmedEnv
from atari_dqn.evaluation.player import Player
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.render.overlay import Decision


def play(
    policy: TrainedNetwork,
    env: FilmedEnv,
    epsilon: float,
    seed: int,
    on_decision: Callable[[Decision], None] = lambda decision: None,
) -> Iterator[tuple[float, int]]:
    """Play one game epsilon-greedily. The same arguments give the same game, filmed or not.

    Args:
        policy: the network that plays.
        env: the environment, which shows its pictures while it steps.
        epsilon: probability of a random action.
        seed: of the game and of the random actions.
        on_decision: called with each decision before the environment takes it.

    Yields:
        The raw score so far and the number of environment steps, after each of them.
    """
    device = next(policy.network.parameters()).device
    player = Player(policy.network, policy.spec, 1, epsilon=epsilon, seed=seed, device=device)
    frame, over = env.reset(seed), False
    for env_step in itertools.count(1):
        action = int(player.act(frame[None], np.array([over]))[0])
        on_decision(Decision(player.q[0].cpu().numpy(), action, bool(player.explored[0])))
        frame, _, over = env.step(action)
        yield env.score, env_step
        if over:
            return
