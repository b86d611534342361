"""Tests of the sum tree against plain sums: every node, every draw, every refusal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from atari_dqn.replay import sum_tree
from atari_dqn.replay.arrays import TORCH, as_array, as_tensor
from atari_dqn.replay.sum_tree import FANOUT, SumTree


@pytest.fixture(autouse=True, params=["cpu", "cuda"])
def fanout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every tree here is tried with the children per node, and the library, of a CPU and of a GPU."""
    children: int = FANOUT[request.param]
    monkeypatch.setitem(FANOUT, "cpu", children)
    if request.param == "cuda":
        monkeypatch.setattr(sum_tree, "library", lambda device: TORCH)
    return children


def tree_of(values: list[float] | np.ndarray) -> SumTree:
    tree = SumTree(len(values))
    tree.load(torch.as_tensor(np.asarray(values, dtype=np.float64)))
    return tree


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def below(mass: float) -> float:
    return math.nextafter(mass, -math.inf)


def assert_every_node_is_the_reduction_of_its_children(tree: SumTree) -> None:
    for level, sums in enumerate(tree.sums[1:]):
        children = as_array(tree.xp, tree.sums[level].view(len(sums), -1))
        assert torch.equal(sums, as_tensor(tree.xp.sum(children, 1))), f"sums of level {level}"


@pytest.mark.parametrize(("size", "nearest"), [(0, "1 or 2"), (3, "2 or 4"), (100_000, "65536 or 131072")])
def test_a_size_that_is_not_a_power_of_two_is_refused_with_the_two_nearest(size: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest):
        SumTree(size)


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128, 4096, 8192, 2**18])
def test_find_is_exact_where_the_sums_are(size: int) -> None:
    """Whole priorities have exact sums, so each mass has one right leaf: the one a plain prefix sum gives."""
    generator = np.random.default_rng(size)
    values = generator.integers(0, 4, size)
    values[0] = max(values[0], 1)
    tree, prefix = tree_of(values), np.cumsum(values)
    assert float(tree.total) == prefix[-1]
    whole = generator.integers(0, prefix[-1], 5_000).astype(np.float64)
    for mass in (whole, np.nextafter(whole + 1, 0), whole + generator.random(len(whole))):
        found = tree.find(torch.from_numpy(mass)).numpy()
        np.testing.assert_array_equal(found, np.searchsorted(prefix, mass, side="right"))


@settings(max_examples=150)
@given(data=st.data(), exponent=st.integers(0, 8))
def test_a_leaf_of_priority_zero_is_never_found(data: st.DataObject, exponent: int) -> None:
    """At 0, at the total and on each side of every boundary between leaves, at scales that differ by 10^24."""
    size = 2**exponent
    priorities = st.one_of(st.just(0.0), st.just(0.0), st.floats(1e-12, 1e12), st.sampled_from([0.1, 0.3, 5e-324]))
    values = np.array(data.draw(st.lists(priorities, min_size=size, max_size=size)))
    values[data.draw(st.integers(0, size - 1))] = data.draw(st.floats(1e-6, 1e6))
    tree, total = tree_of(values), float(tree_of(values).total)
    edges = np.concatenate([np.cumsum(values), [0.0, total]])
    masses = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf), [-1e30, 2 * total]])
    found = tree.find(torch.from_numpy(masses)).numpy()
    assert (values[found] > 0).all()
    assert tree.find(tensor(0.0, -1e30)).tolist() == [np.flatnonzero(values)[0]] * 2


def test_rounding_at_the_end_of_a_run_of_zeros_finds_the_last_positive_leaf() -> None:
    """0.1 added up does not meet its own sum: the masses in between must not run off into the empty leaves."""
    for count in (3, 10, 63, 64, 70, 1_000):
        tree = tree_of([0.1] * count + [0.0] * (4096 - count))
        total = float(tree.total)
        masses = tensor(total, below(total), below(below(total)), math.fsum([0.1] * count))
        assert set(tree.find(masses).tolist()) == {count - 1}


def test_after_very_many_random_writes_every_node_is_the_reduction_of_its_children(fanout: int) -> None:
    """A million with the children of a CPU's nodes; a write reads them all, so with a GPU's as many fewer."""
    enough = 64_000_000 // fanout
    generator, tree = np.random.default_rng(0), SumTree(2**13)
    written, mirror = 0, np.zeros(2**13)
    for size in itertools.cycle((1, 7, 32, 33, 1_000, 4_000)):
        leaves = generator.permutation(2**13)[:size]
        values = 10 ** generator.uniform(-6, 3, size) * (generator.random(size) < 0.8)
        tree.write(torch.from_numpy(leaves), torch.from_numpy(values))
        mirror[leaves] = values
        written += size
        if written >= enough:
            break
    np.testing.assert_array_equal(tree.leaves.numpy(), mirror)
    assert_every_node_is_the_reduction_of_its_children(tree)
    assert float(tree.total) == pytest.approx(math.fsum(mirror), rel=1e-14), "no drift"


