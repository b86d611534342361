"""Numbers that are not finite: the update is skipped and counted, a run of them ends, and none is saved.

Priorities that are refused are in tests/replay; the same update as a CUDA graph in tests/agent/test_cuda_graph.py and
tests/agent/test_gpu.py.
"""

from __future__ import annotations

import io
import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_leaves

from atari_dqn.agent.finite import NotFiniteError, not_finite
from atari_dqn.agent.learner import Learner
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.replay.base import Replay
from atari_dqn.runs.checkpoint_files import load_tensors
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.session import SKIPPED_LIMIT, Session
from atari_dqn.training.snapshot import resume, save
from atari_dqn.training.trainer import Trainer
from tests.agent.test_cuda_graph import Feeder, bits, make_learner, make_replay
from tests.test_train import TRAIN, rows
from tests.training.test_trainer import make_trainer, started

# ---------------------------------------------------------------------- one update


@contextmanager
def bad_gradient(learner: Learner, value: float, element: int = 0) -> Iterator[None]:
    """One element of one weight's gradient is `value`."""

    def spoil(gradient: Tensor) -> Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[element] = value
        return spoilt

    handle = list(learner.policy.parameters())[-1].register_hook(spoil)
    yield
    handle.remove()


@contextmanager
def bad_return(learner: Learner, value: float) -> Iterator[None]:
    """All rewards in the ring are `value`."""
    assert isinstance(learner.replay, Replay)
    with held(learner.replay.ring.reward):
        learner.replay.ring.reward.fill_(value)
        yield


@contextmanager
def bad_target(learner: Learner, value: float) -> Iterator[None]:
    """One weight of the target network is `value`."""
    bias = list(learner.target_policy.parameters())[-1]
    with held(bias):
        bias.data[0] = value
        yield


@contextmanager
def held(tensor: Tensor) -> Iterator[None]:
    """Afterwards it is as before."""
    before = tensor.detach().clone()
    yield
    tensor.data.copy_(before)


