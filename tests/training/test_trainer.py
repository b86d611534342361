"""The loop: it equals its sequential twin, repeats itself bit for bit, and counts in the right units."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from atari_dqn.agent.weights import in_precision
from atari_dqn.config.derived import updates_at
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.evaluation import player
from atari_dqn.evaluation.evaluation import evaluate
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.records import read_rows
from atari_dqn.training import session
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.parts import seeds_of
from atari_dqn.training.session import Session
from atari_dqn.training.snapshot import resume, save
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.pool import WorkerError
from tests.stubs import pids

CARTPOLE: dict[str, Any] = {
    "env_id": "CartPole-v1",
    "num_workers": 2,
    "envs_per_worker": 4,
    "replay_capacity": 1024,
    "learning_starts": 64,
    "batch_size": 16,
    "replay_ratio": 4.0,
    "target_update_interval": 20,
    "total_env_steps": 8_064,
    "epsilon_values": (1.0, 0.05),
    "epsilon_at": (0.0, 0.5),
    "mlp_hidden": (32, 32),
    "precision": "fp32",
    "device": "cpu",
    "n_step": 2,
}


def make_trainer(**settings: Any) -> Trainer:
    config = TrainConfig().replace(**(CARTPOLE | settings)).validate()
    return local_trainer(config, spec_of(config.env))


@contextmanager
def started(**settings: Any) -> Iterator[Trainer]:
    trainer = make_trainer(**settings)
    try:
        trainer.start()
        yield trainer
    finally:
        trainer.close()


def weights(trainer: Trainer) -> str:
    """SHA-256 over the bits of the online and the target network."""
    digest = hashlib.sha256()
    for network in (trainer.learner.online, trainer.learner.target):
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_after(updates: int, **settings: Any) -> str:
    with started(**settings) as trainer:
        while trainer.learner.updates < updates:
            trainer.iterate()
        return weights(trainer)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    reference = weights_after(2_000)
    assert weights_after(2_000) == reference
    assert weights_after(2_000, num_workers=4, envs_per_worker=2) == reference
    assert weights_after(2_000, seed=2) != reference


def test_breakout_repeats_itself_bit_for_bit_for_any_grouping_of_envs() -> None:
    settings: dict[str, Any] = {
        "env_id": "ALE/Breakout-v5",
        "learning_starts": 200,
        "replay_ratio": 2.0,
        "epsilon_values": (0.5,),
        "epsilon_at": (0.0,),
    }
    assert weights_after(40, **settings) == weights_after(40, num_workers=4, envs_per_worker=2, **settings)


def test_the_overlapped_loop_equals_a_sequential_one() -> None:
    """The twin learns first and steps afterwards, with nothing under way meanwhile."""
    with started() as trainer, started() as twin:
        assert twin.workers is not None
        for _ in range(400):
            trainer.iterate()
            twin.replay.beta.fill_(twin.beta(twin.env_steps))
            epsilon = 1.0 if twin.env_steps < 64 else twin.epsilon(twin.env_steps)
            actions = twin.actor.act(twin.replay.latest_observation(), epsilon)
            while twin.learner.updates < updates_at(twin.config.learner, twin.env_steps):
                twin.learner.update()
            twin.workers.send(actions)
            twin.observe(actions, twin.workers.recv())
            assert trainer.env_steps == twin.env_steps
            assert trainer.learner.updates == twin.learner.updates
        assert trainer.learner.updates > 500
        assert weights(trainer) == weights(twin)


def test_updates_are_an_integer_function_of_env_steps_at_every_step() -> None:
    with started(replay_ratio=3.3) as trainer:
        for _ in range(300):
            before = trainer.env_steps
            trainer.iterate()
            assert trainer.learner.updates == updates_at(trainer.config.learner, before)


@pytest.mark.parametrize(("workers", "per_worker"), [(1, 1), (2, 4), (2, 16)])
def test_syncs_and_draws_are_the_same_per_env_step_for_any_number_of_envs(workers: int, per_worker: int) -> None:
    """After 100 env steps of learning at 4 draws each, 16 to a batch: 25 updates, and a sync at every tenth."""
    with started(
        num_workers=workers, envs_per_worker=per_worker, target_update_interval=10, learning_starts=200
    ) as trainer:
        syncs, sync = [], trainer.learner.sync_target

        def noted() -> None:
            syncs.append(trainer.learner.updates)
            sync()

        trainer.learner.sync_target = noted  # type: ignore[method-assign]
        while trainer.env_steps < 600:
            trainer.iterate()
        trainer.iterate()
        assert trainer.learner.updates >= 100
        assert trainer.learner.updates <= 100 + workers * per_worker * 4 / 16
        assert syncs[:10] == list(range(10, 110, 10))


def weights_of(network: torch.nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


def test_reset_ticks_are_not_env_steps_and_scores_are_raw() -> None:
    """Episodes of 5 steps paying 7 a step: after 12 ticks an env has taken 10 steps and played 2 games of 35."""
    with started(env_id="tests.stubs:PaysSeven-v0", num_workers=1, envs_per_worker=2, learning_starts=40) as trainer:
        for _ in range(12):
            trainer.iterate()
        assert trainer.env_steps == 20
        assert list(trainer.episodes.returns) == [35.0] * 4
        assert list(trainer.episodes.lengths) == [5] * 4
        for _ in range(60):
            trainer.iterate()
        batch = trainer.replay.sample(64)
        assert float(batch.returns.max()) == pytest.approx(1 + trainer.config.replay.gamma)


def test_a_shaped_reward_is_learned_from_and_the_raw_one_is_the_score() -> None:
    settings = {"env_id": "tests.stubs:Shaped-v0", "num_workers": 1, "envs_per_worker": 2, "learning_starts": 40}
    with started(**settings, clip_rewards=False, n_step=1) as trainer:
        for _ in range(60):
            trainer.iterate()
        assert set(trainer.episodes.returns) == {5.0}
        assert set(trainer.replay.sample(64).returns.tolist()) == {2.0}
        result = evaluate(
            trainer.learner.online, trainer.spec, trainer.protocol, episodes=2, num_envs=1, epsilon=1.0, seed=1,
            device=trainer.device,
        )  # fmt: skip
        assert result.returns.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(("protocol", "terminals"), [("nature", 5), ("machado", 1)])
def test_a_lost_life_is_terminal_under_nature_alone_and_no_end_of_the_game(protocol: str, terminals: int) -> None:
    """Breakout's five lives. A bit for each row; the learner has not begun."""
    game = {"env_id": "ALE/Breakout-v5", "protocol": protocol, "num_workers": 1, "envs_per_worker": 1}
    with started(**game, replay_capacity=2048, learning_starts=2000, total_env_steps=20_000) as trainer:
        while trainer.episodes.finished < 1:
            trainer.iterate()
        ring = trainer.replay.ring
        assert int(ring.terminal[: ring.newest].sum()) == terminals
        assert int(ring.last[: ring.newest + 1].sum()) == 1, "the game ends once"