@pytest.mark.parametrize("size", [1, 2, 64, 128, 8192])
def test_a_loaded_tree_equals_the_written_one_bit_for_bit(size: int) -> None:
    generator, written = np.random.default_rng(size), SumTree(size)
    for _ in range(50):
        leaves, values = generator.integers(0, size, 40), generator.random(40) * (generator.random(40) < 0.5)
        written.write(torch.from_numpy(leaves), torch.from_numpy(values))
    loaded = SumTree(size)
    loaded.load(written.leaves)
    for ours, theirs in zip(loaded.sums, written.sums, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="leaves"):
        SumTree(2 * size).load(written.leaves)


def test_of_duplicates_the_larger_wins_in_any_order() -> None:
    for order in itertools.permutations([(70, 2.0), (70, 5.0), (3, 1.0), (70, 3.0)]):
        tree = tree_of([9.0] * 128)
        tree.write(torch.tensor([leaf for leaf, _ in order]), tensor(*(value for _, value in order)))
        assert (tree.leaves[70], tree.leaves[3]) == (5.0, 1.0), "the larger of the new values, not the old 9"
        assert float(tree.total) == 126 * 9 + 5 + 1
        assert_every_node_is_the_reduction_of_its_children(tree)


def test_entries_that_are_not_kept_write_nothing_and_do_not_win_over_kept_ones() -> None:
    tree = tree_of([9.0] * 8)
    leaves, values = torch.tensor([0, 0, 1, 2, 2]), tensor(1.0, 50.0, 60.0, 0.0, 70.0)
    tree.write(leaves, values, keep=torch.tensor([True, False, False, True, False]))
    assert tree.leaves.tolist() == [1.0, 9.0, 0.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    assert_every_node_is_the_reduction_of_its_children(tree)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9])
@pytest.mark.parametrize("keep", [None, torch.tensor([True, True, True])])
def test_a_negative_or_not_finite_priority_is_refused_and_nothing_changes(bad: float, keep: Tensor | None) -> None:
    tree = tree_of([1.0, 2.0, 3.0, 0.0])
    before = [level.clone() for level in tree.sums]
    with pytest.raises(ValueError, match="finite"):
        tree.write(torch.tensor([0, 1, 2]), tensor(7.0, bad, 7.0), keep=keep)
    assert all(map(torch.equal, before, tree.sums))


def test_the_total_stays_the_same_tensor() -> None:
    """A captured CUDA graph refers to it."""
    tree = SumTree(128)
    total = tree.total
    tree.write(torch.tensor([5]), tensor(0.25))
    tree.load(tree.leaves * 2)
    assert float(total) == 0.5


def chi_square(observed: np.ndarray, weight: np.ndarray) -> float:
    """The probability of frequencies as far off as `observed`, were the draws in proportion to `weight`."""
    return float(stats.chisquare(observed, weight * (observed.sum() / weight.sum())).pvalue)


def test_frequencies_of_a_small_tree() -> None:
    values = np.array([0.0, 1.0, 0.5, 0.0, 3.0, 0.25, 0.1, 0.0, 2.0, 0.0, 0.0, 0.05, 1.0, 1.0, 0.7, 0.0])
    tree = tree_of(values)
    mass = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * tree.total
    observed = np.bincount(tree.find(mass).numpy(), minlength=16)
    assert observed[values == 0].sum() == 0
    assert chi_square(observed[values > 0], values[values > 0]) > 1e-3


def test_frequencies_at_a_million_leaves() -> None:
    """Leaves of 0.01 and 0.99 by turns: beyond 2^18, float32 cannot tell where in the narrow ones a mass lies."""
    tree = tree_of(np.tile([0.01, 0.99], 2**19))
    generator = torch.Generator().manual_seed(4)
    observed = np.zeros(32)
    for _ in range(25):
        mass = torch.rand(4_000, dtype=torch.float64, generator=generator) * tree.total
        found = tree.find(mass).numpy()
        observed += np.bincount((found >> 16 << 1) | (found & 1), minlength=32)  # 16 regions, narrow and wide
    assert chi_square(observed, np.tile([0.01, 0.99], 16)) > 1e-3


def test_four_million_leaves_take_two_levels_on_a_gpu() -> None:
    """Launches are what a tree costs there."""
    assert len(SumTree(2**22, "meta").sums) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_leaves_a_cpu_draws() -> None:
    generator = np.random.default_rng(5)
    values = generator.integers(0, 4, 2**17).astype(np.float64)
    tree = SumTree(2**17, "cuda")
    leaves = torch.from_numpy(generator.permutation(2**17)).cuda()
    tree.write(leaves, torch.from_numpy(values).cuda()[leaves])
    masses = torch.from_numpy(generator.random(10_000) * values.sum())
    assert torch.equal(tree.find(masses.cuda()).cpu(), tree_of(values).find(masses))
