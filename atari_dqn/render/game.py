"""One game: a policy and an env to be watched flow in; every decision, and the score so far after it, flow out.

torch is imported when a game begins, not before: commands that use this answer bad input at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atari_dqn.envs.film import FilmedEnv
    from atari_dqn.policy.trained import TrainedNetwork
    from atari_dqn.render.overlay import Decision


def play(
    policy: TrainedNetwork,
    env: FilmedEnv,
    epsilon: float,
    seed: int,
    on_decision: Callable[[Decision], None] = lambda decision: None,
) -> Iterator[tuple[float, int]]:
    """Play one game epsilon-greedily. Yields the raw score so far and the env steps, after each of them.

    `on_decision` is called with each decision before the env takes it. The same policy, env and arguments make the
    same game, filmed or not.
    """
    import numpy as np
    import torch

    from atari_dqn.agent.actor import Actor
    from atari_dqn.render.overlay import Decision
    from atari_dqn.replay.ring import FrameRing

    spec, device = policy.spec, next(policy.network.parameters()).device
    actor = Actor(lambda q: q, spec.num_actions, seed=seed)  # it acts on Q values that are wanted as well
    dtype = torch.from_numpy(np.empty(0, dtype=spec.frame_dtype)).dtype
    # The stacks are those of training because the ring that makes them is.
    ring = FrameRing(spec.stack + 2, 1, spec.frame_shape, dtype, spec.stack, 1, device)
    ring.append(env.reset(seed)[None], last=[False])
    for env_step in itertools.count(1):
        with torch.inference_mode():
            q = policy.network(ring.latest_observation())
        actions = actor.act(q, epsilon)
        action = int(actions[0])
        on_decision(Decision(q[0].cpu().numpy(), action, bool(actor.explored[0])))
        frame, reward, over = env.step(action)
        ring.append(frame[None], last=[over], actions=actions, rewards=[reward], terminal=[over])
        yield env.score, env_step
        if over:
            return
