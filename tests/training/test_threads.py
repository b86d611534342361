"""The choice of the number of torch threads, on machines whose load is simulated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atari_dqn.agent import device
from atari_dqn.agent.device import set_up_torch
from atari_dqn.config.schema import TrainConfig
from atari_dqn.training import start
from atari_dqn.training.start import Run
from atari_dqn.training.threads import BLOCK, LEAST, LOOK_SECONDS, ThreadChoice
from tests.training.test_start import trained

Seconds = Callable[[float, int], float]
"""Seconds per update at a moment, with a number of threads"""


def simulate(per_update: Seconds, until: float, most: int = 4) -> tuple[list[tuple[float, int]], list[str], int]:
    """Turns of two updates: at which time with how many threads, the lines for the user, and the updates made."""
    used = [most]
    choice, now, turns, lines = ThreadChoice(most, used.append), 0.0, [], []
    while now < until:
        seconds = 2 * per_update(now, used[-1])
        turns.append((now, used[-1]))
        now += seconds
        lines += [line for line in [choice.took(seconds, 2)] if line]
    return turns, lines, 2 * len(turns)


def test_a_short_run_on_a_busy_machine_loses_little() -> None:
    """A block that is clearly slower is not finished."""
    _, _, updates = simulate(lambda now, threads: {1: 0.02, 4: 0.5}[threads], 60)
    assert updates >= 0.9 * 60 / 0.02


@pytest.mark.parametrize(("one", "most"), [(0.02, 0.5), (0.02, 0.024), (0.02, 0.0125), (0.002, 0.001), (0.5, 0.9)])
def test_the_faster_number_is_found_and_costs_little(one: float, most: float) -> None:
    times = {1: one, 4: most}
    turns, lines, updates = simulate(lambda now, threads: times[threads], 3_600)
    better = min(times, key=lambda threads: times[threads])
    assert turns[-1][1] == better
    assert len(lines) == 1
    assert lines[0].startswith(f"torch threads: {better} (")
    assert updates >= 0.95 * 3_600 / min(times.values())
    assert {threads for _, threads in turns[: BLOCK * LEAST]} == {1, 4}


def test_a_pace_that_drops_and_one_that_recovers_change_the_choice() -> None:
    """Others take the cores for 40 minutes. They slow one thread down too, but less."""

    def per_update(now: float, threads: int) -> float:
        busy = 1_500 < now < 3_600
        return {1: 0.03, 4: 0.3}[threads] if busy else {1: 0.02, 4: 0.01}[threads]

    turns, lines, _ = simulate(per_update, 7_200)
    assert [line.split(" (")[0] for line in lines] == [f"torch threads: {threads}" for threads in (4, 1, 4)]
    wrong = [now for now, threads in turns if threads != (1 if 1_500 < now < 3_600 else 4)]
    assert len(wrong) < 0.03 * len(turns)
    assert next(now for now, threads in turns if now > 1_500 and threads == 1) < 1_510, "not at the next look"
    assert turns[-1][1] == 4
    back = next(now for now, threads in turns if now > 3_600 and threads == 4)
    assert back < 3_600 + 1.1 * LOOK_SECONDS


def test_single_slow_updates_change_nothing() -> None:
    """Such as those beside the reset of an environment."""
    count = iter(range(10**9))
    _, lines, _ = simulate(lambda now, threads: {1: 0.02, 4: 0.01}[threads] * (10 if next(count) % 50 == 0 else 1), 900)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "environment", "before", "threads"),
    [
        ("pixels", {}, None, None, 6),
        ("vector", {}, None, None, 1),
        ("pixels", {"torch_threads": 3}, "2", None, 3),
        ("pixels", {}, "2", None, 2),
        ("vector", {}, "2", None, 2),
        ("pixels", {}, "4,2", None, 4),
        ("pixels", {}, "", None, 6),
        ("pixels", {}, "many", None, 6),
        ("pixels", {}, "9" * 20, None, 6),
        ("pixels", {}, "9" * 5000, None, 6),
        ("pixels", {}, None, 2, 6),
        ("pixels", {"deterministic": True}, None, None, 6),
        ("pixels", {"deterministic": True}, None, 2, 2),
        ("vector", {"deterministic": True}, "3", 2, 3),
    ],
)
def test_threads_by_settings_environment_and_kind(
    kind: str,
    settings: dict[str, Any],
    environment: str | None,
    before: int | None,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 6 cores. A deterministic run keeps what it had."""
    monkeypatch.setattr(device, "usable_cores", lambda: 6)
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert set_up_torch(TrainConfig().replace(**settings), kind, before) == threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("settings", "environment", "chosen"),
    [
        ({}, None, True),
        ({"deterministic": True}, None, False),
        ({}, "2", False),
    ],
)
def test_a_training_on_pixels_chooses_unless_it_is_told(
    settings: dict[str, Any], environment: str | None, chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # this machine may be busy
    monkeypatch.setattr(start, "ThreadChoice", functools.partial(ThreadChoice, set_threads=torch.set_num_threads))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    pixels: dict[str, Any] = {"env_id": "tests.stubs:Colors-v0", "total_env_steps": 160, "replay_ratio": 16.0}
    said = trained(Run(tmp_path), **pixels, **settings)
    assert ("torch threads:" in said) is chosen
