"""Exact resume: training 2N steps gives the same bits as training N, being killed, resuming and training N."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from atari_dqn.config.live import Request
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import env_spec, spec_of
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.runs.checkpoint_files import FILES, STATE
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.session import Session
from atari_dqn.training.snapshot import resume, save
from atari_dqn.training.trainer import InexactError, Trainer
from atari_dqn.workers import pool as pools
from atari_dqn.workers import process as worker_process
from atari_dqn.workers.history import NO_SEED, History
from atari_dqn.workers.pool import WorkerPool
from tests.stubs import Fragile, pids
from tests.test_train import SHORT, run

SMALL: dict[str, Any] = {
    "env_id": "ALE/Breakout-v5",
    "protocol": "machado",  # sticky actions
    "num_workers": 2,
    "envs_per_worker": 2,
    "replay_capacity": 2048,
    "learning_starts": 200,
    "batch_size": 8,
    "replay_ratio": 0.5,
    "target_update_interval": 7,
    "total_env_steps": 100_000,
    "device": "cpu",
    "deterministic": True,
    "n_step": 3,
}


def make_trainer(**settings: Any) -> Trainer:
    config = TrainConfig().replace(**(SMALL | settings)).validate()
    return local_trainer(config, spec_of(config.env))


@contextmanager
def running(store: CheckpointStore | None = None, **settings: Any) -> Iterator[Trainer]:
    """A started trainer, resumed from `store` if given."""
    trainer = make_trainer(**settings)
    try:
        if store is not None:
            assert resume(trainer, store).notes == []
        trainer.start()
        yield trainer
    finally:
        trainer.close()


def digest(trainer: Trainer) -> str:
    """SHA-256 of weights, optimizer, replay, tree, counters, generators and the envs' histories."""
    assert trainer.workers is not None
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                sha.update(key.encode())
                add(value[key])
        elif isinstance(value, torch.Tensor):
            sha.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, np.ndarray):
            sha.update(np.ascontiguousarray(value).tobytes())
        else:
            sha.update(json.dumps(value).encode())

    replay = trainer.replay
    add(trainer.learner.state())
    add(replay.state())
    for level in replay.tree.sums:
        add(level)
    add([trainer.env_steps, trainer.updates_due()])
    add(trainer.episodes.state())
    add(trainer.actor.state())
    add(trainer.live.state())
    add(trainer.workers.state())
    return sha.hexdigest()


def iterate(trainer: Trainer, ticks: int) -> None:
    for _ in range(ticks):
        trainer.iterate()


