"""Tests of the pool's results: the same for any number of workers, complete, flagged and unclipped."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.workers.history import env_seeds
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.pool import WorkerPool
from atari_dqn.workers.shared_memory import block_bytes, map_block
from tests.stubs import pids

NATURE = PROTOCOLS["nature"]
FIELDS = [field.name for field in dataclasses.fields(StepResult)]


def pool_of(env_id: str, workers: int, envs: int, protocol: Protocol = NATURE, seed: int = 1) -> WorkerPool:
    spec = env_spec(env_id, protocol, 4)
    return WorkerPool(spec, protocol, num_workers=workers, envs_per_worker=envs, seed=seed)


def play(pool: WorkerPool, steps: int, actions_seed: int = 0) -> Iterator[StepResult]:
    """The results of a reset and of so many steps with random actions; each valid until the next is asked for."""
    rng = np.random.default_rng(actions_seed)
    yield pool.reset()
    for _ in range(steps):
        pool.send(rng.integers(pool.spec.num_actions, size=pool.num_envs))
        yield pool.recv()


def recorded(pool: WorkerPool, steps: int) -> dict[str, npt.NDArray[np.generic]]:
    """Every array of every tick, [steps + 1, num_envs, ...]."""
    with pool:
        ticks = [[getattr(tick, name).copy() for name in FIELDS] for tick in play(pool, steps)]
    return {name: np.stack(values) for name, values in zip(FIELDS, zip(*ticks, strict=True), strict=True)}


SHORT = dataclasses.replace(NATURE, max_episode_frames=160)
RANDOM = dataclasses.replace(SHORT, repeat_action_probability=0.25)
"""No-ops and sticky actions: all the randomness that an emulator can have."""


@pytest.mark.parametrize(
    ("env_id", "protocol"), [("ALE/Seaquest-v5", RANDOM), ("CartPole-v1", NATURE), ("tests.stubs:Numbered-v0", NATURE)]
)
def test_results_do_not_depend_on_how_envs_are_distributed_over_workers(env_id: str, protocol: Protocol) -> None:
    """2 workers x 4 envs, 4 x 2 and 1 x 8 give the same streams, across unseeded resets; another seed gives others, and
    no two environments have the same stream."""
    whole = recorded(pool_of(env_id, 1, 8, protocol), 90)
    assert whole["is_reset"][1:].any(axis=0).all(), "each env must have started a second episode"
    for workers, envs in ((2, 4), (4, 2)):
        parts = recorded(pool_of(env_id, workers, envs, protocol), 90)
        for name in FIELDS:
            np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)
    other = recorded(pool_of(env_id, 1, 1, protocol, seed=2), 90)
    for env in range(8):
        assert not np.array_equal(other["frames"][:, 0], whole["frames"][:, env])
        for twin in range(env):
            assert not np.array_equal(whole["frames"][:, env], whole["frames"][:, twin])


def test_a_pool_gives_what_its_envs_give() -> None:
    """Against the same vector env stepped here, without processes: nothing is lost, moved or rounded in between."""
    protocol = SHORT
    spec = env_spec("ALE/Breakout-v5", protocol, 4)
    alone = make_vector_env(spec, protocol, 4)
    rng = np.random.default_rng(0)
    with WorkerPool(spec, protocol, num_workers=2, envs_per_worker=2, seed=5) as pool:
        results = play(pool, 90)
        first = next(results)
        alone.reset(env_seeds(5, 4))
        np.testing.assert_array_equal(first.frames, alone.out.frames)
        for result in results:
            alone.step(rng.integers(4, size=4))
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(result, name), getattr(alone.out, name), err_msg=name)


def test_a_second_reset_repeats_the_first() -> None:
    with pool_of("tests.stubs:Numbered-v0", 1, 3) as pool:
        first = [tick.frames.copy() for tick in play(pool, 20)]
        second = [tick.frames.copy() for tick in play(pool, 20)]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("env_id", "moments"),
    [
        ("tests.stubs:Numbered-v0", range(18)),
        ("tests.stubs:FiveLives-v0", range(18)),
        ("ALE/Breakout-v5", (7, 39, 40)),
    ],
)
def test_an_env_seeded_at_any_tick_restarts_and_its_neighbour_continues(env_id: str, moments: Sequence[int]) -> None:
    """In mid-episode, at an episode's end, and at the tick of its reset: it is as after a reset from that seed."""
    spec, nothing = env_spec(env_id, SHORT, 4), np.zeros(2, np.int64)

    def envs(seeds: list[int]) -> Any:
        made = make_vector_env(spec, SHORT, 2)
        made.reset(seeds)
        return made

    def seen(made: Any, env: int) -> list[npt.NDArray[np.generic]]:
        return [getattr(made.out, name)[env].copy() for name in FIELDS]

    def ticks(made: Any, env: int, count: int) -> list[list[npt.NDArray[np.generic]]]:
        played = [seen(made, env)]
        for _ in range(count):
            made.step(nothing)
            played.append(seen(made, env))
        return played

    expected, undisturbed = ticks(envs([7, 7]), 0, 25), ticks(envs([5, 6]), 1, 70)
    for before in moments:
        made = envs([5, 6])
        for _ in range(before + 1):
            made.step(nothing)
        made.reset([7, -1])
        np.testing.assert_equal(seen(made, 1), undisturbed[before + 1])
        np.testing.assert_equal(ticks(made, 0, 25), expected, err_msg=f"after {before} ticks")
        np.testing.assert_equal(seen(made, 1), undisturbed[before + 26])