def test_a_time_limit_is_no_termination() -> None:
    """Every episode is cut by its limit, so every window that is drawn bootstraps, from the true final frame."""
    with started(env_id="tests.stubs:Timed-v0", num_workers=1, envs_per_worker=2, learning_starts=40) as trainer:
        for _ in range(100):
            trainer.iterate()
        ring = trainer.replay.ring
        assert ring.last[: ring.newest].any()
        assert not ring.terminal[: ring.newest].any()
        gamma = trainer.config.replay.gamma
        discounts = {round(discount, 4) for discount in trainer.replay.sample(64).discounts.tolist()}
        assert discounts == {round(gamma, 4), round(gamma**2, 4)}


def test_play_is_random_until_learning_starts() -> None:
    with started(learning_starts=400, epsilon_values=(0.0,), epsilon_at=(0.0,)) as trainer:
        assert trainer.current_epsilon() == 1.0
        while trainer.env_steps < 400:
            trainer.iterate()
        assert trainer.current_epsilon() == 0.0


@pytest.mark.parametrize("change", [{"replay_ratio": 64.0}, {"batch_size": 1}, {"replay_ratio": 0.5}])
def test_a_resume_at_another_rate_makes_no_burst_and_no_pause(tmp_path: Path, change: dict[str, Any]) -> None:
    store = CheckpointStore(tmp_path)
    with started() as trainer:
        while trainer.env_steps < 1_000:
            trainer.iterate()
        save(trainer, store)
    resumed = make_trainer(**change)
    resume(resumed, store)
    before, config = resumed.learner.updates, resumed.config.learner
    assert resumed.updates_due() == 0
    resumed.env_steps += 320
    assert resumed.updates_due() == 320 * config.replay_ratio // config.batch_size
    save(resumed, CheckpointStore(tmp_path / "again"))
    again = make_trainer(**change)
    resume(again, CheckpointStore(tmp_path / "again"))
    assert again.updates_due() == resumed.updates_due()
    assert again.learner.updates == before


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_weights_that_are_not_numbers_end_the_run(replay: str, tmp_path: Path) -> None:
    trainer = make_trainer(replay=replay, log_interval=8)
    with torch.no_grad():
        next(trainer.learner.online.parameters()).fill_(float("nan"))
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 8_064, 0)
    with pytest.raises(FloatingPointError, match=r"not saved: NaN or infinity is in online\."):
        Session(trainer, tmp_path, monitor, lambda: False).run()
    monitor.close()
    assert CheckpointStore(tmp_path).steps() == [], "what is broken is not saved"


