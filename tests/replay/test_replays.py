"""Tests of the replays: how often transitions are drawn, with which weights, and what a priority changes."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from atari_dqn.replay.base import NO_ID, Replay
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.uniform import NewestReplay, UniformReplay

EPSILON = 0.01


def prioritized(capacity: int = 16, num_envs: int = 1, alpha: float = 0.6, **changes: Any) -> PrioritizedReplay:
    shared = {"stack": 2, "n_step": 1, "gamma": 0.9, "clip_rewards": True, "seed": 7}
    return PrioritizedReplay(capacity, num_envs, (1,), np.uint8, alpha=alpha, **(shared | changes))


def uniform(capacity: int = 16, num_envs: int = 1, **changes: Any) -> UniformReplay:
    shared = {"stack": 2, "n_step": 1, "gamma": 0.9, "clip_rewards": True, "seed": 7}
    return UniformReplay(capacity, num_envs, (1,), np.uint8, **(shared | changes))


def play(replay: Replay, ticks: int, last: bool = False) -> None:
    """Append `ticks` rows, each with its number (mod 256) as the frame of every env."""
    num_envs = replay.ring.num_envs
    for row in range(replay.newest + 1, replay.newest + 1 + ticks):
        zeros = np.zeros(num_envs)
        frames = np.full((num_envs, 1), row % 256, dtype=np.uint8)
        replay.append(frames, np.full(num_envs, last), zeros, zeros, zeros.astype(bool))


def with_errors(errors: list[float], alpha: float = 0.6, **changes: Any) -> PrioritizedReplay:
    """A replay whose transition i has the TD error errors[i]."""
    replay = prioritized(alpha=alpha, **changes)
    play(replay, len(errors) + 1)
    replay.update_priorities(np.arange(len(errors)), np.array(errors))
    return replay


def leaf(error: float, alpha: float = 0.6) -> float:
    return (abs(error) + EPSILON) ** alpha


def copies(batch: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vars(batch).items()}


def assert_same_future(ours: Replay, theirs: Replay, rounds: int = 30) -> None:
    generator = np.random.default_rng(11)
    for _ in range(rounds):
        for replay in (ours, theirs):
            play(replay, 1)
        left, right = copies(ours.sample(8)), copies(theirs.sample(8))
        assert all(torch.equal(left[name], right[name]) for name in left)
        errors = generator.normal(size=8) * 3
        ours.update_priorities(left["ids"], errors)
        theirs.update_priorities(right["ids"], errors)
    assert torch.equal(ours.tree.leaves, theirs.tree.leaves)
    assert torch.equal(ours.tree.total, theirs.tree.total)


# ---------------------------------------------------------------------- sizes and refusals


@pytest.mark.parametrize(("capacity", "nearest"), [(100_000, "65536 or 131072"), (12, "8 or 16")])
def test_a_prioritized_capacity_that_is_not_a_power_of_two_is_refused_with_the_two_nearest(
    capacity: int, nearest: str
) -> None:
    with pytest.raises(ValueError, match=nearest):
        prioritized(capacity)


def test_a_capacity_too_small_for_stack_and_window_is_refused() -> None:
    with pytest.raises(ValueError, match="rows are too few"):
        prioritized(16, num_envs=8)


def test_envs_that_do_not_divide_the_capacity_leave_spare_leaves_at_zero() -> None:
    replay = prioritized(64, num_envs=3)
    play(replay, 100)
    assert replay.num_rows == 21
    assert replay.tree.leaves[63] == 0
    assert 0 < replay.fill == int((replay.tree.leaves > 0).sum())
    assert replay.sample(500).ids.max() < 100 * 3


@pytest.mark.parametrize("make", [prioritized, uniform])
def test_drawing_before_there_is_anything_to_draw_is_refused(make: Any) -> None:
    replay = make(n_step=3)
    for _ in range(4):  # nothing, then the first frame, then windows that are not complete
        with pytest.raises(RuntimeError, match="nothing to draw"):
            replay.sample(4)
        play(replay, 1)
    assert replay.sample(4).ids.tolist() == [0] * 4


def test_drawing_when_all_that_could_be_drawn_is_overwritten_is_refused() -> None:
    replay = prioritized()
    play(replay, 4)
    replay.cut()
    play(replay, 16, last=True)  # episodes without a single step
    assert replay.fill == 0
    with pytest.raises(RuntimeError, match="nothing to draw"):
        replay.sample(4)


# ---------------------------------------------------------------------- how often


def chi_square(replay: Replay, weight: np.ndarray) -> float:
    """The probability of frequencies as far off as those of 10^5 draws, were they in proportion to `weight`."""
    observed = np.zeros(len(weight))
    for _ in range(2_000):
        observed += np.bincount(replay.sample(50).ids.numpy(), minlength=len(weight))
    return float(stats.chisquare(observed, 100_000 * weight / weight.sum()).pvalue)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_transition_is_drawn_in_proportion_to_its_error_to_the_alpha(alpha: float) -> None:
    errors = [0.1, -0.5, 1.0, -2.0, 5.0, 0.01, 30.0, 0.3, -0.7, 0.02]
    replay = with_errors(errors, alpha)
    assert chi_square(replay, np.array([leaf(error, alpha) for error in errors])) > 1e-3


def test_a_uniform_replay_of_any_size_draws_with_equal_probability_and_ignores_errors() -> None:
    replay = uniform(capacity=37, num_envs=3)
    play(replay, 12)
    replay.update_priorities(np.arange(33), np.linspace(0, 100, 33))
    assert chi_square(replay, np.ones(33)) > 1e-3
    replay.beta.fill_(0.7)
    assert torch.equal(replay.sample(64).weights, torch.ones(64))


def test_draws_are_stratified() -> None:
    """One from each equal share of the total: with equal priorities, a batch of all holds each exactly once."""
    replay = uniform(capacity=64)
    play(replay, 33)
    for _ in range(20):
        assert sorted(replay.sample(32).ids.tolist()) == list(range(32))


# ---------------------------------------------------------------------- importance weights


def test_importance_weights_are_the_closed_form_normalized_by_the_largest_of_the_batch() -> None:
    errors, beta = [0.5, 1.0, 2.0, 8.0], 0.7
    replay = with_errors(errors)
    replay.beta.fill_(beta)
    chance = np.array([leaf(error) for error in errors])
    chance /= chance.sum()
    expected = (4 * chance) ** -beta
    expected /= expected.max()
    batch = replay.sample(64)
    np.testing.assert_allclose(batch.weights, expected[batch.ids.numpy()], rtol=1e-6)
    assert float(batch.weights.max()) == 1.0
    pair = next(two for two in (copies(replay.sample(2)) for _ in range(1_000)) if two["ids"].tolist() == [2, 3])
    np.testing.assert_allclose(pair["weights"], [1.0, expected[3] / expected[2]], rtol=1e-6)  # 0 and 1 do not count


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.0), (0.0, 1.0)])
def test_importance_weights_are_ones_without_correction_or_without_priorities(alpha: float, beta: float) -> None:
    replay = with_errors([0.5, 1.0, 2.0, 8.0], alpha)
    replay.beta.fill_(beta)
    assert torch.equal(replay.sample(64).weights, torch.ones(64))


def test_importance_weights_lie_in_0_to_1_while_most_leaves_are_empty() -> None:
    replay = prioritized(2**12)
    play(replay, 20)
    for scale in (1e-6, 1.0, 1e4):
        batch = replay.sample(32)
        replay.update_priorities(batch.ids, torch.rand(32, generator=torch.Generator().manual_seed(0)) * scale)
        weights = replay.sample(256).weights
        assert weights.dtype == torch.float32
        assert bool(((weights > 0) & (weights <= 1)).all())


def test_beta_is_read_at_every_draw() -> None:
    replay = with_errors([1.0, 100.0])
    drawn = []
    for beta in (0.0, 0.4, 1.0):
        replay.beta.fill_(beta)
        drawn.append(float(replay.sample(64).weights.min()))
    np.testing.assert_allclose(drawn, [(leaf(1) / leaf(100)) ** beta for beta in (0.0, 0.4, 1.0)], rtol=1e-6)


# ---------------------------------------------------------------------- priorities


@pytest.mark.parametrize("error", [100.0, -100.0, 0.0, 0.25])
def test_a_priority_is_the_error_plus_epsilon_to_the_alpha_whatever_the_weight(error: float) -> None:
    """Neither the clipped nor the weighted error, and the epsilon goes in before the exponent."""
    for beta in (0.0, 1.0):
        replay = with_errors([1.0, 50.0, 2.0])
        replay.beta.fill_(beta)
        batch = replay.sample(8)
        replay.update_priorities(batch.ids, torch.full((8,), error, requires_grad=True))
        written = replay.tree.leaves[batch.ids]
        torch.testing.assert_close(written, torch.full_like(written, leaf(error)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_error_that_is_not_finite_is_refused_and_nothing_changes(bad: float) -> None:
    replay = with_errors([1.0, 2.0, 3.0])
    leaves, total = replay.tree.leaves.clone(), replay.tree.total.clone()
    with pytest.raises(ValueError, match="finite"):
        replay.update_priorities(torch.tensor([0, 1]), torch.tensor([500.0, bad]))
    assert torch.equal(replay.tree.leaves, leaves)
    assert torch.equal(replay.tree.total, total)
    play(replay, 1)
    assert replay.tree.leaves[3] == pytest.approx(leaf(3)), "the largest priority is not 500's either"


@pytest.mark.parametrize("xp", [np, torch])
def test_priorities_for_no_id_are_ignored(xp: Any) -> None:
    replay = with_errors([1.0, 2.0, 3.0], xp=xp)
    leaves, total = replay.tree.leaves.clone(), replay.tree.total.clone()
    replay.update_priorities([NO_ID] * 4, [0.0, 1.0, 500.0, 0.0])
    assert torch.equal(replay.tree.leaves, leaves)
    assert torch.equal(replay.tree.total, total)
    replay.update_priorities([NO_ID, 0], [500.0, 7.0])
    assert replay.tree.leaves[:3].tolist() == pytest.approx([leaf(7), leaf(2), leaf(3)])
    play(replay, 1)
    assert replay.tree.leaves[3] == pytest.approx(leaf(7)), "the largest priority is not 500's either"


def test_the_larger_error_of_a_duplicate_id_wins_in_any_order() -> None:
    for errors in ([1.0, -9.0, 4.0], [-9.0, 4.0, 1.0], [4.0, 1.0, -9.0]):
        replay = with_errors([50.0, 50.0, 50.0])
        replay.update_priorities([1, 1, 1], errors)
        assert replay.tree.leaves[1] == pytest.approx(leaf(9))


def test_a_new_transition_enters_with_the_largest_priority_so_far() -> None:
    replay = prioritized()
    play(replay, 2)
    assert replay.tree.leaves[0] == 1.0, "before any error is known"
    replay.update_priorities([0], [40.0])
    play(replay, 1)
    assert replay.tree.leaves[1] == pytest.approx(leaf(40))
    replay.update_priorities([0, 1], [0.1, 0.1])
    play(replay, 1)
    assert replay.tree.leaves[2] == pytest.approx(leaf(40)), "so far, though no transition has it any more"


def test_a_late_priority_for_an_overwritten_row_is_dropped() -> None:
    replay = prioritized(16)
    play(replay, 10)
    late = replay.sample(64).ids.clone()
    assert 5 in late
    play(replay, 16)
    before = replay.tree.leaves.clone()
    assert before[5] > 0, "the slot is in use again, by row 21"
    replay.update_priorities(late, torch.full((64,), 1e6))
    assert torch.equal(replay.tree.leaves, before)
    play(replay, 1)
    assert float(replay.tree.leaves.max()) == 1.0, "nor does it raise what new transitions get"


def test_a_late_priority_for_a_row_no_longer_drawable_leaves_its_leaf_at_zero() -> None:
    replay = prioritized(16, stack=4)
    play(replay, 17)
    lost = [1, 2, 3]  # row 0 is overwritten, and with it the oldest frame of these stacks
    assert replay.tree.leaves[lost].tolist() == [0.0] * 3
    replay.update_priorities(lost, [5.0] * 3)
    assert replay.tree.leaves[lost].tolist() == [0.0] * 3
    assert replay.tree.leaves[4] == 1.0


def test_a_late_priority_in_a_batch_with_a_current_one_for_its_slot_changes_nothing() -> None:
    for order in ([0, 1], [1, 0]):
        replay = prioritized(16)
        play(replay, 23)
        assert replay.tree.leaves[21 % 16] == 1.0
        replay.update_priorities(np.array([5, 21])[order], np.array([1e6, 0.01])[order])
        assert replay.tree.leaves[5] == pytest.approx(leaf(0.01))


def test_ids_of_future_rows_are_ignored() -> None:
    replay = prioritized(16)
    play(replay, 10)
    before = replay.tree.leaves.clone()
    replay.update_priorities([16 + 3, -16 + 3], [1e6, 1e6])
    assert torch.equal(replay.tree.leaves, before)


# ---------------------------------------------------------------------- batches


def test_a_batch_has_the_agreed_shapes_and_dtypes_and_absolute_ids() -> None:
    replay = PrioritizedReplay(
        256, 8, (36, 40), np.uint8, 4, n_step=3, gamma=0.99, clip_rewards=True, alpha=0.6, seed=0
    )
    generator, zeros = np.random.default_rng(0), np.zeros(8)
    for row in range(100):
        frames = np.full((8, 36, 40), row, dtype=np.uint8)
        replay.append(frames, zeros, np.arange(8), generator.normal(size=8), zeros)
    batch = replay.sample(32)
    assert batch.obs.shape == batch.next_obs.shape == (32, 4, 36, 40)
    assert batch.obs.dtype == batch.next_obs.dtype == torch.uint8
    assert batch.obs.is_contiguous()
    assert batch.next_obs.is_contiguous()
    dtypes = {name: getattr(batch, name).dtype for name in ("actions", "returns", "discounts", "weights", "ids")}
    assert dtypes == {
        "actions": torch.int64,
        "returns": torch.float32,
        "discounts": torch.float32,
        "weights": torch.float32,
        "ids": torch.int64,
    }
    rows, envs = batch.ids // 8, batch.ids % 8
    assert bool(((rows > 99 - 32) & (rows < 99)).all())
    assert torch.equal(batch.actions, envs)
    assert torch.equal(batch.obs[:, -1, 0, 0].long(), rows)
    assert torch.equal(batch.next_obs[:, -1, 0, 0].long(), rows + 3)


def test_frames_of_floats_are_kept_as_they_are() -> None:
    replay = UniformReplay(100, 2, (4,), np.float32, 1, n_step=1, gamma=0.9, clip_rewards=False, seed=0)
    frames = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    for one in frames:
        replay.append(one, np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2))
    batch = replay.sample(4)
    np.testing.assert_array_equal(batch.obs[:, 0], frames.reshape(-1, 4)[batch.ids.numpy()])
    np.testing.assert_array_equal(batch.next_obs[:, 0], frames.reshape(-1, 4)[batch.ids.numpy() + 2])


def test_drawing_leaves_the_latest_observation_alone_and_the_other_way_round() -> None:
    replay = uniform(capacity=64, num_envs=4)
    play(replay, 10)
    latest = replay.latest_observation()
    kept = latest.clone()
    batch = replay.sample(2)  # as many stacks as there are envs
    assert torch.equal(latest, kept)
    before = batch.obs.clone()
    replay.latest_observation()
    assert torch.equal(batch.obs, before)


# ---------------------------------------------------------------------- randomness and state


def test_the_seed_decides_the_draws_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    replays = [prioritized(64, seed=seed) for seed in (1, 1, 2)]
    for replay in replays:
        play(replay, 50)
    drawn = [replay.sample(16).ids.tolist() for replay in replays]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=3, max_size=60), st.integers(1, 12),
    st.integers(1, 3), st.sampled_from([np, torch]),
)  # fmt: skip
def test_the_newest_replay_returns_the_newest_complete_transitions_in_order(
    ends: list[list[bool]], batch_size: int, n_step: int, xp: Any
) -> None:
    replay = NewestReplay(
        22, 2, (1,), np.uint8, 2, n_step=n_step, gamma=0.9, clip_rewards=True, seed=7, xp=xp
    )  # fmt: skip
    for last in ends:
        replay.append(np.zeros((2, 1), np.uint8), np.array(last), np.zeros(2), np.zeros(2), np.zeros(2, bool))
        if replay.fill:
            rows, size = replay.ring.drawable, replay.num_rows * 2
            head = replay.newest * 2 + 1
            complete = [i for i in range(head - size + 1, head + 1) if i >= 0 and rows[i // 2 % replay.num_rows, i % 2]]
            wrapped = (complete * batch_size)[-batch_size:] if len(complete) < batch_size else complete[-batch_size:]
            batch = replay.sample(batch_size)
            assert batch.ids.tolist() == wrapped
            assert (batch.weights == 1).all()


@pytest.mark.parametrize("make", [prioritized, uniform])
def test_a_stored_replay_continues_bit_for_bit(make: Any) -> None:
    original = make(64, num_envs=2, n_step=3)
    play(original, 45)
    for _ in range(10):
        batch = original.sample(8)
        original.update_priorities(batch.ids, torch.linspace(-3, 30, 8))
    file = io.BytesIO()
    torch.save(original.state(), file)
    file.seek(0)
    restored = make(64, num_envs=2, n_step=3, seed=99)
    play(restored, 3)  # it discards what it held
    restored.load(torch.load(file, weights_only=True))
    assert (restored.newest, restored.fill) == (original.newest, original.fill)
    assert torch.equal(restored.latest_observation(), original.latest_observation())
    assert_same_future(restored, original)


def test_a_replay_stored_on_another_kind_of_device_continues_with_other_draws() -> None:
    original = prioritized(64)
    play(original, 30)
    drawn = []
    for rows in (0, 0, 3):
        play(original, rows)
        restored = prioritized(64)
        restored.load(original.state() | {"generator": torch.zeros(16, dtype=torch.uint8)})  # as large as a GPU's
        assert torch.equal(restored.tree.leaves, original.tree.leaves)
        drawn.append(restored.sample(32).ids.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_frames_may_be_read_straight_into_place_before_the_rest_is_loaded() -> None:
    original, restored = prioritized(), prioritized(seed=99)
    play(original, 30)
    state = original.state()
    assert state["frames"] is original.frames, "shared, so that a checkpoint can stream it"
    restored.frames.copy_(state["frames"])
    restored.load({**state, "frames": restored.frames})
    assert_same_future(restored, original)


def test_a_state_of_another_shape_is_refused() -> None:
    state = prioritized(32).state()
    for other in (prioritized(16), prioritized(64, num_envs=2), uniform(32, num_envs=2)):
        with pytest.raises(ValueError, match="stored ring"):
            other.load(state)


def test_a_cut_replay_continues_without_joining_the_two_games() -> None:
    replay = prioritized(16, n_step=2)
    play(replay, 4)
    replay.cut()
    replay.append(np.full((1, 1), 100, dtype=np.uint8), [False])
    play(replay, 2)
    batch = replay.sample(64)
    pairs = set(zip(batch.obs[:, -1, 0].tolist(), batch.next_obs[:, -1, 0].tolist(), strict=True))
    assert pairs == {(0, 2), (1, 3), (2, 3), (100, 6)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_replay_draws_what_its_own_ring_holds() -> None:
    replay = prioritized(1024, num_envs=4, n_step=3, stack=4, device="cuda")
    for _ in range(50):
        play(replay, 10)
        batch = replay.sample(32)
        rows = batch.ids // 4
        assert torch.equal(batch.obs[:, -1, 0].long(), rows % 256)
        assert torch.equal(batch.next_obs[:, -1, 0].long(), (rows + 3) % 256)
        assert bool(((batch.weights > 0) & (batch.weights <= 1)).all())
        replay.update_priorities(batch.ids, torch.randn(32, device="cuda"))
    assert int((replay.tree.leaves > 0).sum()) == replay.fill
