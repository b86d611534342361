"""Distribution of workers over nodes: in proportion, complete, and in ranges."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atari_dqn.config.setting import ConfigError
from atari_dqn.distributed.cluster import Node, check_room
from atari_dqn.distributed.placement import crowd, ranges, spread

CPUS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), min_size=1)


@given(CPUS, st.integers(1, 200))
def test_workers_are_spread_in_proportion_to_free_cpus(free: dict[str, int], workers: int) -> None:
    total = sum(free.values())
    assume(total >= workers)
    counts = spread(workers, free)
    assert sum(counts.values()) == workers
    for node, cpus in free.items():
        assert counts.get(node, 0) <= cpus
        assert abs(counts.get(node, 0) - workers * cpus / total) < 1


def test_the_rest_goes_where_most_is_missing() -> None:
    assert spread(4, {"a": 8, "b": 4, "c": 4}) == {"a": 2, "b": 1, "c": 1}
    assert spread(5, {"a": 7, "b": 3}) == {"a": 4, "b": 1} or spread(5, {"a": 7, "b": 3}) == {"a": 3, "b": 2}
    assert spread(1, {"a": 1, "b": 6}) == {"b": 1}


def test_without_free_cpus_workers_go_where_the_fewest_share_a_cpu() -> None:
    assert crowd(3, {"a": 4, "b": 1}, {"a": 4, "b": 2}) == {"a": 2, "b": 1}
    assert crowd(2, {}, {"a": 0, "b": 1}) == {"b": 2}
    assert crowd(0, {}, {"a": 1}) == {}


@given(st.sets(st.integers(0, 60), min_size=1), CPUS)
def test_every_worker_is_dealt_once_and_in_ranges(workers: set[int], free: dict[str, int]) -> None:
    ordered = sorted(workers)
    counts = crowd(len(ordered), {}, free)
    dealt = ranges(ordered, counts)
    assert sorted(index for _, mine in dealt for index in mine) == ordered
    for node, count in counts.items():
        assert sum(len(mine) for name, mine in dealt if name == node) == count


def test_gaps_split_a_share() -> None:
    assert ranges([0, 1, 6, 7, 8], {"a": 3, "b": 2}) == [("a", range(2)), ("a", range(6, 7)), ("b", range(7, 9))]


@pytest.mark.parametrize(
    ("workers", "envs", "advice"),
    [
        (8, 16, "try --num-workers 4 --envs-per-worker 4, or more nodes"),
        (7, 7, "try --num-workers 1 --envs-per-worker 7, or more nodes"),
        (6, 18, "try --num-workers 3 --envs-per-worker 6, or more nodes"),
    ],
)
def test_too_few_cpus_are_refused_with_what_would_be_right(workers: int, envs: int, advice: str) -> None:
    nodes = {"1": Node("1", "one (1)", 4), "2": Node("2", "two (2)", 2)}
    with pytest.raises(ConfigError, match=rf"cluster has 5 free CPUs \(one \(1\) 3 of 4, two \(2\) 2 of 2\).*{advice}"):
        check_room({"1": 3, "2": 2}, nodes, workers, envs)
    check_room({"1": 3, "2": 2}, nodes, 5, 10)
    with pytest.raises(ConfigError, match=r"has 0 free CPUs .*; try more nodes"):
        check_room({"1": 0, "2": 0}, nodes, 1, 2)
