"""Tests of the frame ring against a naive buffer that keeps whole stacks, and against windows folded by hand."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atari_dqn.replay.ring import FrameRing
from atari_dqn.replay.uniform import UniformReplay

ONGOING, LIFE_LOST, TERMINATED, TRUNCATED, BOTH = range(5)


@dataclasses.dataclass
class Moment:
    """One env at one tick: its whole stack, and what followed."""

    stack: list[int]
    age: int
    last: bool
    action: int = -1
    reward: float = 0.0
    terminal: bool = False


class NaiveReplay:
    """Keeps every moment of every env forever, and examines all of them to find the drawable ones."""

    def __init__(self, rows: int, num_envs: int, stack: int, n_step: int, gamma: float, clip: bool) -> None:
        self.rows, self.stack, self.n_step, self.gamma, self.clip = rows, stack, n_step, gamma, clip
        self.moments: list[list[Moment]] = [[] for _ in range(num_envs)]

    def append(self, env: int, frame: int, last: bool, action: int, reward: float, terminal: bool) -> None:
        moments = self.moments[env]
        if moments and not moments[-1].last:
            before = moments[-1]
            before.action, before.reward, before.terminal = action, reward, terminal
            stack = deque(before.stack, maxlen=self.stack)
            stack.append(frame)
            moments.append(Moment(list(stack), before.age + 1, last))
        else:
            moments.append(Moment([frame] * self.stack, 0, last))

    def drawable(self, env: int) -> dict[int, dict[str, Any]]:
        """By row: the transitions of `env` that may be drawn, by the rule of DESIGN.md, taken literally."""
        moments, found = self.moments[env], {}
        oldest = max(0, len(moments) - self.rows)
        for row in range(oldest, len(moments)):
            moment = moments[row]
            reaches = row - min(self.stack - 1, moment.age)
            if moment.last or reaches < oldest:
                continue
            total, discount = 0.0, 1.0
            for step in range(self.n_step):
                if row + step + 1 >= len(moments):
                    break  # the window is not complete
                taken, arrived = moments[row + step], moments[row + step + 1]
                total += discount * (min(1.0, max(-1.0, taken.reward)) if self.clip else taken.reward)
                discount *= self.gamma
                if taken.terminal or arrived.last or step == self.n_step - 1:
                    found[row] = {
                        "obs": moment.stack,
                        "action": moment.action,
                        "return": total,
                        "discount": 0.0 if taken.terminal else discount,
                        "next_obs": arrived.stack,
                    }
                    break
        return found


@settings(max_examples=80)
@given(
    num_envs=st.integers(1, 3),
    stack=st.integers(1, 5),
    n_step=st.integers(1, 5),
    spare=st.integers(0, 9),
    clip=st.booleans(),
    odds=st.sampled_from([(1.0, 0.0, 0.0, 0.0, 0.0), (0.8, 0.05, 0.05, 0.05, 0.05), (0.4, 0.2, 0.2, 0.1, 0.1)]),
    cut_every=st.sampled_from([7, 1_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_replay_gives_what_a_naive_buffer_of_whole_stacks_gives(
    num_envs: int,
    stack: int,
    n_step: int,
    spare: int,
    clip: bool,
    odds: tuple[float, ...],
    cut_every: int,
    seed: int,
) -> None:
    """After every tick: the same transitions may be drawn, and each is the same, through four turns of the ring."""
    rows = stack + n_step + 1 + spare
    size, gamma, generator = rows * num_envs, 0.9, np.random.default_rng(seed)
    naive = NaiveReplay(rows, num_envs, stack, n_step, gamma, clip)
    replay = UniformReplay(size, num_envs, (1,), np.int32, stack, n_step=n_step, gamma=gamma, clip_rewards=clip, seed=0)
    for tick in range(4 * rows):
        frames = tick * num_envs + np.arange(num_envs)  # every frame is its own id
        events = generator.choice(5, num_envs, p=odds)
        last, terminal = events >= TERMINATED, np.isin(events, (LIFE_LOST, TERMINATED, BOTH))
        actions, rewards = generator.integers(0, 100, num_envs), generator.integers(-3, 4, num_envs) / 2
        for env in range(num_envs):
            naive.append(env, int(frames[env]), last[env], int(actions[env]), rewards[env], terminal[env])
        step = () if tick == 0 else (actions, rewards, terminal)
        replay.append(frames[:, None].astype(np.int32), last, *step)
        if tick % cut_every == cut_every - 1:
            cut = generator.random(num_envs) < 0.5
            for env in np.flatnonzero(cut).tolist():
                naive.moments[env][-1].last = True
            replay.cut(cut)
        latest = [moments[-1].stack for moments in naive.moments]
        assert replay.latest_observation().squeeze(-1).tolist() == latest
        expected = {row * num_envs + env: one for env in range(num_envs) for row, one in naive.drawable(env).items()}
        assert replay.fill == len(expected)
        if not expected:
            continue
        batch = replay.sample(2 * len(expected) + 1)  # so many equal shares leave no transition out
        assert set(batch.ids.tolist()) == set(expected)
        drawn = [expected[id_] for id_ in batch.ids.tolist()]
        assert batch.obs.squeeze(-1).tolist() == [one["obs"] for one in drawn]
        assert batch.actions.tolist() == [one["action"] for one in drawn]
        assert batch.next_obs.squeeze(-1).tolist() == [one["next_obs"] for one in drawn]
        np.testing.assert_allclose(batch.returns, [one["return"] for one in drawn], rtol=0, atol=1e-6)
        np.testing.assert_allclose(batch.discounts, [one["discount"] for one in drawn], rtol=1e-6, atol=0)


def ring_of_one_env(n_step: int, stack: int = 2, rows: int = 32) -> FrameRing:
    return FrameRing(rows, 1, (1,), np.uint8, stack, n_step)


def play(ring: FrameRing, frame: int, event: int = ONGOING, reward: float = 0.0, reset: bool = False) -> None:
    terminal = event in (LIFE_LOST, TERMINATED, BOTH)
    step = () if reset else ([frame % 4], [reward], [terminal])
    ring.append(np.full((1, 1), frame, dtype=np.uint8), [event >= TERMINATED], *step)


def folded(ring: FrameRing, gamma: float = 0.5, clip: bool = False) -> list[tuple[int, float, float, int]]:
    """(frame, return, discount, next frame) of every drawable row, oldest first."""
    slots = torch.from_numpy(np.flatnonzero(ring.drawable))
    returns, discounts, next_slots = ring.n_step_returns(slots, gamma, clip)
    frames, after = ring.observations(slots)[:, -1, 0], ring.observations(next_slots)[:, -1, 0]
    return list(zip(frames.tolist(), returns.tolist(), discounts.tolist(), after.tolist(), strict=True))


def test_each_start_of_a_short_episode_appears_once_with_its_exact_return() -> None:
    """5 steps, 3-step windows: the tail is neither dropped nor carried into the next episode."""
    ring = ring_of_one_env(n_step=3)
    play(ring, 10, reset=True)
    for step, reward in enumerate((1.0, 2.0, 4.0, 8.0, 16.0), start=1):
        play(ring, 10 + step, TERMINATED if step == 5 else ONGOING, reward)
    play(ring, 20, reward=99.0)  # the reset frame; the reset tick's reward is ignored
    play(ring, 21, reward=32.0)
    assert folded(ring) == [
        (10, 1 + 2 / 2 + 4 / 4, 1 / 8, 13),
        (11, 2 + 4 / 2 + 8 / 4, 1 / 8, 14),
        (12, 4 + 8 / 2 + 16 / 4, 0.0, 15),
        (13, 8 + 16 / 2, 0.0, 15),
        (14, 16.0, 0.0, 15),
    ]


def test_a_truncated_episode_bootstraps_from_its_own_final_frame() -> None:
    ring = ring_of_one_env(n_step=3)
    play(ring, 10, reset=True)
    play(ring, 11, reward=1.0)
    play(ring, 12, TRUNCATED, reward=2.0)
    play(ring, 20, reward=99.0)
    assert folded(ring) == [(10, 1 + 2 / 2, 1 / 4, 12), (11, 2.0, 1 / 2, 12)]


def test_a_lost_life_ends_the_return_but_neither_the_stack_nor_the_episode() -> None:
    ring = ring_of_one_env(n_step=2, stack=3)
    play(ring, 10, reset=True)
    for frame in (11, 12, 13, 14):
        play(ring, frame, LIFE_LOST if frame == 12 else ONGOING, reward=1.0)
    assert folded(ring) == [(10, 1.5, 0.0, 12), (11, 1.0, 0.0, 12), (12, 1.5, 1 / 4, 14)]
    assert ring.latest_observation().flatten().tolist() == [12, 13, 14]
    assert ring.age[: ring.newest + 1].flatten().tolist() == [0, 1, 2, 3, 4]


def test_rewards_are_stored_raw_and_clipped_when_folded() -> None:
    ring = ring_of_one_env(n_step=1)
    play(ring, 10, reset=True)
    for reward in (7.0, -7.0, 0.25):
        play(ring, 11, reward=reward)
    assert [one[1] for one in folded(ring, clip=True)] == [1.0, -1.0, 0.25]
    assert [one[1] for one in folded(ring, clip=False)] == [7.0, -7.0, 0.25]


def test_a_reward_that_is_not_a_number_stays_in_its_own_window() -> None:
    ring = ring_of_one_env(n_step=3)
    play(ring, 10, reset=True)
    play(ring, 11, TERMINATED, reward=1.0)
    play(ring, 20, reward=float("nan"))  # a reset tick: no reward was paid
    assert folded(ring) == [(10, 1.0, 0.0, 11)]


def test_nothing_is_drawn_from_a_final_frame_to_the_reset_frame() -> None:
    """Numbered frames: every pair is consecutive in one episode."""
    generator, ring = np.random.default_rng(0), ring_of_one_env(n_step=1, rows=256)
    play(ring, 0, reset=True)
    for frame in range(1, 250):
        play(ring, frame, int(generator.choice([ONGOING, TERMINATED, TRUNCATED], p=[0.7, 0.15, 0.15])))
    pairs = [(frame, after) for frame, _, _, after in folded(ring)]
    final = ring.last.flatten().tolist()
    assert pairs == [(frame, frame + 1) for frame in range(249) if not final[frame]]


def test_a_cut_makes_the_open_windows_drawable_and_joins_nothing() -> None:
    ring = ring_of_one_env(n_step=3)
    play(ring, 10, reset=True)
    play(ring, 11, reward=1.0)
    play(ring, 12, reward=2.0)
    assert folded(ring) == []
    ring.cut()
    assert folded(ring) == [(10, 2.0, 1 / 4, 12), (11, 2.0, 1 / 2, 12)]
    play(ring, 20, reset=True)
    assert ring.latest_observation().flatten().tolist() == [20, 20]
    assert len(folded(ring)) == 2


def test_frames_keep_their_dtype_and_are_stored_once() -> None:
    ring = FrameRing(128, 8, (84, 84), np.uint8, 4, 1)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (6, 8, 84, 84), dtype=np.uint8)
    ring.append(frames[0], np.zeros(8, dtype=bool))
    for one in frames[1:]:
        ring.append(torch.from_numpy(one), np.zeros(8, dtype=bool), np.zeros(8), np.zeros(8), np.zeros(8, dtype=bool))
    observation = ring.latest_observation()
    assert observation.dtype == torch.uint8
    np.testing.assert_array_equal(observation, frames[2:].swapaxes(0, 1))
    assert 84 * 84 + 17 < ring.nbytes / (128 * 8) < 84 * 84 + 32
    with pytest.raises(ValueError, match="float64"):
        ring.append(frames[0].astype(np.float64), np.zeros(8, dtype=bool), *[np.zeros(8, dtype=bool)] * 3)
    assert ring.newest == 5


def test_a_missing_step_is_refused() -> None:
    ring = ring_of_one_env(n_step=1)
    play(ring, 10, reset=True)
    with pytest.raises(ValueError, match="cannot omit"):
        play(ring, 11, reset=True)
    ring.cut()
    play(ring, 20, reset=True)
    assert ring.newest == 1


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="try 8"):
        FrameRing(7, 1, (1,), np.uint8, 4, 3)
    FrameRing(8, 1, (1,), np.uint8, 4, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_what_a_cpu_holds() -> None:
    """Uploads of many ticks in a row, through one staging buffer, arrive whole and in order."""
    generator, rings = (
        np.random.default_rng(0),
        [FrameRing(40, 8, (84, 84), np.uint8, 4, 3, d) for d in ("cpu", "cuda")],
    )
    for tick in range(300):
        frames, last = generator.integers(0, 256, (8, 84, 84), dtype=np.uint8), generator.random(8) < 0.1
        step = () if tick == 0 else (generator.integers(0, 9, 8), generator.random(8), generator.random(8) < 0.1)
        for ring in rings:
            ring.append(frames, last, *step)
    slots = torch.from_numpy(np.flatnonzero(rings[0].drawable))
    for ours, theirs in zip(
        rings[0].n_step_returns(slots, 0.9, True), rings[1].n_step_returns(slots.cuda(), 0.9, True), strict=True
    ):
        torch.testing.assert_close(ours, theirs.cpu())
    assert torch.equal(rings[0].observations(slots), rings[1].observations(slots.cuda()).cpu())