def test_a_worker_that_dies_again_and_again_ends_the_run_and_costs_no_learning(tmp_path: Path) -> None:
    trainer = make_trainer()
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 8_064, 0)

    def kill_one() -> bool:
        if trainer.env_steps >= 400 and trainer.workers is not None:
            os.kill(pids(trainer)[1], signal.SIGKILL)
        return False

    with pytest.raises(WorkerError, match=r"worker 1 \(envs 4 to 7"):
        Session(trainer, tmp_path, monitor, kill_one).run()
    monitor.close()
    resumed = make_trainer()
    resume(resumed, CheckpointStore(tmp_path))
    assert resumed.env_steps == trainer.env_steps >= 400
    assert weights(resumed) == weights(trainer)


def test_a_slow_run_saves_by_the_clock_and_that_changes_nothing(tmp_path: Path) -> None:
    def trained(run_dir: Path, minutes: float) -> tuple[str, list[int]]:
        run_dir.mkdir()
        trainer = make_trainer(total_env_steps=400, checkpoint_minutes=minutes, keep_checkpoints=1_000)
        monitor = Monitor(run_dir, Console(quiet=True), "test", 400, 0)
        assert Session(trainer, run_dir, monitor, lambda: False).run()
        monitor.close()
        return weights(trainer), CheckpointStore(run_dir).steps()

    slow, often = trained(tmp_path / "slow", minutes=1e-9)
    assert len(often) > 10
    assert trained(tmp_path / "never", minutes=0.0) == (slow, often[-1:])


def test_watching_changes_nothing(tmp_path: Path) -> None:
    """Rows, evaluations and checkpoints are read off the run and touch no random number of it."""

    def trained(run_dir: Path, **settings: Any) -> str:
        run_dir.mkdir()
        trainer = make_trainer(total_env_steps=1_200, **settings)
        monitor = Monitor(run_dir, Console(quiet=True), "test", 1_200, 0)
        assert Session(trainer, run_dir, monitor, lambda: False).run()
        monitor.close()
        return weights(trainer)

    watched = trained(tmp_path / "watched", eval_interval=300, eval_episodes=3, log_interval=8, checkpoint_interval=250)
    assert trained(tmp_path / "alone", log_interval=10_000, checkpoint_interval=10_000) == watched
    assert len((tmp_path / "watched" / "evaluations.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(("workers", "per_worker"), [(2, 2), (1, 1)])
def test_evaluations_play_the_same_games_however_the_envs_are_grouped(
    workers: int, per_worker: int, tmp_path: Path
) -> None:
    """And in several envs where the training has but one, for one game at a time takes long."""
    game = {"env_id": "tests.stubs:Numbered-v0", "total_env_steps": 80, "eval_interval": 80, "eval_episodes": 9}
    returns, processes = [], 0

    def count() -> bool:
        nonlocal processes
        processes = max(processes, len(multiprocessing.active_children()))
        return False

    for name, grouping in (("together", (1, 4)), ("apart", (workers, per_worker))):
        trained(tmp_path / name, count, num_workers=grouping[0], envs_per_worker=grouping[1], **game)
        returns.append(json.loads((tmp_path / name / "evaluations.jsonl").read_text())["returns"])
    assert returns[0] == returns[1]
    assert len(set(returns[0])) > 1
    assert processes == workers + 8 // per_worker, "those of the training, and of an evaluation in 8 envs"


def test_an_evaluation_plays_the_online_network_at_its_own_epsilon_and_seed(tmp_path: Path) -> None:
    never: dict[str, Any] = {"target_update_interval": 100_000, "epsilon_values": (1.0, 1.0), "seed": 7}
    trainer = make_trainer(**never, total_env_steps=400, eval_interval=400, eval_episodes=9, eval_epsilon=0.2)
    for parameter in trainer.learner.target.advantage.parameters():
        parameter.data.neg_()  # so that the two networks play differently
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 400, 0)
    assert Session(trainer, tmp_path, monitor, lambda: False).run()
    monitor.close()
    (row,) = read_rows(tmp_path / "evaluations.jsonl")

    def played(network: torch.nn.Module, epsilon: float, seed: int) -> list[float]:
        return evaluate(
            network, trainer.spec, trainer.protocol, episodes=9, num_envs=8, epsilon=epsilon, seed=seed,
            device=trainer.device,
        ).returns.tolist()  # fmt: skip

    learner, seed = trainer.learner, seeds_of(7)["evaluation"]
    assert row["returns"] == played(learner.online, 0.2, seed)
    for other in ((learner.target, 0.2, seed), (learner.online, 1.0, seed), (learner.online, 0.2, 7)):
        assert row["returns"] != played(*other), "or the comparison above would prove nothing"
    assert (row["env_step"], row["epsilon"], row["episodes"]) == (trainer.env_steps, 0.2, 9)
    assert row["mean"] == trainer.evaluated == np.mean(row["returns"]) != row["median"]
    logged = read_rows(tmp_path / "metrics.jsonl", "eval/episodic_return")[-1]
    assert (logged["eval/episodic_return"], logged["eval/episodic_length"]) == (row["mean"], np.mean(row["lengths"]))


def test_an_evaluation_plays_under_the_trainings_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "machado", dataclasses.replace(PROTOCOLS["machado"], max_episode_frames=80))
    one = {"num_workers": 1, "envs_per_worker": 1, "learning_starts": 100, "total_env_steps": 4}
    trained(tmp_path, env_id="ALE/Breakout-v5", protocol="machado", **one, eval_interval=4, eval_episodes=1)
    (row,) = read_rows(tmp_path / "evaluations.jsonl")
    assert (row["protocol"], row["full_action_space"], row["lengths"]) == ("machado", True, [20])


