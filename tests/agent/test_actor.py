"""Epsilon-greedy actions: independent draws, a stream that does not depend on epsilon, greedy is argmax."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atari_dqn.agent.actor import Actor


class Preset(nn.Module):
    """Q values that the observation itself spells out: [N, A] in, the same out. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, obs: Tensor) -> Tensor:
        self.calls += 1
        return obs


def greedy_zero(num_envs: int, num_actions: int) -> Tensor:
    return -torch.arange(float(num_actions)).expand(num_envs, num_actions)


def test_envs_explore_independently() -> None:
    steps, envs, actions = 10_000, 8, 1_000
    actor = Actor(Preset(), actions, seed=1)
    obs = greedy_zero(envs, actions)
    # Of 1,000 actions a random one is hardly ever the greedy one, so "not greedy" tells "was random".
    explored = np.stack([actor.act(obs, 0.5) != 0 for _ in range(steps)])
    assert explored.mean(0) == pytest.approx(0.5, abs=0.025)
    assert np.corrcoef(explored.T) == pytest.approx(np.eye(envs), abs=0.05)
    repeats = np.corrcoef(explored[1:, 0], explored[:-1, 0])[0, 1]
    assert repeats == pytest.approx(0, abs=0.05)


def test_random_actions_differ_between_envs() -> None:
    actor = Actor(Preset(), 18, seed=1)
    taken = np.stack([actor.act(greedy_zero(8, 18), 1.0) for _ in range(5_000)])
    assert np.corrcoef(taken.T) == pytest.approx(np.eye(8), abs=0.07)


@pytest.mark.parametrize("num_actions", [4, 6, 18])
def test_random_actions_are_uniform_over_all(num_actions: int) -> None:
    actor = Actor(Preset(), num_actions, seed=1)
    taken = np.concatenate([actor.act(greedy_zero(8, num_actions), 1.0) for _ in range(4_000)])
    counts = np.bincount(taken, minlength=num_actions)
    assert len(counts) == num_actions
    assert counts / len(taken) == pytest.approx(1 / num_actions, rel=0.12)


def test_greedy_takes_each_envs_best_action() -> None:
    obs = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 3.0], [-3.0, -2.0, -1.0]])
    actions = Actor(Preset(), 3, seed=1).act(obs, 0.0)
    assert actions.tolist() == [1, 0, 2]
    assert actions.dtype == np.int64


def test_epsilon_may_differ_per_env() -> None:
    actor = Actor(Preset(), 100, seed=1)
    taken = np.stack([actor.act(greedy_zero(3, 100), np.array([0.0, 1.0, 0.5])) for _ in range(1_000)])
    assert (taken != 0).mean(0) == pytest.approx([0, 0.99, 0.495], abs=0.06)
    assert not taken[:, 0].any()
    with pytest.raises(ValueError, match="broadcast"):
        actor.act(greedy_zero(3, 100), np.array([0.0, 1.0]))


def test_the_stream_does_not_depend_on_epsilon() -> None:
    one, other = Actor(Preset(), 18, seed=1), Actor(Preset(), 18, seed=1)
    obs = greedy_zero(4, 18)
    for epsilon in (1.0, 0.0, 0.3):
        one.act(obs, epsilon)
        other.act(obs, 0.7)
    assert all(np.array_equal(one.act(obs, 0.5), other.act(obs, 0.5)) for _ in range(50))


def test_the_network_is_not_called_if_every_env_explores() -> None:
    network = Preset()
    actor = Actor(network, 6, seed=1)
    actor.act(greedy_zero(4, 6), 1.0)
    assert network.calls == 0
    actor.act(greedy_zero(4, 6), np.array([1.0, 1.0, 0.0, 1.0]))
    assert network.calls == 1


def test_seed_decides_and_state_continues() -> None:
    obs = greedy_zero(4, 18)
    actor = Actor(Preset(), 18, seed=1)
    first = [actor.act(obs, 0.5).tolist() for _ in range(20)]
    stored = json.loads(json.dumps(actor.state()))
    then = [actor.act(obs, 0.5).tolist() for _ in range(20)]
    again = Actor(Preset(), 18, seed=1)
    assert [again.act(obs, 0.5).tolist() for _ in range(20)] == first
    other = Actor(Preset(), 18, seed=2)
    assert [other.act(obs, 0.5).tolist() for _ in range(20)] != first
    other.load(stored)
    assert [other.act(obs, 0.5).tolist() for _ in range(20)] == then


def test_global_generators_do_not_change() -> None:
    torch_before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())
    Actor(Preset(), 18, seed=1).act(greedy_zero(4, 18), 0.5)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert repr(np.random.get_state()) == numpy_before


def test_acting_builds_no_graph() -> None:
    class Probe(nn.Module):
        def forward(self, obs: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return obs

    Actor(Probe(), 6, seed=1).act(greedy_zero(4, 6), 0.0)