def test_reset_ticks_are_flagged_and_are_not_environment_steps() -> None:
    """Episodes of 5 steps: each takes 6 ticks, of which the first brings frame 0 of the next episode and no reward."""
    ticks = recorded(pool_of("tests.stubs:FiveSteps-v0", 1, 2), 30)
    tick = np.arange(31)
    for env in range(2):
        np.testing.assert_array_equal(ticks["is_reset"][:, env], tick % 6 == 0)
        np.testing.assert_array_equal(ticks["rewards"][:, env], np.where(tick % 6 == 0, 0, 1))
        np.testing.assert_array_equal(ticks["terminated"][:, env], tick % 6 == 5)
        np.testing.assert_array_equal(ticks["frames"][:, env, 0], tick // 6, "the episode")
        np.testing.assert_array_equal(ticks["frames"][:, env, 1], tick % 6, "the step within it")
    assert not ticks["truncated"].any()
    assert not ticks["life_lost"].any()
    assert np.count_nonzero(ticks["is_reset"][1:]) == 2 * 5, "30 ticks are 25 steps"


def test_a_time_limit_is_a_truncation_with_its_final_frame() -> None:
    ticks = recorded(pool_of("tests.stubs:Timed-v0", 1, 1), 12)
    np.testing.assert_array_equal(np.flatnonzero(ticks["truncated"]), [5, 11])
    assert not ticks["terminated"].any()
    np.testing.assert_array_equal(
        ticks["frames"][[5, 11], 0, 1], [5, 5], "the final step, not the next episode's first"
    )
    np.testing.assert_array_equal(np.flatnonzero(ticks["is_reset"]), [0, 6, 12])


def test_a_lost_life_in_breakout_does_not_end_the_game() -> None:
    """The emulator's own game: five lives, one reset, and bricks hit in later lives count."""
    ticks = recorded(pool_of("ALE/Breakout-v5", 1, 4), 400)
    over = np.flatnonzero(ticks["terminated"].any(axis=1))
    assert over.size, "400 random steps end a game"
    for env in range(4):
        ends = np.flatnonzero(ticks["terminated"][:, env])
        for start, end in zip([0, *(ends + 1)], ends, strict=False):
            assert ticks["is_reset"][start, env]
            assert not ticks["is_reset"][start + 1 : end + 1, env].any()
            assert int(ticks["life_lost"][start : end + 1, env].sum()) == 4
            np.testing.assert_array_equal(ticks["lives"][[start, end], env], [5, 0])


def test_rewards_are_raw() -> None:
    ticks = recorded(pool_of("tests.stubs:PaysSeven-v0", 1, 1), 5)
    np.testing.assert_array_equal(ticks["rewards"][:, 0], [0, 7, 7, 7, 7, 7])
    assert ticks["rewards"].dtype == np.float64
    # Space Invaders pays 5 to 30 a hit
    hits = recorded(pool_of("ALE/SpaceInvaders-v5", 1, 4), 200)["rewards"]
    assert hits.max() >= 5


@pytest.mark.parametrize(
    ("env_id", "dtype", "shape"),
    [
        ("ALE/Breakout-v5", np.uint8, (84, 84)),
        ("tests.stubs:Colors-v0", np.uint8, (40, 36, 3)),
        ("CartPole-v1", np.float32, (4,)),
    ],
)
def test_frames_keep_their_dtype_in_shared_memory(env_id: str, dtype: type, shape: tuple[int, ...]) -> None:
    """7,056 bytes for an Atari frame, and hardly more in all."""
    with pool_of(env_id, 1, 2) as pool:
        frames = pool.reset().frames
        assert (frames.dtype, frames.shape) == (dtype, (2, *shape))
        assert frames.flags.c_contiguous
        assert frames.nbytes == 2 * pool.spec.frame_bytes == 2 * math.prod(shape) * np.dtype(dtype).itemsize
        assert block_bytes(2, shape, frames.dtype) <= frames.nbytes + 10 * 64


def test_colours_arrive_unharmed() -> None:
    ticks = recorded(pool_of("tests.stubs:Colors-v0", 1, 2), 3)
    np.testing.assert_array_equal(ticks["frames"][:, :, 0, 0, :], np.arange(4)[:, None, None].repeat(2, 1).repeat(3, 2))


@pytest.mark.parametrize(
    "actions", [[0, -1, 0], [0, 3, 0], [0, 0], [[0, 0, 0]], [0.0, 1.0, 2.0], [True, False, True], [0, 2**62, 0]]
)
def test_wrong_actions_are_refused_before_any_env_moves(actions: list[int]) -> None:
    with refusing_pool() as pool:
        pool.reset()
        with pytest.raises(ValueError, match="action"):
            pool.send(np.array(actions))
        pool.send(np.array([0, 1, 2]))
        np.testing.assert_array_equal(pool.recv().frames[:, 3], [0, 1, 2])


def refusing_pool() -> WorkerPool:
    return pool_of("tests.stubs:FiveSteps-v0", 1, 3)


def test_an_action_out_of_range_is_named_and_never_reaches_the_emulator() -> None:
    """ALE's vector env would hang on it forever."""
    with pool_of("ALE/Breakout-v5", 1, 2) as pool:
        pool.reset()
        assert os.getsid(pids(pool)[0]) == os.getsid(0), "one scheduling group, in which niceness counts"
        with pytest.raises(ValueError, match="action 4 of env 1 is not from 0 to 3"):
            pool.send(np.array([0, 4]))


def test_calls_out_of_turn_are_refused() -> None:
    actions = np.zeros(3, np.int64)
    with refusing_pool() as pool:
        with pytest.raises(RuntimeError, match="send before reset"):
            pool.send(actions)
        pool.reset()
        with pytest.raises(RuntimeError, match="recv without send"):
            pool.recv()
        pool.send(actions)
        for again in (pool.reset, lambda: pool.send(actions)):
            with pytest.raises(RuntimeError, match="waits for its recv"):
                again()
        assert (pool.recv().frames[:, 1] == 1).all(), "the refused calls left no trace"
    for call in (pool.reset, pool.recv, lambda: pool.send(actions)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    pool.close()


@given(st.integers(0, 2**63), st.integers(1, 300), st.integers(0, 300))
def test_seeds_are_distinct_and_depend_on_the_env_alone(seed: int, num_envs: int, more: int) -> None:
    seeds = env_seeds(seed, num_envs + more)
    assert len(set(seeds)) == num_envs + more
    assert env_seeds(seed, num_envs) == seeds[:num_envs]
    assert all(0 <= one < 2**31 for one in seeds)
    assert env_seeds(seed + 1, num_envs) != seeds[:num_envs]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([np.uint8, np.float32]), st.integers(1, 9))
def test_the_arrays_of_a_block_are_apart_and_aligned(shape: list[int], dtype: type, num_envs: int) -> None:
    layout = num_envs, tuple(shape), np.dtype(dtype)
    block = bytearray(block_bytes(*layout))
    result, orders = map_block(block, *layout)
    arrays = [*(getattr(result, name) for name in FIELDS), orders.actions, orders.seeds]
    start = np.frombuffer(block, np.uint8).__array_interface__["data"][0]
    for number, array in enumerate(arrays, 1):
        assert (array.__array_interface__["data"][0] - start) % 64 == 0
        array.view(np.uint8)[:] = number
    for number, array in enumerate(arrays, 1):
        assert (array.view(np.uint8) == number).all(), "written over by a neighbour"


@given(st.integers(1, 8), st.data())
def test_a_workers_part_of_a_result_is_its_own(num_envs: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, num_envs - 1))
    last = data.draw(st.integers(first, num_envs - 1))
    whole = StepResult.empty(num_envs, (3,), np.dtype(np.float32))
    part = whole.of(slice(first, last + 1))
    for name in FIELDS:
        getattr(part, name)[:] = 1
        touched = getattr(whole, name).reshape(num_envs, -1).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(touched), np.arange(first, last + 1))


@pytest.fixture
def two_cores() -> Iterator[list[int]]:
    """This process, and what it starts, on two cores."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("cores cannot be chosen here")
    before = os.sched_getaffinity(0)
    two = sorted(before)[:2]
    os.sched_setaffinity(0, two)
    yield two
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("workers", "places"), [(4, [[0], [1], [0], [1]]), (3, [[0, 1]] * 3), (1, [[0, 1]])])
def test_workers_that_share_the_cores_evenly_keep_to_one_each(
    two_cores: list[int], workers: int, places: list[list[int]]
) -> None:
    with pool_of("CartPole-v1", workers, 1) as pool:
        pool.reset()
        supervisor = pool._supervisor
        assert isinstance(supervisor, LocalSupervisor)
        found = [sorted(psutil.Process(process.pid).cpu_affinity()) for process in supervisor.processes.values()]
    assert found == [[two_cores[core] for core in cores] for cores in places]


def test_a_worker_that_may_not_choose_its_core_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.workers.local.cores_of", lambda num_workers: [1 << 20] * num_workers)
    with pool_of("CartPole-v1", 2, 1) as pool:
        assert pool.reset().is_reset.all()
