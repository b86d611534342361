"""Evaluations: fixed quotas of whole games, raw scores, and no side effects."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.envs.step import StepResult
from atari_dqn.evaluation.evaluation import Games, evaluate, quotas
from atari_dqn.evaluation.result import Evaluation
from atari_dqn.workers.pool import WorkerPool

NATURE = PROTOCOLS["nature"]
CPU = torch.device("cpu")


class Recorder(nn.Module):
    """A network that always prefers one action and records its observations."""

    def __init__(self, num_actions: int, preferred: int = 0) -> None:
        super().__init__()
        self.values = torch.arange(num_actions) == preferred
        self.seen: list[torch.Tensor] = []

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        self.seen.append(observations.clone())
        return self.values.float().expand(len(observations), -1)


def stub(name: str) -> EnvSpec:
    return env_spec(f"tests.stubs:{name}", NATURE, 4)


def play(
    spec: EnvSpec,
    episodes: int,
    num_envs: int,
    *,
    num_workers: int = 1,
    network: nn.Module | None = None,
    epsilon: float = 0.0,
    seed: int = 3,
) -> Evaluation:
    network = network or Recorder(spec.num_actions)
    return evaluate(
        network, spec, NATURE, episodes=episodes, num_envs=num_envs, num_workers=num_workers, epsilon=epsilon,
        seed=seed, device=CPU,
    )  # fmt: skip


def tick(
    rewards: list[float],
    over: tuple[int, ...] = (),
    truncated: tuple[int, ...] = (),
    lost: tuple[int, ...] = (),
    reset: tuple[int, ...] = (),
) -> StepResult:
    """One tick with a reward for each env; the other arguments are numbers of envs."""

    def flags(envs: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(len(rewards)), envs)

    return StepResult(
        frames=np.zeros((len(rewards), 1), np.float32),
        rewards=np.zeros(len(rewards)),
        raw_rewards=np.array(rewards),
        terminated=flags(over),
        truncated=flags(truncated),
        lives=np.zeros(len(rewards), np.int32),
        life_lost=flags(lost),
        is_reset=flags(reset),
    )


# ---------------------------------------------------------------------- counting


@given(st.integers(1, 1000), st.integers(1, 64))
def test_quotas_add_up_and_are_even(episodes: int, num_envs: int) -> None:
    quota = quotas(episodes, num_envs)
    assert quota.sum() == episodes
    assert quota.max() - quota.min() <= 1


def test_a_game_is_its_raw_rewards_from_reset_to_its_end_whatever_ends_it() -> None:
    games = Games(quotas(4, 2))
    for step in (
        tick([7.0, 1.0]),
        tick([7.0, 1.0], lost=(0,)),
        tick([-3.0, 1.0], over=(0,)),
        tick([0.0, 1.0], truncated=(1,), reset=(0,)),
        tick([5.0, 0.0], truncated=(0,), reset=(1,)),
        tick([0.0, 2.0], over=(1,), truncated=(1,), reset=(0,)),
        tick([9.0, 0.0], truncated=(0,), reset=(1,)),
    ):
        games.add(step)
    assert games.played == [[(11.0, 3), (5.0, 1)], [(4.0, 4), (2.0, 1)]]
    assert games.cut == 2, "neither a game that terminated too, nor one beyond the quota"
    assert games.over


def test_a_fast_env_does_not_play_the_games_of_a_slow_one() -> None:
    games = Games(quotas(4, 2))
    for _ in range(50):
        games.add(tick([1.0, 0.0], over=(0,)))
        games.add(tick([0.0, 0.0], reset=(0,)))
    assert not games.over
    for _ in range(2):
        games.add(tick([1.0, 9.0], over=(0, 1)))
        games.add(tick([0.0, 0.0], reset=(0, 1)))
    assert games.over
    assert games.played == [[(1.0, 1), (1.0, 1)], [(9.0, 101), (9.0, 1)]]


def test_progress_counts_the_games_of_the_quota() -> None:
    games = Games(quotas(3, 2))
    games.add(tick([1.0, 1.0]))
    assert (games.finished, games.episodes, games.ticks, np.isnan(games.mean)) == (0, 3, 1, True)
    games.add(tick([1.0, 3.0], over=(1,)))
    assert (games.finished, games.ticks, games.mean) == (1, 2, 4.0)
    games.add(tick([1.0, 0.0], over=(0,), reset=(1,)))
    games.add(tick([0.0, 9.0], over=(1,), reset=(0,)))
    games.add(tick([0.0, 0.0], over=(0,), reset=(1,)))
    assert (games.finished, games.ticks, games.mean, games.over) == (3, 5, 7 / 3, True)


# ---------------------------------------------------------------------- real workers


def test_each_env_plays_its_quota_and_the_same_arguments_give_the_same_games() -> None:
    spec = stub("Numbered-v0")  # games of 1 to 9 steps, a reward a step, whatever is done
    once, twice = play(spec, 3, 3), play(spec, 6, 3)
    assert len(once.returns) == 3
    # With "the first 3 to finish" a fast env's second game would stand in the place of a slow one's first.
    np.testing.assert_array_equal(once.lengths, twice.lengths[::2])
    np.testing.assert_array_equal(twice.returns, twice.lengths)
    assert len(set(twice.lengths.tolist())) > 1
    assert twice.lengths.tolist() != play(spec, 6, 3, seed=4).lengths.tolist()


@pytest.mark.parametrize(("num_workers", "processes"), [(1, 1), (2, 2), (4, 4), (5, 4), (8, 7)])
def test_the_games_are_the_same_in_any_number_of_workers(num_workers: int, processes: int) -> None:
    seen: set[int] = set()
    spec = stub("Numbered-v0")
    apart = evaluate(
        Recorder(3), spec, NATURE, episodes=9, num_envs=7, num_workers=num_workers, epsilon=0.0, seed=3, device=CPU,
        on_progress=lambda progress: seen.add(len(multiprocessing.active_children())),
    )  # fmt: skip
    assert seen == {processes}, "seven envs, spread as evenly as possible"
    np.testing.assert_array_equal(apart.lengths, play(spec, 9, 7, num_workers=7).lengths)


def test_five_lives_are_one_game_and_rewards_are_raw() -> None:
    result = play(stub("FiveLives-v0"), 3, 1)
    np.testing.assert_array_equal(result.returns, [30.0] * 3)
    np.testing.assert_array_equal(result.lengths, [15] * 3)
    assert result.cut == 0
    assert result.ci95 == result.iqm_ci95 == (30.0, 30.0)


def test_a_time_limit_ends_a_game() -> None:
    result = play(stub("Timed-v0"), 2, 1)
    np.testing.assert_array_equal(result.lengths, [5, 5])
    assert result.cut == 2


def test_a_game_without_end_is_cut_and_the_user_told_how_to_set_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.evaluation.evaluation.GAME_LIMIT", 60)
    monkeypatch.setattr("atari_dqn.evaluation.player.NOTE_AFTER", 40)
    told: list[str] = []
    spec = stub("Endless-v0")
    result = evaluate(
        Recorder(3), spec, NATURE, episodes=1, num_envs=1, epsilon=0.0, seed=1, device=CPU, say=told.append
    )  # fmt: skip
    assert (result.lengths.tolist(), result.cut) == ([60], 1)
    (note,) = told
    assert note.startswith("no game has ended in 40 steps, not even by a time limit of tests.stubs:Endless-v0")
    assert "max_episode_steps" in note


def test_a_policy_that_never_fires_ends_at_the_frame_limit() -> None:
    protocol = dataclasses.replace(NATURE, max_episode_frames=400)
    spec = env_spec("ALE/Breakout-v5", protocol, 4)
    result = evaluate(
        Recorder(4), spec, protocol, episodes=2, num_envs=1, epsilon=0.0, seed=1, device=CPU
    )  # fmt: skip
    np.testing.assert_array_equal(result.lengths, [100, 100])
    np.testing.assert_array_equal(result.returns, [0.0, 0.0])
    assert result.cut == 2
    assert result.human_normalized == pytest.approx(-1.7 / 28.8)


def test_the_network_sees_the_stacks_it_was_trained_on() -> None:
    spec = stub("Colors-v0")  # every frame is flat, its level the number of the step; 200 steps to an episode
    network = Recorder(2)
    play(spec, 2, 1, network=network)
    levels = [observation[0, :, 0, 0, 0].tolist() for observation in network.seen]
    assert levels[:5] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    # The final frame (200) is on the ring, then the next episode's: no stack joins the two.
    assert levels[200:204] == [[197, 198, 199, 200], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 1.0), (0.3, 0.8), (1.0, 1 / 3)])
def test_epsilon_is_the_share_of_random_actions(epsilon: float, share: float) -> None:
    network = Recorder(3, preferred=2)
    play(stub("Numbered-v0"), 100, 1, network=network, epsilon=epsilon)
    # A frame is [episode, step, random, action]; with epsilon 1 the network is not even asked, so look at the rest.
    actions = [float(frame[0, 0, 3]) for frame in network.seen if frame[0, 0, 1] > 0]
    assert np.mean(np.array(actions) == 2) == pytest.approx(share, abs=0.08) if actions else epsilon == 1.0


def test_an_evaluation_plays_other_games_than_a_training_with_the_same_seed() -> None:
    spec = stub("Numbered-v0")
    network = Recorder(3)
    play(spec, 1, 1, network=network, seed=3)
    with WorkerPool(spec, NATURE, num_workers=1, envs_per_worker=1, seed=3) as workers:
        training = workers.reset().frames.copy()
    assert float(network.seen[0][0, 0, 2]) != pytest.approx(float(training[0, 2]))


def test_an_evaluation_leaves_global_random_generators_alone() -> None:
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    play(stub("Numbered-v0"), 2, 1, epsilon=0.5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def test_an_exception_in_on_progress_ends_the_evaluation_and_its_workers() -> None:
    class Stop(Exception):
        pass

    seen: list[int] = []

    def stop_at_the_third_game(games: Games) -> None:
        seen.append(games.ticks)
        if games.finished >= 3:
            raise Stop

    spec = stub("FiveSteps-v0")
    with pytest.raises(Stop):
        evaluate(
            Recorder(3), spec, NATURE, episodes=9, num_envs=2, epsilon=0.0, seed=1, device=CPU,
            on_progress=stop_at_the_third_game,
        )  # fmt: skip
    assert seen == list(range(1, len(seen) + 1))
    assert multiprocessing.active_children() == []


def test_a_line_of_evaluations_jsonl() -> None:
    result = Evaluation(
        env_id="ALE/Breakout-v5",
        protocol=NATURE,
        epsilon=0.05,
        seed=7,
        returns=np.array([10.0, 20.0, 60.0]),
        lengths=np.array([100, 200, 300]),
        cut=1,
        ci95=(12.0, 55.0),
        iqm_ci95=(11.0, 56.0),
        seconds=1.5,
    )
    assert json.loads(json.dumps(result.to_dict())) == {
        "env_id": "ALE/Breakout-v5",
        "protocol": "nature",
        "full_action_space": False,
        "epsilon": 0.05,
        "episodes": 3,
        "mean": 30.0,
        "median": 20.0,
        "ci95": [12.0, 55.0],
        "iqm": 30.0,
        "iqm_ci95": [11.0, 56.0],
        "human_normalized": pytest.approx((30 - 1.7) / 28.8),
        "returns": [10.0, 20.0, 60.0],
        "lengths": [100, 200, 300],
        "truncated": 1,
        "seed": 7,
        "time": 1.5,
    }
    assert result.summary() == (
        "mean 30.00 (95% interval 12.00 to 55.00), median 20, human-normalised 0.983; 3 games, nature, epsilon 0.05"
    )