def test_no_worker_of_an_evaluation_has_more_envs_than_one_of_the_training(tmp_path: Path) -> None:
    game = {"env_id": "tests.stubs:OnlyOne-v0", "num_workers": 1, "envs_per_worker": 1}
    trained(tmp_path, **game, learning_starts=8, total_env_steps=16, eval_interval=16, eval_episodes=2)
    assert json.loads((tmp_path / "evaluations.jsonl").read_text())["returns"] == [5.0, 5.0]


def test_a_training_continues_after_an_evaluation_of_a_game_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atari_dqn.evaluation.evaluation.GAME_LIMIT", 60)
    for module in (player, session):
        monkeypatch.setattr(module, "NOTE_AFTER", 40)
    told = io.StringIO()
    game = {"env_id": "tests.stubs:Endless-v0", "num_workers": 1, "envs_per_worker": 1}
    trainer = make_trainer(**game, total_env_steps=50, eval_interval=20, eval_episodes=1)
    monitor = Monitor(tmp_path, Console(file=told, width=500), "test", 50, 0)
    assert Session(trainer, tmp_path, monitor, lambda: False).run()
    monitor.close()
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["env_step"], row["lengths"], row["truncated"]) for row in rows] == [
        (20, [60], 1),
        (40, [60], 1),
    ]
    assert told.getvalue().count("no game has ended in 40 steps") == 3, "in both evaluations and in the training"


def trained(run_dir: Path, should_stop: Callable[[], bool] = lambda: False, /, **settings: Any) -> tuple[bool, Trainer]:
    """Train, or go on, in `run_dir`."""
    run_dir.mkdir(exist_ok=True)
    trainer = make_trainer(**settings)
    resumed = resume(trainer, CheckpointStore(run_dir))
    monitor = Monitor(run_dir, Console(quiet=True), "test", trainer.config.run.total_env_steps, trainer.env_steps)
    done = Session(trainer, run_dir, monitor, should_stop, resumed=resumed).run()
    monitor.close()
    return done, trainer


@pytest.mark.parametrize("judge", [{"eval_interval": 300, "eval_episodes": 2}, {"eval_interval": 0}])
def test_a_run_is_done_when_its_score_is_reached_and_stays_so(judge: dict[str, Any], tmp_path: Path) -> None:
    """Each game is worth 35: the first evaluation says so at 300 env steps, a hundred games at 500."""
    game = {"env_id": "tests.stubs:PaysSeven-v0", "num_workers": 1, "envs_per_worker": 2}
    done, trainer = trained(tmp_path / "run", **game, **judge, stop_score=35.0)
    assert done
    assert trainer.env_steps == (300 if judge["eval_interval"] else 500)
    assert make_trainer(**game, **judge, stop_score=35.0).done is False
    done, again = trained(tmp_path / "run", **game, **judge, stop_score=35.0)
    assert (done, again.env_steps) == (True, trainer.env_steps)
    done, higher = trained(tmp_path / "run", **game, **judge, stop_score=35.1, total_env_steps=1_000)
    assert (done, higher.env_steps) == (True, 1_000)


