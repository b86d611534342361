"""Live edits in the loop: each is obeyed at the next iteration, outlives a resume, and repeats bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from atari_dqn.config.derived import updates_at
from atari_dqn.config.live import SCHEDULE, Edit, Request, new_request
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.edits import RECORD, Inbox, live_values, read_edits, recorded_edits
from atari_dqn.runs.records import read_rows
from atari_dqn.training.session import Session
from atari_dqn.training.snapshot import Resumed, resume
from atari_dqn.training.trainer import Trainer
from tests.training.test_trainer import make_trainer, started, weights


def ask(trainer: Trainer, name: str, value: Any) -> None:
    assert trainer.edit(Request(name, value, "test")).taken


def learning(trainer: Trainer) -> Trainer:
    while trainer.learner.updates < 10:
        trainer.iterate()
    return trainer


def test_what_the_optimizer_the_replay_and_the_actor_use_is_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with started() as trainer:
        learning(trainer)
        played: list[float] = []
        act = trainer.actor.act

        def noted(obs: torch.Tensor, epsilon: float) -> Any:
            played.append(epsilon)
            return act(obs, epsilon)

        monkeypatch.setattr(trainer.actor, "act", noted)
        for name, value in (("learning_rate", 7e-4), ("epsilon", 0.25), ("beta", 0.75), ("max_grad_norm", 3.0)):
            ask(trainer, name, value)
        trainer.iterate()
        assert trainer.learner.optimizer.param_groups[0]["lr"].item() == pytest.approx(7e-4)
        assert trainer.learner.max_grad_norm.item() == 3.0
        assert played == [0.25]
        assert trainer.replay.beta.item() == 0.75
        ask(trainer, "epsilon", SCHEDULE)
        ask(trainer, "beta", SCHEDULE)
        at = trainer.env_steps
        trainer.iterate()
        assert played[-1] == trainer.epsilon(at) != 0.25
        assert trainer.replay.beta.item() == trainer.beta(at) != 0.75


def test_envs_play_at_their_rungs_of_the_ladder_except_at_first_and_while_a_number_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = [0.4 ** (1 + 7 * i / 7) for i in range(8)]
    with started(epsilon_ladder=True) as trainer:
        played: list[Any] = []
        act = trainer.actor.act

        def noted(obs: torch.Tensor, epsilon: Any) -> Any:
            played.append(epsilon)
            return act(obs, epsilon)

        monkeypatch.setattr(trainer.actor, "act", noted)
        trainer.iterate()
        assert played == [1.0]
        assert trainer.current_epsilon() == 1.0
        learning(trainer)
        assert played[-1].tolist() == pytest.approx(published)
        assert played[-1][[0, -1]].tolist() == pytest.approx([0.4, 0.00065536])
        assert trainer.current_epsilon() == pytest.approx(sum(published) / 8), "charts show the mean"
        ask(trainer, "epsilon", 0.25)
        trainer.iterate()
        assert played[-1] == 0.25
        ask(trainer, "epsilon", SCHEDULE)
        trainer.iterate()
        assert played[-1].tolist() == pytest.approx(published)


def test_each_env_explores_as_often_as_its_rung_says() -> None:
    with started(epsilon_ladder=True, learning_starts=24) as trainer:
        while trainer.env_steps < 24:
            trainer.iterate()
        obs, actor = trainer.replay.latest_observation(), trainer.actor
        greedy = actor.act(obs, 0.0)
        strayed = np.mean([actor.act(obs, trainer.epsilons()) != greedy for _ in range(8_000)], axis=0)
        half = [0.4 ** (1 + i) / 2 for i in range(8)]  # a random one of two actions is the greedy one half of the time
        assert strayed == pytest.approx(half, rel=0.2, abs=2e-3)


def test_a_refused_edit_changes_nothing() -> None:
    with started() as trainer, started() as twin:
        for one in (trainer, twin):
            learning(one)
        for name, value in (("learning_rate", 0), ("epsilon", 2), ("replay_ratio", None), ("n_step", 3), ("beta", "x")):
            assert not trainer.edit(Request(name, value, "test")).taken
        for one in (trainer, twin):
            for _ in range(20):
                one.iterate()
        assert weights(trainer) == weights(twin)


def test_the_target_follows_at_the_new_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    with started(target_update_interval=1_000) as trainer:
        learning(trainer)
        ask(trainer, "target_update_interval", 2)
        synced: list[int] = []
        sync = trainer.learner.sync_target

        def noted() -> None:
            synced.append(trainer.learner.updates)
            sync()

        monkeypatch.setattr(trainer.learner, "sync_target", noted)
        while trainer.learner.updates < 20:
            trainer.iterate()
        assert synced[:5] == [12, 14, 16, 18, 20]


@pytest.mark.parametrize("new", [0.0, 1.0, 3.3, 16.0])
def test_a_changed_replay_ratio_counts_from_now_on_with_no_burst_and_nothing_lost(new: float) -> None:
    with started() as trainer:
        for _ in range(100):
            trainer.iterate()
        at, owed = trainer.env_steps, updates_at(trainer.config.learner, trainer.env_steps)
        assert owed > trainer.learner.updates, "some are due at the next iteration"
        ask(trainer, "replay_ratio", new)
        for _ in range(100):
            before = trainer.env_steps
            trainer.iterate()
            learner = trainer.config.learner
            assert trainer.learner.updates == owed + updates_at(learner, before) - updates_at(learner, at)


def run(
    trainer: Trainer,
    run_dir: Path,
    should_stop: Callable[[], bool] = lambda: False,
    repeated: Any = (),
    resumed: Resumed | None = None,
) -> tuple[bool, str]:
    """What `Session.run` returns, and what the user was told."""
    run_dir.mkdir(exist_ok=True)
    told = io.StringIO()
    monitor = Monitor(run_dir, Console(file=told, width=200), "test", 8_064, trainer.env_steps)
    try:
        return Session(trainer, run_dir, monitor, should_stop, repeated, resumed).run(), told.getvalue()
    finally:
        monitor.close()


def asking(trainer: Trainer, run_dir: Path, asked: dict[int, tuple[str, Any]]) -> Callable[[], bool]:
    """A `should_stop` that leaves requests in the inbox at about the env steps `asked`, as `tune` would."""
    left = dict(asked)

    def at_each_step() -> bool:
        for env_step in [step for step in left if trainer.env_steps >= step]:
            Inbox(run_dir).put(new_request(*left.pop(env_step)))
        return False

    return at_each_step


TUNED: dict[int, tuple[str, Any]] = {
    300: ("learning_rate", 9e-4),
    500: ("epsilon", 0.4),
    700: ("replay_ratio", 6.5),
    701: ("learning_rate", "nonsense"),
    900: ("target_update_interval", 7),
    1_000: ("beta", 0.9),
    1_100: ("max_grad_norm", 0.7),
    1_300: ("epsilon", SCHEDULE),
}


def test_a_tuned_run_repeats_bit_for_bit_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.runs.edits.POLL_SECONDS", 0.0)
    settings = {"total_env_steps": 2_000, "deterministic": True, "log_interval": 200}
    tuned = make_trainer(**settings)
    done, told = run(tuned, tmp_path / "tuned", asking(tuned, tmp_path / "tuned", TUNED))
    assert done
    assert "learning_rate 0.0001 → 0.0009 (tune)" in told
    assert "refused: learning_rate is nonsense; it must be a number" in told
    edits = read_edits(tmp_path / "tuned")
    assert [(edit.name, edit.taken) for edit in edits] == [
        (name, value != "nonsense") for name, value in TUNED.values()
    ]
    assert all(edit.update > 0 and edit.env_step > 0 for edit in edits)

    repeated = make_trainer(**settings)
    run(repeated, tmp_path / "repeated", repeated=recorded_edits(tmp_path / "tuned" / RECORD))
    assert weights(repeated) == weights(tuned)
    again = read_edits(tmp_path / "repeated")
    assert {edit.source for edit in again} == {"replay"}
    assert [(e.env_step, e.update, e.name, e.new) for e in again] == [
        (e.env_step, e.update, e.name, e.new) for e in edits if e.taken
    ]
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("tuned", "repeated")]
    for row in (*rows[0], *rows[1]):
        row["time"] = row["charts/SPS"] = 0
    assert rows[0] == rows[1]
    assert rows[0][-1]["settings/target_update_interval"] == 7

    alone = make_trainer(**settings)
    run(alone, tmp_path / "alone")
    assert weights(alone) != weights(tuned)


def test_an_edit_while_all_envs_are_reset_is_repeated_in_its_own_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atari_dqn.runs.edits.POLL_SECONDS", 0.0)
    settings = {"total_env_steps": 300, "num_workers": 1, "envs_per_worker": 1, "replay_ratio": 16.0}
    tuned, seen = make_trainer(**settings), [0, 0]

    def at_a_reset() -> bool:
        # The iteration that comes now makes an update and no env step.
        if tuned.env_steps > 100 and tuned.episodes.state()["length"] == [0] and not seen[0]:
            seen[:] = tuned.env_steps, tuned.learner.updates
            Inbox(tmp_path / "tuned").put(new_request("learning_rate", 9e-4))
        return False

    run(tuned, tmp_path / "tuned", at_a_reset)
    edits = recorded_edits(tmp_path / "tuned" / RECORD)
    assert [(edit.env_step, edit.update) for edit in edits] == [(seen[0], seen[1] + 1)]
    repeated = make_trainer(**settings)
    run(repeated, tmp_path / "repeated", repeated=edits)
    assert weights(repeated) == weights(tuned)


def test_what_tune_lists_is_what_holds_after_flags_that_come_and_go(tmp_path: Path) -> None:
    trainer = make_trainer(total_env_steps=300)
    trainer.edit(Request("learning_rate", 9e-4, "test"))
    run(trainer, tmp_path)
    for total, rate in ((400, 5e-5), (500, 1e-4), (600, 2e-4)):
        resumed = make_trainer(total_env_steps=total, learning_rate=rate)
        run(resumed, tmp_path, resumed=resume(resumed, CheckpointStore(tmp_path)))
        assert resumed.learner.learning_rate.item() == pytest.approx(rate)
        assert live_values(resumed.config, read_edits(tmp_path)).values == resumed.live.values


def test_an_edit_that_cannot_be_recorded_is_not_made_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atari_dqn.runs.edits.POLL_SECONDS", 0.0)
    trainer = make_trainer(total_env_steps=300)
    ask_for_it = asking(trainer, tmp_path, {100: ("learning_rate", 9e-4)})

    def at_each_step() -> bool:
        (tmp_path / RECORD).mkdir(exist_ok=True)
        return ask_for_it()

    done, told = run(trainer, tmp_path, at_each_step)
    assert done
    assert "learning_rate not changed: cannot write hparam_edits.jsonl: Is a directory" in told
    assert trainer.learner.learning_rate.item() == pytest.approx(1e-4)


def test_intervals_of_evaluations_and_checkpoints_are_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.runs.edits.POLL_SECONDS", 0.0)
    trainer = make_trainer(total_env_steps=1_000, eval_episodes=1, keep_checkpoints=100)
    asked: dict[int, tuple[str, Any]] = {1: ("eval_interval", 400), 2: ("checkpoint_interval", 300)}
    run(trainer, tmp_path, asking(trainer, tmp_path, asked))
    assert [row["env_step"] // 400 for row in read_rows(tmp_path / "evaluations.jsonl")] == [1, 2]
    assert [step // 300 for step in CheckpointStore(tmp_path).steps()[:3]] == [1, 2, 3]


def test_edits_hold_on_after_a_resume_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    trainer = make_trainer(total_env_steps=600)
    trainer.edit(Request("learning_rate", 9e-4, "test"))
    trainer.edit(Request("replay_ratio", 2.0, "test"))
    trainer.edit(Request("epsilon", 0.3, "test"))
    run(trainer, tmp_path)
    store = CheckpointStore(tmp_path)

    resumed = make_trainer(total_env_steps=1_200)
    resume(resumed, store)
    assert resumed.live.values == trainer.live.values
    assert resumed.learner.learning_rate.item() == pytest.approx(9e-4)
    assert resumed.config.learner.replay_ratio == 2.0
    assert resumed.current_epsilon() == 0.3
    assert resumed.updates_due() == trainer.updates_due()

    flagged = make_trainer(total_env_steps=1_200, learning_rate=5e-5)
    run(flagged, tmp_path, resumed=resume(flagged, store))
    assert flagged.learner.learning_rate.item() == pytest.approx(5e-5)
    assert flagged.current_epsilon() == 0.3
    (edit,) = read_edits(tmp_path)
    assert (edit.source, edit.name, edit.old, edit.new) == ("command line", "learning_rate", 9e-4, 5e-5)
    assert edit.env_step == resumed.env_steps


@pytest.mark.parametrize("later", [0, 16])
def test_what_was_edited_after_the_checkpoint_is_forgotten_and_said(tmp_path: Path, later: int) -> None:
    """`later`: env steps after the checkpoint; an edit of the very env step may have come after it, too."""
    trainer = make_trainer(total_env_steps=600)
    before = Edit(0.0, 100, 1, "learning_rate", 1e-4, 9e-4, True, "tune")
    run(trainer, tmp_path, repeated=[before])
    after = Edit(0.0, trainer.env_steps + later, 9, "beta", SCHEDULE, 0.5, True, "tune")
    with (tmp_path / RECORD).open("a") as file:
        file.write(json.dumps(dataclasses.asdict(after)) + "\n")
    resumed = make_trainer(total_env_steps=650)
    _, told = run(resumed, tmp_path, resumed=resume(resumed, CheckpointStore(tmp_path)))
    assert "discarded (made after the checkpoint): beta schedule → 0.5 (tune)" in told
    assert [edit.name for edit in read_edits(tmp_path)] == ["learning_rate"]
    assert resumed.live.values["beta"] == SCHEDULE
    assert torch.equal(resumed.replay.beta, torch.tensor(resumed.beta(resumed.env_steps - 8), dtype=torch.float64))
