"""Tests that need a GPU: captured updates equal eager ones, nothing waits, and results are those of a CPU.

The shapes, the order of operations and what an update reads are proven without one, in test_cuda_graph.py.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atari_dqn.agent.cuda_graph import EAGER_CALLS, CapturedLearner
from atari_dqn.agent.finite import not_finite
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.weights import Precision
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.replay.base import Batch, Replay
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.snapshot import resume, save
from benchmarks.plain_learner import FixedReplay, random_batch
from experiments import cartpole
from tests.agent.test_cuda_graph import (
    BATCH,
    CASES,
    NUM_ENVS,
    SMALL,
    Feeder,
    bits,
    broken_target,
    levels,
    make_learner,
    make_replay,
)
from tests.training.test_learning import CATCH, best_of_training

__all__ = ["levels"]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def exact() -> Iterator[None]:
    """The same bits from the same input, and fp32 arithmetic where fp32 is asked for."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(
    kind: type[Learner], feeder: Feeder, ticks: int = 40, replay: str = "prioritized", **settings: Any
) -> Learner:
    held = make_replay("cuda", replay)
    feeder.feed(held, ticks=ticks)
    return make_learner(held, "cuda", kind, **settings)


def updated(learner: Learner, updates: int) -> Learner:
    for _ in range(updates):
        learner.update()
    return learner


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("kind", "precision", "settings"), CASES)
def test_captured_updates_equal_eager_ones_to_the_bit(
    kind: str, precision: Precision, settings: dict[str, Any]
) -> None:
    feeder, replays = Feeder(), [make_replay("cuda", kind) for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    settings = settings | {"precision": precision, "target_update_interval": 7}
    captured = make_learner(replays[0], "cuda", CapturedLearner, **settings)
    eager = make_learner(replays[1], "cuda", Learner, **settings)
    assert isinstance(captured, CapturedLearner)
    for update in range(50):
        feeder.feed(*replays, ticks=2)
        for learner, replay in zip((captured, eager), replays, strict=True):
            learner.learning_rate.fill_(1e-3 / (update + 1))
            learner.max_grad_norm.fill_(0.01 * (update + 1))
            replay.beta.fill_(0.02 * update)
            learner.update()
        assert captured.captured.recorded == (update >= EAGER_CALLS)
        assert bits(captured) == bits(eager), f"update {update}"
    assert torch.equal(replays[0].generator.get_state(), replays[1].generator.get_state())
    assert captured.pop_metrics() == eager.pop_metrics()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_captured_update_that_is_not_finite_is_skipped_and_counted(optimizer: str) -> None:
    """As the eager one, without waiting; weights, moments, steps and priorities stay, and later updates work."""
    feeder, replays = Feeder(), [make_replay("cuda") for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    captured, eager = (
        updated(make_learner(replay, "cuda", kind, optimizer=optimizer), EAGER_CALLS + 1)
        for replay, kind in zip(replays, (CapturedLearner, Learner), strict=True)
    )
    for learner, replay in zip((captured, eager), replays, strict=True):
        stays = [*learner.online.parameters(), *learner.state()["optimizer"].values(), replay.tree.leaves]
        before = [tensor.clone() for tensor in stays]
        broken_target(learner)
        with no_waiting():
            updated(learner, 2)
        assert all(map(torch.equal, before, stays))
        assert learner.skipped() == (2, 2)
        assert "td_errors" in not_finite(learner.evidence())
        learner.sync_target()
        updated(learner, 3)
        assert learner.skipped() == (2, 0)
    assert bits(captured) == bits(eager)
    assert captured.pop_metrics() == eager.pop_metrics()


def test_the_next_captured_update_uses_a_live_learning_rate() -> None:
    learner = updated(on_gpu(CapturedLearner, Feeder()), 10)
    before = [param.clone() for param in learner.online.parameters()]
    learner.learning_rate.fill_(0)
    updated(learner, 1)
    assert all(map(torch.equal, before, learner.online.parameters()))
    learner.learning_rate.fill_(1e-3)
    updated(learner, 1)
    assert not any(map(torch.equal, before, learner.online.parameters()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_target_follows_captured_updates(precision: Precision) -> None:
    learner = on_gpu(CapturedLearner, Feeder(), precision=precision, target_update_interval=10)
    start = [param.clone() for param in learner.target.parameters()]
    updated(learner, 9)
    assert all(map(torch.equal, start, learner.target.parameters()))
    updated(learner, 1)
    assert all(map(torch.equal, learner.online.parameters(), learner.target.parameters()))
    assert all(map(torch.equal, learner.policy.parameters(), learner.target_policy.parameters()))


def test_updates_appends_and_syncs_never_wait_for_the_gpu() -> None:
    feeder = Feeder()
    learner = updated(on_gpu(CapturedLearner, feeder, target_update_interval=3), EAGER_CALLS + 1)
    eager = updated(on_gpu(Learner, Feeder(), target_update_interval=3), EAGER_CALLS + 1)
    assert isinstance(learner.replay, Replay)
    with no_waiting():
        with pytest.raises(RuntimeError, match="synchroniz"):
            learner.learning_rate.item()
        for _ in range(10):
            feeder.feed(learner.replay, ticks=1)
            learner.learning_rate.fill_(1e-4)
            learner.replay.beta.fill_(0.5)
            learner.update()
            eager.update()
            learner.replay.latest_observation()


@pytest.mark.usefixtures("exact")
def test_a_resumed_run_captures_again_and_keeps_its_bits() -> None:
    feeder = Feeder()
    learner = updated(on_gpu(CapturedLearner, feeder), 10)
    other = updated(on_gpu(CapturedLearner, Feeder(), ticks=55), 8)  # which has a record of its own by now
    assert isinstance(learner.replay, Replay)
    assert isinstance(other, CapturedLearner)
    assert isinstance(other.replay, Replay)
    stored = io.BytesIO()
    torch.save((learner.state(), learner.replay.state()), stored)
    stored.seek(0)
    of_learner, of_replay = torch.load(stored, map_location="cpu", weights_only=True)
    other.load(of_learner)
    other.replay.load(of_replay)
    assert not other.captured.recorded
    for one in (learner, other):
        one.pop_metrics()
    for _ in range(20):
        feeder.feed(learner.replay, other.replay, ticks=2)
        for one in (learner, other):
            one.update()
        assert bits(other) == bits(learner)
    assert other.captured.recorded


def test_changed_settings_are_captured_again() -> None:
    learner = updated(on_gpu(CapturedLearner, Feeder()), 10)
    assert isinstance(learner, CapturedLearner)
    learner.config = dataclasses.replace(learner.config, batch_size=2 * BATCH)
    updated(learner, 1)
    assert not learner.captured.recorded
    updated(learner, EAGER_CALLS)
    assert learner.captured.recorded


def test_an_empty_replay_is_refused_by_a_captured_update_too() -> None:
    learner = updated(on_gpu(CapturedLearner, Feeder()), 10)
    assert isinstance(learner.replay, Replay)
    for _ in range(learner.replay.num_rows + 8):  # final frames only
        learner.replay.append(np.zeros((NUM_ENVS, *SMALL.frame_shape), np.uint8), np.ones(NUM_ENVS, bool),
                              np.zeros(NUM_ENVS), np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, bool))  # fmt: skip
    with pytest.raises(RuntimeError, match="nothing to draw"):
        learner.update()


@pytest.mark.usefixtures("exact")
def test_a_gpu_learns_what_a_cpu_learns() -> None:
    """From the same batches in fp32, to 1% of the distance that each weight has gone after 30 updates."""
    generator = torch.Generator().manual_seed(3)
    shape = (SMALL.stack, *SMALL.frame_shape)
    batches = [random_batch(generator, BATCH, shape, SMALL.num_actions) for _ in range(4)]
    there = [Batch(**{name: value.cuda() for name, value in vars(batch).items()}) for batch in batches]
    settings: dict[str, Any] = {"adam_epsilon": 1e-2, "learning_rate": 1e-2, "target_update_interval": 5}
    cpu = make_learner(FixedReplay(batches), **settings)  # type: ignore[arg-type]
    other = make_learner(FixedReplay(there), "cuda", **settings)  # type: ignore[arg-type]
    start = [param.clone() for param in cpu.online.parameters()]
    for learner in (cpu, other):
        updated(learner, 30)
    for before, ours, theirs in zip(start, cpu.online.parameters(), other.online.parameters(), strict=True):
        moved = float((ours - before).detach().norm())
        assert moved > 0
        assert float((ours - theirs.cpu()).detach().norm()) < 0.01 * moved


def test_a_gpu_draws_what_a_cpu_draws_given_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    feeder, replays = Feeder(), [make_replay(device) for device in ("cpu", "cuda")]
    numbers = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(torch, "rand", lambda *size, device, **settings: numbers.to(device, copy=True))
    for _ in range(30):
        feeder.feed(*replays, ticks=5)
        ours, theirs = (replay.sample(64) for replay in replays)
        for name, value in vars(ours).items():
            torch.testing.assert_close(value, getattr(theirs, name).cpu(), rtol=1e-5, atol=1e-6)
        errors = numbers.roll(1) * 3
        for replay, batch in zip(replays, (ours, theirs), strict=True):
            replay.update_priorities(batch.ids, errors.to(batch.ids.device))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_whole_training_runs_on_a_gpu(cuda_graph: bool, tmp_path: Path) -> None:
    """Pixels in bf16, resumed from a checkpoint, with the actor's network captured too."""
    settings = CATCH | {"device": "cuda", "precision": "bf16", "cuda_graph": cuda_graph, "learning_starts": 200}
    config = TrainConfig().replace(**settings).validate()
    spec = spec_of(config.env)
    store = CheckpointStore(tmp_path)
    for updates in (40, 80):
        trainer = local_trainer(config, spec)
        resume(trainer, store)
        try:
            trainer.start()
            while trainer.learner.updates < updates:
                trainer.iterate()
            obs = trainer.replay.latest_observation()
            with torch.inference_mode():
                torch.testing.assert_close(
                    trainer.actor.network(obs), trainer.learner.policy(obs), rtol=0.02, atol=1e-3
                )
            assert isinstance(trainer.learner, CapturedLearner) == cuda_graph
            assert all(map(math.isfinite, trainer.learner.pop_metrics().values()))
            save(trainer, store)
        finally:
            trainer.close()
    assert not cuda_graph or (isinstance(trainer.learner, CapturedLearner) and trainer.learner.captured.recorded)


@pytest.mark.slow
def test_cartpole_is_solved_on_a_gpu() -> None:
    config = cartpole.CONFIG.replace(device="cuda", total_env_steps=120_000, epsilon_at=(0.0, 0.1))
    assert best_of_training(config, mark=475, every=10_000, episodes=100) >= 475
