"""The regression check: exact counts, the budget, and ratios that fail only when they miss twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from atari_dqn.diagnostics.measure import Turn
from benchmarks import counts, ratios, regression
from benchmarks.counts import Counter
from benchmarks.regression import BUDGET, HARD, RATIOS, Ratio, check_ratios, over_budget, well_under


def test_the_counter_counts_calls_and_allocated_memory() -> None:
    weight = torch.ones(100, requires_grad=True)
    with Counter() as counter:
        (weight * 2).sum().backward()
    calls, allocated = counter.calls, counter.allocated
    assert calls >= 5, "mul and sum; the gradient's ones and expand, and mul again"
    with Counter() as counter:
        fresh = torch.zeros(100, dtype=torch.float64)
        assert (counter.calls, counter.allocated) == (1, 800)
        fresh.view(10, 10).t()[2:].mul_(2)
        torch.add(fresh, 1, out=fresh)
        assert (counter.calls, counter.allocated) == (6, 800), "views and work in place allocate nothing"
        torch._foreach_mul([fresh, fresh[:10]], 2)
        assert counter.allocated == 800 + 880
    assert allocated >= 400 + 4 + 400
    with Counter() as counter, torch.profiler.record_function("a phase"):
        pass
    assert counter.calls == 0, "marking a phase is not work"


def test_memory_in_the_layout_of_onednn_counts() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    x = torch.ones(8, 8)
    with Counter() as counter:
        x.to_mkldnn()
    assert (counter.calls, counter.allocated) == (1, 256)


@pytest.mark.parametrize(
    ("figures", "budget", "over", "under"),
    [
        ({"a": 10}, {"a": 10}, [], []),
        ({"a": 11}, {"a": 10}, ["a: 11, over its budget of 10"], []),
        ({"a": 9}, {"a": 10}, [], []),
        ({"a": 8}, {"a": 10}, [], ["a: 8, well under its budget of 10"]),
        ({"a": 1}, {}, ["a: 1, but has no budget"], []),
        ({}, {"a": 10}, ["a: has a budget of 10 but is no longer counted"], []),
        ({"a": 0}, {"a": 0}, [], []),
    ],
)
def test_counts_over_and_well_under_the_budget_are_reported(
    figures: dict[str, int], budget: dict[str, int], over: list[str], under: list[str]
) -> None:
    assert over_budget(figures, budget) == over
    assert well_under(figures, budget) == under


def test_a_hard_limit_holds_whatever_the_budget() -> None:
    name = "replay: bytes a transition"
    assert over_budget({name: 7201}, {name: 9000}) == [f"{name}: 7,201, over its budget of 7,200"]
    assert over_budget({name: 7200}, {name: 9000}) == []


def test_the_committed_budget_is_within_the_hard_limits() -> None:
    budget = json.loads(BUDGET.read_text())["figures"]
    assert all(budget[name] <= most for name, most in HARD.items())


def test_a_written_budget_is_then_enforced(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(regression, "BUDGET", tmp_path / "budget.json")
    monkeypatch.setattr(counts, "figures", lambda: {"calls": 20})
    assert regression.main(["--write-budget"]) == 0
    assert regression.check_counts(write=False) == []
    monkeypatch.setattr(counts, "figures", lambda: {"calls": 21})
    assert regression.check_counts(write=False) == ["calls: 21, over its budget of 20"]
    stored = json.loads((tmp_path / "budget.json").read_text())
    (tmp_path / "budget.json").write_text(json.dumps(stored | {"torch": "2.0"}))
    assert "counted with torch 2.0" in regression.check_counts(write=False)[0]
    monkeypatch.setattr(counts, "figures", lambda: {"calls": 12})
    capsys.readouterr()
    assert regression.check_counts(write=False) == []
    assert "calls: 12, well under its budget of 20; lower it with --write-budget" in capsys.readouterr().out


def turn(env_steps: int, updates: int, wall: float, cpu: float = 1.0) -> Turn:
    return Turn(env_steps, updates, wall, cpu, others=0.0)


def turns(**changes: Turn) -> Mapping[str, Turn]:
    """Turns of a round in which every ratio is well within its bound."""
    return {
        "workers": turn(900, 0, 1.0),
        "native": turn(1000, 0, 1.0),
        "fp32 fixed": turn(0, 40, 1.0),
        "fp32 replay": turn(0, 38, 1.0),
        "plain fixed": turn(0, 25, 1.0),
        "whole envs": turn(1000, 0, 1.0),
        "whole learner": turn(0, 25, 1.0),
        "whole loop": turn(90, 22, 1.0),
    } | {name.replace("_", " "): change for name, change in changes.items()}


@pytest.mark.parametrize(
    ("name", "slower", "figure"),
    [
        ("updates/s, fp32 over plain", {"fp32_fixed": turn(0, 23, 1.0), "fp32_replay": turn(0, 23, 1.0)}, "0.92"),
        ("updates/s, drawn batches over given ones", {"fp32_replay": turn(0, 30, 1.0)}, "0.75"),
        ("env steps/s, our workers over AtariVectorEnv", {"workers": turn(550, 0, 1.0)}, "0.55"),
        ("time of the loop over its limit", {"whole_loop": turn(125, 31, 2.0)}, "1.60"),
    ],
)
def test_a_regression_is_reported_with_its_rounds(
    name: str, slower: dict[str, Turn], figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratios, "cores", lambda: 2)
    assert check_ratios(RATIOS, lambda rounds: [turns()] * rounds) == []
    taken: list[int] = []

    def take(rounds: int) -> list[Mapping[str, Turn]]:
        taken.append(rounds)
        return [turns(), *[turns(**slower)] * (rounds - 1)]

    (line,) = check_ratios(RATIOS, take, rounds=6)
    assert line.startswith(f"{name}: {figure} ({RATIOS[name]}); rounds ")
    assert line.count(figure) == 6, "the median, and five of the rounds"
    assert taken == [6, 6]


def test_noise_in_most_of_the_rounds_is_not_a_miss() -> None:
    slow, fast = turns(workers=turn(550, 0, 1.0)), turns()
    assert check_ratios(RATIOS, lambda rounds: [fast] * 2 + [slow] * (rounds - 2), rounds=6) == []


def test_a_miss_that_is_not_repeated_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = turns(workers=turn(1, 0, 1.0)), turns()
    results = iter([[slow] * 3, [fast] * 3])
    assert check_ratios(RATIOS, lambda rounds: next(results), rounds=3) == []
    assert "once more: 1 missed" in capsys.readouterr().out


def test_a_bound_may_be_on_either_side() -> None:
    assert Ratio(lambda t: 0, least=1.0).holds(1.0)
    assert not Ratio(lambda t: 0, least=1.0).holds(0.99)
    assert Ratio(lambda t: 0, most=1.0).holds(1.0)
    assert not Ratio(lambda t: 0, most=1.0).holds(1.01)


def test_counts_of_the_real_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an environment that is not Atari: bytes through pipes, and each part of an update."""
    from atari_dqn.config.schema import TrainConfig
    from atari_dqn.envs.make import env_spec
    from atari_dqn.envs.protocol import PROTOCOLS

    monkeypatch.setattr(counts, "TICKS", 2)
    config = TrainConfig().replace(env_id="CartPole-v1")
    found = counts._of_loop(config, env_spec("CartPole-v1", PROTOCOLS["nature"], 4), "fp32")
    assert found["workers: bytes through pipes a worker and tick"] == 2
    for part in ("inference", "sampling", "forward", "backward", "optimizer", "append"):
        assert found[f"fp32 {part}: calls"] > 0, part
    assert found["fp32 waiting: calls"] == 0
    assert found["fp32 target copy: calls"] == 1