@pytest.mark.parametrize(
    ("protocol", "anchor_every", "cuts", "ticks"),
    [
        pytest.param("machado", 10_000, {0, 171}, 240, id="before the first anchor"),
        pytest.param("nature", 40, {57}, 240, id="over many anchors"),
        pytest.param("machado", 40, set(range(0, 600, 37)), 600, id="machado", marks=pytest.mark.slow),
        pytest.param("nature", 150, set(range(5, 600, 41)), 600, id="nature", marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_in_two_anywhere_is_the_run_in_one(
    protocol: str, anchor_every: int, cuts: set[int], ticks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cut is at the tick after a game's end, when only a flag says that the game is over."""
    monkeypatch.setattr(pools, "ANCHOR_EVERY", anchor_every)
    stores: dict[int, CheckpointStore] = {}
    ended_at = -1
    with running(protocol=protocol) as whole:
        for tick in range(ticks):
            if ended_at < 0 and whole.replay.ring.ended.any():
                ended_at = tick
            if tick in cuts or tick == ended_at:
                stores[tick] = CheckpointStore(tmp_path / str(tick))
                save(whole, stores[tick])
            whole.iterate()
        expected, updates = digest(whole), whole.learner.updates
        assert updates > 20
        assert ended_at > 0, "a game must have ended"
    for tick, store in stores.items():
        with running(store, protocol=protocol) as second:
            iterate(second, ticks - tick)
            assert second.learner.updates == updates
            assert digest(second) == expected, f"cut after tick {tick}"


def test_a_run_that_was_edited_live_is_cut_in_two_alike(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    edits = [("learning_rate", 3e-4), ("replay_ratio", 1.0), ("epsilon", 0.2), ("target_update_interval", 3)]

    def edited(trainer: Trainer, first: int, last: int) -> None:
        for tick in range(first, last):
            if tick % 40 == 39 and tick // 40 < len(edits):
                assert trainer.edit(Request(*edits[tick // 40], source="test")).taken
            trainer.iterate()

    with running() as whole:
        edited(whole, 0, 110)
        save(whole, store)
        edited(whole, 110, 220)
        expected = digest(whole)
    with running(store) as second:
        edited(second, 110, 220)
        assert digest(second) == expected


def test_a_run_whose_worker_was_replaced_is_cut_in_two_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "ANCHOR_EVERY", 30)
    store = CheckpointStore(tmp_path)
    with running() as whole:
        iterate(whole, 90)
        assert whole.workers is not None
        os.kill(pids(whole)[1], signal.SIGKILL)
        iterate(whole, 35)
        assert len(whole.workers.failures) == 1
        save(whole, store)
        iterate(whole, 100)
        expected = digest(whole)
    with running(store) as second:
        iterate(second, 100)
        assert digest(second) == expected


def test_a_run_that_was_exact_only_from_some_time_on_is_cut_in_two_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its envs' seeds depend on the step at which the flag was first given, also after the next resume."""
    monkeypatch.setattr(pools, "ANCHOR_EVERY", 30)
    first, second = CheckpointStore(tmp_path / "inexact"), CheckpointStore(tmp_path / "exact")
    with running(deterministic=False, precision="fp32") as inexact:
        iterate(inexact, 60)
        save(inexact, first)
    whole = make_trainer()
    try:
        (line,) = resume(whole, first).notes
        assert "cut: the checkpoint was written by a run without --deterministic" in line
        whole.start()
        iterate(whole, 60)
        save(whole, second)
        iterate(whole, 250)
        expected = digest(whole)
        assert (whole.workers.state()["drawn"] > 1).all()  # type: ignore[union-attr]
    finally:
        whole.close()
    with running(second) as again:
        iterate(again, 250)
        assert digest(again) == expected


class Hurry(Exception):
    """Raised by a stop that waits for a worker."""


@pytest.mark.long
def test_a_run_stopped_in_mid_tick_is_cut_in_two_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does not answer, its tick is abandoned, and the same tick is made after the resume."""
    monkeypatch.setattr(pools, "ANCHOR_EVERY", 20)
    store = CheckpointStore(tmp_path)
    with running() as whole:
        iterate(whole, 300)
        expected = digest(whole)

    def hurry(whose: str) -> None:
        assert whose.startswith("worker 1 (envs 2 to 3 of ALE/Breakout-v5) has not answered for")
        raise Hurry

    stopped, cuts = make_trainer(), 0
    try:
        stopped.start(hurry)
        while cuts < 4 and stopped.replay.newest < 300:
            assert stopped.workers is not None
            # In the middle of games, and at a tick in which an env is to be seeded again.
            if cuts < 3 or (stopped.replay.ring.ended.any() and stopped.replay.newest > 150):
                os.kill(pids(stopped)[1], signal.SIGSTOP)
                with monkeypatch.context() as patch:
                    patch.setattr(worker_process, "QUIET", 0.2)
                    with pytest.raises(Hurry):
                        stopped.iterate()
                save(stopped, store)
                stopped.close()
                cuts += 1
                stopped = make_trainer()
                assert resume(stopped, store).notes == []
                stopped.start(hurry)
            iterate(stopped, 17 if cuts < 3 else 1)
        assert cuts == 4
        iterate(stopped, 300 - stopped.replay.newest)
        assert digest(stopped) == expected
    finally:
        stopped.close()


def test_what_an_action_did_to_a_former_worker_is_not_done_again() -> None:
    """The new worker starts after the tick at which the old one failed."""
    spec = env_spec("tests.stubs:Fragile-v0", PROTOCOLS["nature"], 4)
    settings: dict[str, Any] = {"num_workers": 2, "envs_per_worker": 2, "seed": 3, "exact": True}
    with WorkerPool(spec, PROTOCOLS["nature"], restarts=1, **settings) as pool:
        pool.reset()
        for tick in range(9):
            pool.send(np.array([0, 0, 0, Fragile.FAULTS.index("raise") if tick == 4 else 0]))
            frames = pool.recv().frames.copy()
        assert len(pool.failures) == 1
        with WorkerPool(spec, PROTOCOLS["nature"], **settings) as other:
            np.testing.assert_array_equal(other.restore(pool.state(), lambda done, of: None).frames, frames)
            for each in (pool, other):
                each.send(np.zeros(4, np.int64))
            np.testing.assert_array_equal(pool.recv().frames, other.recv().frames)


def test_a_stop_while_games_are_brought_back_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with running() as whole:
        iterate(whole, 60)
        save(whole, store)
        expected = digest(whole)
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) > 20

    stopped = make_trainer()
    resumed = resume(stopped, store)
    said = io.StringIO()
    monitor = Monitor(tmp_path, Console(file=said), "test", 100_000, stopped.env_steps)
    assert Session(stopped, tmp_path, monitor, should_stop, resumed=resumed).run() is False
    monitor.close()
    assert len(asked) == 21, "it was obeyed at once"
    assert "saved" not in said.getvalue()
    with running(store) as second:
        assert digest(second) == expected


def test_the_rows_of_a_run_that_was_stopped_are_those_of_one_that_was_not_and_one_more(tmp_path: Path) -> None:
    """One row more, at the stop; the means in the next row continue from the row before it."""
    settings: dict[str, Any] = {
        "env_id": "CartPole-v1",
        "mlp_hidden": (16,),
        "learning_starts": 60,
        "replay_ratio": 4.0,
        "total_env_steps": 600,
        "log_interval": 100,
    }

    def trained(run_dir: Path, until: int) -> Trainer:
        run_dir.mkdir(exist_ok=True)
        trainer = make_trainer(**settings)
        resumed = resume(trainer, CheckpointStore(run_dir))
        assert resumed.notes == []
        monitor = Monitor(run_dir, Console(quiet=True), "test", 600, trainer.env_steps)
        Session(trainer, run_dir, monitor, lambda: trainer.env_steps >= until, resumed=resumed).run()
        monitor.close()
        return trainer

    trained(tmp_path / "whole", 600)
    stopped_at = trained(tmp_path / "cut", 350).env_steps
    trained(tmp_path / "cut", 600)
    cut = rows(tmp_path / "cut", "")
    assert sum(row["env_step"] == stopped_at for row in cut) == 1
    assert [row for row in cut if row["env_step"] != stopped_at] == rows(tmp_path / "whole", "")


def test_without_the_flag_the_learner_is_exact_and_the_games_are_cut(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with running(deterministic=False, precision="fp32") as whole:
        iterate(whole, 120)
        save(whole, store)
        newest = whole.replay.newest
        with running(store, deterministic=False, precision="fp32") as second:
            ring = second.replay.ring
            assert ring.newest == newest + 1
            assert ring.last[newest % ring.rows].all()
            for name, tensor in whole.learner.online.state_dict().items():
                assert torch.equal(second.learner.online.state_dict()[name], tensor)


def test_an_env_that_is_no_function_of_its_seed_and_actions_is_not_passed_off_as_exact(tmp_path: Path) -> None:
    """`Lives` observes its process's id, which differs after a resume."""
    store = CheckpointStore(tmp_path)
    stub: dict[str, Any] = {"env_id": "tests.stubs:Lives-v0", "mlp_hidden": (8,)}
    with running(**stub) as whole:
        iterate(whole, 10)
        save(whole, store)
    with pytest.raises(
        InexactError, match=r"tests.stubs:Lives-v0 \(environment 0\) is not deterministic: .*with --no-deterministic"
    ):
        running(store, **stub).__enter__()
    with running(store, **stub | {"deterministic": False, "precision": "fp32"}) as second:
        iterate(second, 10)


GAMES = ["Breakout", "Qbert", "Seaquest"]
MORE_GAMES = ["Tetris", "Freeway", "BeamRider", "PrivateEye", "Pong", "SpaceInvaders", "MsPacman", "Enduro", "Venture"]


@pytest.mark.parametrize("game", [*GAMES, *(pytest.param(game, marks=pytest.mark.slow) for game in MORE_GAMES)])
def test_a_pool_comes_back_in_a_new_process_after_anchors_in_mid_game(
    game: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sticky actions, and short games for autoresets and anchors. Cloned emulator states fail for some of these."""
    monkeypatch.setattr(pools, "ANCHOR_EVERY", 100)
    protocol = dataclasses.replace(PROTOCOLS["machado"], noop_max=30, max_episode_frames=280)
    spec = env_spec(f"ALE/{game}-v5", protocol, 4)
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {"num_workers": 2, "envs_per_worker": 1, "seed": 3, "exact": True}
    with WorkerPool(spec, protocol, **settings) as pool:
        pool.reset()
        for _ in range(397):
            pool.send(rng.integers(18, size=2))
            pool.recv()
        state = {name: array.copy() for name, array in pool.state().items()}
        assert (state["drawn"] > 2).all(), "anchors"
        assert len(state["actions"]) < 397, "what lies before them is forgotten"
        with WorkerPool(spec, protocol, **settings) as other:
            here, ticks = other.restore(state, lambda done, of: None), rng.integers(18, size=(150, 2))
            np.testing.assert_array_equal(here.frames, pool._result.frames)
            for actions in ticks:
                for each in (pool, other):
                    each.send(actions)
                one, two = pool.recv(), other.recv()
                for name in ("frames", "rewards", "terminated", "truncated", "lives", "is_reset"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_an_inexact_run_pays_nothing_for_it() -> None:
    history = History(1, 2, None)
    history.add(np.zeros(2, np.int64), np.full(2, NO_SEED))
    assert len(history) == 0
    assert history.state() == {}
    assert not history.due(np.ones(2, np.bool_)).any()


def rows(directory: Path, run_dir: str = "run") -> list[dict[str, float]]:
    """Complete rows of `metrics.jsonl`, without the values that depend on the machine."""
    file = directory / run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    complete = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name not in ("time", "charts/SPS")} for row in complete]


TRAIN = [sys.executable, "-m", "atari_dqn.train", "--run-dir", "run", "--deterministic", "--torch-threads", "1"]


@pytest.mark.parametrize(
    "steps", [pytest.param(600, marks=pytest.mark.long), pytest.param(6_000, marks=pytest.mark.slow)]
)
def test_a_training_killed_and_resumed_equals_one_that_was_left_alone(
    tmp_path: Path, steps: int, popen: Callable[..., subprocess.Popen[str]]
) -> None:
    """The command itself, killed at an arbitrary moment; the files of both last checkpoints are equal."""
    flags = ["--env-id", "breakout", "--protocol", "machado", "--num-workers", "2", "--learning-starts", "200"]
    flags += ["--replay-capacity", "2048", "--batch-size", "8", "--replay-ratio", "1", "--log-interval", "100"]
    flags += ["--total-env-steps", str(2 * steps), "--checkpoint-interval", str(steps // 3)]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    subprocess.run([*TRAIN, *flags], cwd=tmp_path / "whole", check=True, capture_output=True)
    process = popen([*TRAIN, *flags], cwd=tmp_path / "cut", stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(row["env_step"] > steps for row in rows(tmp_path / "cut")):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    resumed = subprocess.run([*TRAIN, *flags], cwd=tmp_path / "cut", check=True, capture_output=True, text=True)
    assert "resuming" in resumed.stdout
    one, two = (CheckpointStore(tmp_path / run / "run").find("latest") for run in ("whole", "cut"))
    assert one.name == two.name
    for name in FILES:
        if name != STATE:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    states = [json.loads((checkpoint / STATE).read_text()) for checkpoint in (one, two)]
    for state in states:
        del state["counters"]["time"]
    assert states[0] == states[1]
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_another_number_of_torch_threads_is_reported_because_it_changes_the_bits(tmp_path: Path) -> None:
    flags = ["--deterministic", "--run-dir", "run"]
    for total, threads, told in (("210", "1", False), ("220", "2", True), ("230", "2", False)):
        result = run([*SHORT, *flags, "--total-env-steps", total, "--torch-threads", threads], tmp_path)
        assert result.returncode == 0, result.stderr
        assert ("1 torch threads before, 2 now" in result.stdout) is told
