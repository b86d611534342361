"""The plain loop: its updates equal those of our learner, and it finds the first game with a given return."""

from __future__ import annotations

import numpy as np
import torch

from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.replay.base import Batch
from benchmarks.plain_learner import FixedReplay, Spec
from experiments.cartpole_pytorch_tutorial import CONFIG
from experiments.claims import plain_loop

SPEC = Spec(kind="vector", frame_shape=(4,), stack=1, num_actions=2)


def test_its_update_is_the_learners() -> None:
    batch_size, settings = CONFIG.learner.batch_size, CONFIG.learner
    generator = np.random.default_rng(1)
    obs, next_obs = generator.normal(size=(2, batch_size, 4)).astype(np.float32)
    actions, over = generator.integers(2, size=(2, batch_size))
    rewards = generator.normal(size=batch_size).astype(np.float32)
    drawn = Batch(
        obs=torch.from_numpy(obs)[:, None],
        actions=torch.from_numpy(actions),
        returns=torch.from_numpy(rewards),
        discounts=CONFIG.replay.gamma * torch.from_numpy(1.0 - over).float(),
        next_obs=torch.from_numpy(next_obs)[:, None],
        weights=torch.ones(batch_size),
        ids=torch.arange(batch_size),
    )
    learner = Learner(
        lambda: make_network(SPEC, CONFIG.network), FixedReplay([drawn]), settings, seed=1, device=torch.device("cpu")
    )
    online, target = plain_loop.make_network(), plain_loop.make_network()
    for network in (online, target):
        for mine, theirs in zip(network.parameters(), learner.online.parameters(), strict=True):
            mine.data.copy_(theirs)
    begin = [weight.clone() for weight in online.parameters()]
    optimizer = plain_loop.make_optimizer(online)
    rows = list(zip(obs, actions.tolist(), rewards.tolist(), next_obs, over.astype(bool).tolist(), strict=True))
    for _ in range(50):
        learner.update()
        plain_loop.update(online, target, optimizer, rows)
    for network, ours in ((online, learner.online), (target, learner.target)):
        for mine, theirs, before in zip(network.parameters(), ours.parameters(), begin, strict=True):
            assert (mine - theirs).norm() <= 1e-3 * (theirs - before).norm()


def test_the_first_game_with_the_return_asked_for() -> None:
    first = plain_loop.first_whole_game(seed=1, games=30, mark=40)
    assert first is not None
    game, env_steps = first
    assert plain_loop.first_whole_game(seed=1, games=game, mark=40) == first
    assert plain_loop.first_whole_game(seed=1, games=game - 1, mark=40) is None
    assert env_steps >= 40 + 8 * (game - 1), "no game of CartPole is shorter than 8 steps"