def pair(**settings: Any) -> tuple[Learner, Learner]:
    """Two alike, three updates on, their replays still being the same play."""
    feeder, replays = Feeder(), [make_replay() for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    learners = [make_learner(replay, **settings) for replay in replays]
    for learner, replay in zip(learners, replays, strict=True):
        replay.clip_rewards = False  # or no reward is infinite
        for _ in range(3):
            learner.update()
    return learners[0], learners[1]


def changed_by_sound_updates_only(learner: Learner) -> list[bytes]:
    """`bits` of all but the count of skipped updates."""
    skipped = learner._skipped
    with held(skipped):
        skipped.zero_()
        return bits(learner)


BAD = [bad_gradient, bad_return, bad_target]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", BAD)
def test_an_update_that_is_not_finite_changes_nothing_and_the_next_goes_on(
    bad: Callable[[Learner, float], Any], value: float, settings: dict[str, Any]
) -> None:
    """To the bit as if its batch had been drawn and put back: weights, moments, steps, priorities, means."""
    learner, twin = pair(**settings)
    before = changed_by_sound_updates_only(learner)
    with bad(learner, value):
        for _ in range(2):
            learner.update()
        assert not_finite(learner.evidence())
    assert changed_by_sound_updates_only(learner) == before
    assert (learner.updates, learner.skipped()) == (5, (2, 2))
    for _ in range(2):
        twin.replay.sample(twin.config.batch_size)
    for one in (learner, twin):
        one.update()
    assert changed_by_sound_updates_only(learner) == bits(twin) != before
    assert learner.skipped() == (2, 0)
    assert learner.pop_metrics() == twin.pop_metrics(), "means over four updates, not six"
    with bad(learner, value):
        learner.update()
    assert learner.skipped() == (3, 1)
    assert learner.pop_metrics() == {}


def test_the_first_update_of_all_may_be_bad() -> None:
    """Adam makes its moments at the first step, skipped or not."""
    feeder, replays = Feeder(), [make_replay() for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    learner, twin = map(make_learner, replays)
    with bad_gradient(learner, math.nan):
        learner.update()
    replays[1].sample(twin.config.batch_size)
    for one in (learner, twin):
        one.update()
    assert changed_by_sound_updates_only(learner) == bits(twin)


def test_counts_and_sums_continue_over_a_checkpoint() -> None:
    learner, other = pair()
    with bad_gradient(learner, math.nan):
        learner.update()
    stored = io.BytesIO()
    torch.save(learner.state(), stored)
    stored.seek(0)
    other.update()
    other.load(torch.load(stored, weights_only=True))
    assert other.skipped() == (1, 1)
    assert other.pop_metrics() == learner.pop_metrics() != {}
    with bad_gradient(other, math.nan):
        other.update()
    assert other.skipped() == (2, 2)
    other.update()
    assert other.skipped() == (2, 0)


def test_the_evidence_names_what_was_not_finite() -> None:
    learner, _ = pair()
    with bad_return(learner, math.nan):
        learner.update()
    assert not_finite(learner.evidence())[:3] == ["batch.returns", "td_errors", "targets"]
    with bad_gradient(learner, math.inf):
        learner.update()
    *_, last = dict(learner.policy.named_parameters())
    assert not_finite(learner.evidence()) == [f"gradient.{last}"]


# ---------------------------------------------------------------------- a run


def train(trainer: Trainer, run_dir: Path) -> tuple[bool, str]:
    """Whether it came to its end, and what the user was told."""
    said = io.StringIO()
    monitor = Monitor(run_dir, Console(file=said, width=1000), "test", trainer.config.run.total_env_steps, 0)
    try:
        return Session(trainer, run_dir, monitor, lambda: False).run(), said.getvalue()
    finally:
        monitor.close()


def tensors(state: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def spoil_updates(trainer: Trainer, which: Callable[[int], bool]) -> None:
    """Gradients of the updates whose numbers (from 1) are `which` become NaN."""

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * math.nan if which(trainer.learner.updates + 1) else gradient

    next(trainer.learner.policy.parameters()).register_hook(spoil)


def test_skipped_updates_stand_in_every_row_and_are_told_once(tmp_path: Path) -> None:
    trainer = make_trainer(log_interval=80, total_env_steps=480)
    spoil_updates(trainer, lambda update: update in (30, 31, 60))
    finished, said = train(trainer, tmp_path)
    assert finished
    learning = [row for row in rows(tmp_path) if row["update"]]
    assert len(learning) >= 4
    told, before = [], 0
    for row in learning:
        skipped = sum(update <= row["update"] for update in (30, 31, 60))
        assert row["learner/skipped_updates"] == skipped
        assert "losses/td_loss" in row
        assert all(map(math.isfinite, row.values()))
        if skipped > before:
            told.append(
                f"env step {row['env_step']}: {skipped - before} updates skipped because of NaN or infinity in loss or"
                f" gradient; {skipped} in total"
            )
        before = skipped
    assert [line.split("  ", 1)[1] for line in said.splitlines() if "skipped" in line] == told
    assert len(told) == 2


def test_a_sound_update_now_and_then_keeps_a_run_going(tmp_path: Path) -> None:
    trainer = make_trainer(total_env_steps=1_200)
    spoil_updates(trainer, lambda update: update % (SKIPPED_LIMIT - 1) != 0)
    finished, _ = train(trainer, tmp_path)
    assert finished
    assert trainer.learner.skipped().in_all > 2 * SKIPPED_LIMIT


def test_a_run_that_only_skips_stops_with_all_of_it_saved(tmp_path: Path) -> None:
    trainer = make_trainer()
    spoil_updates(trainer, lambda update: update > 50)
    with pytest.raises(NotFiniteError, match=r"^stopped at env step [\d,]+, state saved: .* in a row ") as stopped:
        train(trainer, tmp_path)
    skipped, learner = trainer.learner.skipped(), trainer.learner
    assert skipped.in_a_row == skipped.in_all == learner.updates - 50
    assert SKIPPED_LIMIT <= skipped.in_a_row < 1.5 * SKIPPED_LIMIT
    resumed = make_trainer()
    resume(resumed, CheckpointStore(tmp_path))
    stored = resumed.learner.state()
    assert all(map(torch.equal, tensors(stored), tensors(learner.state())))
    assert not not_finite({**stored, "priorities": resumed.replay.tree.leaves})
    assert resumed.env_steps == trainer.env_steps == rows(tmp_path)[-1]["env_step"]
    assert resumed.learner.skipped() == skipped
    assert rows(tmp_path)[-1]["learner/skipped_updates"] == skipped.in_all
    first, _ = next(learner.policy.named_parameters())
    assert str(stopped.value).endswith(f"NaN or infinity is in gradient.{first}")


PAYS_TOO_MUCH = [
    *(*TRAIN, "--env-id", "tests.stubs:PaysTooMuch-v0", "--num-workers", "1", "--envs-per-worker", "4"),
    *("--replay-capacity", "1024", "--learning-starts", "40", "--batch-size", "8", "--log-interval", "100"),
    *("--total-env-steps", "900", "--precision", "fp32", "--torch-threads", "1", "--run-dir", "a run ü"),
]


def test_the_command_stops_in_one_line_and_its_run_goes_on_when_cured(tmp_path: Path) -> None:
    """Rewards so large that no mean of a batch's errors is finite, first as they are, then clipped."""
    run_dir = tmp_path / "a run ü"
    command = subprocess.run(
        [*PAYS_TOO_MUCH, "--no-clip-rewards"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert command.returncode == 1, command.stderr
    (line,) = command.stderr.splitlines()
    assert line.startswith("error: stopped at env step ")
    assert line.endswith("updates in a row were skipped; a sum of finite numbers is infinite")
    assert "Traceback" not in command.stdout

    stopped = rows(run_dir)[-1]
    stopped_at = int(stopped["env_step"])
    checkpoint = CheckpointStore(run_dir).find("latest")
    assert checkpoint.name == str(stopped_at)
    for file in ("learner.safetensors", "replay.safetensors"):
        assert not not_finite(load_tensors(checkpoint / file))

    command = subprocess.run(
        [*PAYS_TOO_MUCH, "--clip-rewards"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert command.returncode == 0, command.stderr
    assert f"env step {stopped_at:,}" in command.stdout
    assert "skipped" not in command.stdout
    last = rows(run_dir)[-1]
    assert last["learner/skipped_updates"] == stopped["update"] < last["update"]
    assert math.isfinite(last["losses/td_loss"])


# ---------------------------------------------------------------------- nothing of it is saved


def test_nothing_that_is_not_finite_is_saved(tmp_path: Path) -> None:
    """Whatever holds it: the checkpoint before stays, and the refusal names the place."""
    store = CheckpointStore(tmp_path)
    with started(learning_starts=64) as trainer:
        while trainer.learner.updates < 3:
            trainer.iterate()
        save(trainer, store)
        stored = store.steps()
        trainer.iterate()
        learner, replay = trainer.learner, trainer.replay
        places = {
            "online.": next(learner.online.parameters()),
            "target.": next(learner.target.parameters()),
            "optimizer.exp_avg": learner.state()["optimizer"]["exp_avg"],
            "optimizer.exp_avg_sq": learner.state()["optimizer"]["exp_avg_sq"],
            "optimizer.step": learner.state()["optimizer"]["step"],
            "metric_sums": learner.state()["metric_sums"],
            "priorities": replay.tree.leaves,
            "largest_priority": replay._largest,
        }
        for place, tensor in places.items():
            for value in (math.nan, math.inf, -math.inf):
                with held(tensor):
                    tensor.data.view(-1)[-1] = value
                    with pytest.raises(NotFiniteError, match=f"not saved: NaN or infinity is in {place}"):
                        save(trainer, store)
        assert store.steps() == stored
        save(trainer, store)
        assert store.steps() == [*stored, trainer.env_steps]