def test_each_finished_game_is_a_line_and_a_resume_repeats_none(tmp_path: Path) -> None:
    game = {"env_id": "tests.stubs:FiveLives-v0", "num_workers": 1, "envs_per_worker": 2}
    trained(tmp_path / "run", **game, total_env_steps=300, checkpoint_interval=300)
    file = tmp_path / "run" / "episodes.jsonl"
    with file.open("a") as opened:
        opened.write('{"env_step": 310, "episode": 99, "return": 1.0}\n')
    _, trainer = trained(tmp_path / "run", **game, total_env_steps=600)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["episode"] for row in rows] == list(range(1, trainer.episodes.finished + 1))
    assert {(row["return"], row["length"]) for row in rows} == {(30.0, 15)}
    assert {row["env"] for row in rows} == {0, 1}
    # the games under way at 300 were cut
    assert [row["env_step"] for row in rows[::2]] == [*range(30, 301, 30), *range(330, 601, 30)]
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_a_resumed_run_has_the_learner_bit_for_bit_and_joins_no_two_games(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with started() as trainer:
        while trainer.env_steps < 1_000:
            trainer.iterate()
        save(trainer, store)
        resumed = make_trainer()
        assert resume(resumed, store).notes == []
        assert weights(resumed) == weights(trainer)
        assert resumed.env_steps == trainer.env_steps
        assert resumed.learner.updates == trainer.learner.updates
        assert json.dumps(resumed.actor.state()) == json.dumps(trainer.actor.state())
        used = min(trainer.replay.newest + 1, trainer.replay.num_rows)
        assert torch.equal(resumed.replay.ring.frames[:used], trainer.replay.ring.frames[:used])
        seam = trainer.replay.ring.newest
    try:
        resumed.start()
        for _ in range(20):
            resumed.iterate()
        ring = resumed.replay.ring
        assert ring.last[seam % ring.rows].all(), "games under way when the run stopped are cut"
        assert (ring.age[(seam + 1) % ring.rows] == 0).all(), "and new ones begin behind the cut"
        assert resumed.learner.updates > trainer.learner.updates
    finally:
        resumed.close()


def test_the_learning_rate_follows_its_knots_and_the_next_update_obeys() -> None:
    settings: dict[str, Any] = {"learning_rate_factors": (1.0, 0.5, 0.0), "learning_rate_at": (0.2, 0.4, 0.41)}
    with started(total_env_steps=1_000, learning_rate=1e-3, **settings) as trainer:
        rates = {}
        while trainer.env_steps <= 410:
            env_step = trainer.env_steps
            trainer.iterate()
            rates[env_step] = trainer.learner.learning_rate.item()
        frozen, updates = weights_of(trainer.learner.online), trainer.learner.updates
        trainer.iterate()
        trainer.iterate()
        assert trainer.learner.updates > updates
        assert weights_of(trainer.learner.online) == frozen
    for env_step, rate in rates.items():
        expected = np.interp(env_step, (200, 400, 410), (1e-3, 5e-4, 0.0))
        assert rate == pytest.approx(expected, abs=1e-9), env_step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_actor_plays_with_what_was_learned_last(precision: Any) -> None:
    with started(precision=precision) as trainer:
        obs = trainer.replay.latest_observation().clone()
        untrained = trainer.actor.network(obs).detach()
        while trainer.learner.updates < 10:
            trainer.iterate()
        played = trainer.actor.network(obs)
        assert torch.equal(played, in_precision(trainer.learner.online, precision)(obs))
        assert not torch.equal(played, untrained)


def test_the_printed_size_of_the_replay_is_its_size() -> None:
    trainer = make_trainer(env_id="ALE/Breakout-v5", num_workers=8, envs_per_worker=1, replay_capacity=2**12)
    assert trainer.derived.replay_bytes == pytest.approx(trainer.replay.nbytes, rel=3e-5)
    assert trainer.replay.nbytes > trainer.replay.frames.nbytes
    assert trainer.derived.bytes_per_transition < 7_100


def test_every_env_gets_its_own_exploration() -> None:
    with started() as trainer:
        actions = np.stack([trainer.actor.act(trainer.replay.latest_observation(), 1.0) for _ in range(200)])
        assert len({tuple(column) for column in actions.T}) == 8
