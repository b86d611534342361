"""Every setting reaches the part that obeys it: with another value, the same short training goes another way.

The environments are a table of random numbers in this process, so that a training takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import io
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console

from atari_dqn.config.live import Request
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import settings
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.evaluation.result import Evaluation
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.render.clips import Recorder
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training import assembly, session, snapshot
from atari_dqn.training.assembly import local_parts
from atari_dqn.training.metrics import row_of
from atari_dqn.training.parts import CONSUMERS, seeds_of
from atari_dqn.training.session import Session
from atari_dqn.training.snapshot import Saver, resume, save
from atari_dqn.training.trainer import Trainer

BASE: dict[str, Any] = {
    "num_workers": 1,
    "envs_per_worker": 2,
    "replay_capacity": 64,
    "learning_starts": 20,
    "batch_size": 8,
    "replay_ratio": 4.0,
    "target_update_interval": 4,
    "total_env_steps": 64,
    "epsilon_values": (0.9, 0.1),
    "epsilon_at": (0.1, 0.9),
    "mlp_hidden": (8, 8),
    "learning_rate": 1e-2,
    "device": "cpu",
    "precision": "fp32",
    "torch_threads": 1,
}
DECAY = {"epsilon_decay": 50.0}


class Table:
    """Environments whose frames, rewards and ends are random numbers; keeps the actions they were sent."""

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.failures: list[str] = []
        self.actions: list[bytes] = []
        self._spec, self._num_envs = spec, num_envs
        self._random = np.random.default_rng(0)
        self._over = np.zeros(num_envs, np.bool_)

    def _tick(self, is_reset: npt.NDArray[np.bool_]) -> StepResult:
        step = StepResult.empty(self._num_envs, self._spec.frame_shape, self._spec.frame_dtype)
        step.frames[...] = self._random.integers(0, 256, step.frames.shape)
        step.rewards[...] = step.raw_rewards[...] = np.where(is_reset, 0, self._random.normal(0, 2, self._num_envs))
        step.is_reset[...] = is_reset
        self._over = step.terminated[...] = ~is_reset & (self._random.random(self._num_envs) < 0.1)
        return step

    def reset(self) -> StepResult:
        return self._tick(np.ones(self._num_envs, np.bool_))

    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        self.actions.append(actions.tobytes())

    def recv(self) -> StepResult:
        return self._tick(self._over)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], on_tick: Callable[[int, int], None]) -> StepResult:
        raise NotImplementedError

    def close(self) -> None: ...


def spec_for(config: TrainConfig, pixels: bool) -> EnvSpec:
    shape, dtype = ((40, 40), np.dtype(np.uint8)) if pixels else ((4,), np.dtype(np.float32))
    kind, stack = ("pixels", config.env.frame_stack) if pixels else ("vector", 1)
    return EnvSpec("Table-v0", False, kind, shape, dtype, 3, stack)  # type: ignore[arg-type]


def made(pixels: bool = False, **changes: Any) -> tuple[Trainer, Table]:
    config = TrainConfig().replace(**(BASE | changes)).validate()
    spec = spec_for(config, pixels)
    table = Table(spec, config.num_envs)
    parts = dataclasses.replace(local_parts(config, spec), make_pool=lambda seed, on_wait: table)
    return Trainer(config, spec, parts), table


@functools.cache
def trace(pixels: bool, changes: tuple[tuple[str, Any], ...]) -> str:
    """A hash of all actions, and of the weights at the end."""
    trainer, table = made(pixels, **dict(changes))
    trainer.start()
    while not trainer.done:
        trainer.iterate()
    digest = hashlib.sha256(b"".join(table.actions))
    for network in (trainer.learner.online, trainer.learner.target):
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


LEARNING: list[tuple[str, Any, dict[str, Any]]] = [
    ("num_workers", 2, {}),
    ("envs_per_worker", 1, {}),
    ("frame_stack", 2, {"pixels": True, "total_env_steps": 30}),
    ("replay", "uniform", {}),
    ("replay", "newest", {}),
    ("replay_capacity", 32, {}),
    ("n_step", 2, {}),
    ("gamma", 0.5, {}),
    ("clip_rewards", False, {}),
    ("alpha", 0.1, {}),
    ("beta_values", (0.1, 1.0), {}),
    ("beta_at", (0.0, 0.5), {}),
    ("network", "small", {"pixels": True, "total_env_steps": 30}),
    ("impala_width", 2, {"pixels": True, "network": "impala", "total_env_steps": 30}),
    ("dueling", False, {}),
    ("head", "two_stream", {}),
    ("mlp_hidden", (4, 8), {}),
    ("mlp_hidden", (8, 4), {}),
    ("activation", "silu", {}),
    ("learning_rate", 1e-3, {}),
    ("learning_rate_factors", (0.5,), {}),
    ("learning_rate_at", (0.0, 0.5), {"learning_rate_factors": (1.0, 0.1), "learning_rate_at": (0.0, 1.0)}),
    ("optimizer", "adamw", {}),
    ("adam_epsilon", 1e-2, {}),
    ("adam_epsilon", 1e-2, {"optimizer": "adamw"}),
    ("batch_size", 4, {}),
    ("replay_ratio", 2.0, {}),
    ("learning_starts", 30, {}),
    ("target_update_interval", 5, {}),
    ("target_tau", 0.5, {}),
    ("loss", "mse", {}),
    ("double_q", False, {}),
    ("max_grad_norm", 0.01, {}),
    ("max_grad_value", 0.001, {}),
    ("precision", "bf16", {"pixels": True, "total_env_steps": 30}),
    ("epsilon_values", (0.9, 0.5), {}),
    ("epsilon_at", (0.1, 0.2), {}),
    ("epsilon_decay", 10.0, DECAY),
    ("epsilon_values", (0.9, 0.8), DECAY),
    ("epsilon_ladder", True, {}),
    ("total_env_steps", 40, {}),
    ("schedule_env_steps", 40, {}),
    ("seed", 2, {}),
]


@pytest.mark.parametrize(("name", "value", "base"), LEARNING, ids=[f"{name}-{value}" for name, value, _ in LEARNING])
def test_the_training_depends_on(name: str, value: Any, base: dict[str, Any]) -> None:
    pixels, before = "pixels" in base, {key: of for key, of in base.items() if key != "pixels"}
    assert (BASE | TrainConfig().to_dict() | BASE | before)[name] != value
    assert trace(pixels, tuple(before.items())) != trace(pixels, tuple({**before, name: value}.items()))


def test_the_trace_of_a_training_is_a_function_of_its_settings() -> None:
    first = trace(False, ())
    trace.cache_clear()
    assert trace(False, ()) == first


def pool_arguments(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def pool(spec: EnvSpec, protocol: Any, **arguments: Any) -> None:
        found.update(arguments, env_id=spec.env_id, protocol=protocol)

    monkeypatch.setattr(assembly, "WorkerPool", pool)
    config = TrainConfig().replace(**(BASE | changes))
    spec = dataclasses.replace(spec_for(config, False), env_id=config.env.env_id)
    local_parts(config, spec).make_pool(7, None)
    return found


POOL = {
    "env_id": ("My-v0", "env_id", "My-v0"),
    "protocol": ("machado", "protocol", PROTOCOLS["machado"]),
    "num_workers": (3, "num_workers", 3),
    "envs_per_worker": (5, "envs_per_worker", 5),
    "worker_deadline": (7.5, "deadline", 7.5),
    "worker_restarts": (9, "restarts", 9),
    "deterministic": (True, "exact", True),
}


@pytest.mark.parametrize("name", POOL)
def test_the_workers_get(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, argument, expected = POOL[name]
    assert pool_arguments(monkeypatch, **{name: value})[argument] == expected
    assert pool_arguments(monkeypatch)[argument] != expected


class Did:
    """What a whole session asked of evaluations and clips, which take no time here, and what it left."""

    def __init__(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, failures: Sequence[str] = (), **changes: Any
    ) -> None:
        trainer, table = made(**changes)
        resumed = resume(trainer, CheckpointStore(run_dir))
        table.failures += failures
        self.evaluations: list[int] = []
        self.asked: dict[str, Any] = {}
        self.clips: list[int] = []

        def evaluate(network: Any, spec: EnvSpec, protocol: Protocol, **asked: Any) -> Evaluation:
            self.evaluations.append(trainer.env_steps)
            self.asked = asked | {"network": network, "protocol": protocol}
            scores, interval = np.array([5.0]), (5.0, 5.0)
            return Evaluation("Table-v0", protocol, 0.0, 1, scores, np.array([1]), 0, interval, interval, 0.0)

        def begin(_: Recorder, env_step: int, network: torch.nn.Module) -> str:
            assert network is trainer.learner.online
            self.clips.append(env_step)
            return ""

        monkeypatch.setattr(session, "evaluate", evaluate)
        monkeypatch.setattr(Recorder, "begin", begin)
        run_dir.mkdir(exist_ok=True)
        said, total = io.StringIO(), trainer.config.run.total_env_steps
        monitor = Monitor(run_dir, Console(file=said, width=300), "test", total, trainer.env_steps)
        Session(trainer, run_dir, monitor, lambda: False, resumed=resumed).run()
        monitor.close()
        self.trainer, self.said = trainer, said.getvalue()
        self.rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        self.checkpoints = CheckpointStore(run_dir).steps()


SESSION: dict[str, tuple[Any, dict[str, Any], Callable[[Did], Any]]] = {
    "log_interval": (20, {}, lambda did: len(did.rows)),
    "checkpoint_interval": (30, {"keep_checkpoints": 9}, lambda did: did.checkpoints),
    "keep_checkpoints": (1, {"checkpoint_interval": 20}, lambda did: did.checkpoints),
    "eval_interval": (20, {}, lambda did: did.evaluations),
    "eval_episodes": (3, {"eval_interval": 40}, lambda did: did.asked["episodes"]),
    "eval_epsilon": (0.25, {"eval_interval": 40}, lambda did: did.asked["epsilon"]),
    "worker_deadline": (7.5, {"eval_interval": 40}, lambda did: did.asked["deadline"]),
    "protocol": ("machado", {"eval_interval": 40}, lambda did: did.asked["protocol"]),
    "stop_score": (5.0, {"eval_interval": 20}, lambda did: did.trainer.env_steps),
    "record_interval": (30, {}, lambda did: did.clips),
}


@pytest.mark.parametrize("name", SESSION)
def test_the_session_depends_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, base, seen = SESSION[name]
    without = Did(tmp_path / "without", monkeypatch, **base)
    assert seen(without) != seen(Did(tmp_path / "with", monkeypatch, **base, **{name: value}))


def test_a_resumed_session_counts_on_from_where_the_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intervals: dict[str, Any] = {
        "eval_interval": 40,
        "record_interval": 40,
        "checkpoint_interval": 40,
        "log_interval": 40,
    }
    first = Did(tmp_path, monkeypatch, **intervals, keep_checkpoints=9)
    assert [at // 40 for at in first.evaluations] == [1]
    first.trainer.learner._skipped.fill_(5)
    save(first.trainer, CheckpointStore(tmp_path))
    then = Did(tmp_path, monkeypatch, **intervals, keep_checkpoints=9, total_env_steps=130)
    assert [at // 40 for at in then.evaluations] == [at // 40 for at in then.clips] == [2, 3]
    assert [at // 40 for at in then.checkpoints] == [1, 1, 2, 3, 3]
    assert [row["env_step"] // 40 for row in then.rows] == [1, 1, 2, 3, 3]
    assert then.rows[-1]["learner/skipped_updates"] == 5
    assert "skipped" not in then.said, "they were told before"


def test_a_worker_that_was_replaced_is_told_and_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did = Did(tmp_path, monkeypatch, failures=["worker 3 died"], log_interval=20)
    assert did.said.count("worker 3 died") == 1
    assert {row["run/workers_replaced"] for row in did.rows} == {1.0}


def test_a_worker_is_named_while_its_successor_is_waited_for(tmp_path: Path) -> None:
    trainer, table = made()
    said = io.StringIO()
    monitor = Monitor(tmp_path, Console(file=said, width=300), "test", 100, 0)
    running = Session(trainer, tmp_path, monitor, lambda: False)
    running._wait("starting")  # before there are workers
    trainer.workers = table
    table.failures.append("worker 3 went down with node b")
    running._wait("worker 3 waits for a free CPU")
    running._wait("worker 3 waits for a free CPU")
    assert said.getvalue().count("worker 3 went down with node b") == 1
    monitor.close()


def test_the_end_of_a_run_is_saved_and_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did = Did(tmp_path, monkeypatch, log_interval=32, checkpoint_interval=32)
    assert did.trainer.env_steps in (64, 65)
    assert [row["env_step"] for row in did.rows][-1] == did.trainer.env_steps == did.checkpoints[-1]
    assert len({row["env_step"] for row in did.rows}) == len(did.rows)
    assert did.said.count(f"env step {did.trainer.env_steps:,} saved") == 1


ELSEWHERE = {
    "env_kwargs": "tests/test_api.py",
    "wrapper": "tests/test_api.py",
    "device": "tests/agent/test_learner.py and test_gpu.py",
    "cuda_graph": "tests/agent/test_gpu.py",
    "torch_threads": "tests/training/test_threads.py",
    "run_dir": "tests/test_train.py",
    "checkpoint_minutes": "below",
}
"""Settings with a test of their own"""


def test_no_setting_is_without_such_a_test() -> None:
    assert {name for name, _, _ in LEARNING} | set(POOL) | set(SESSION) | set(ELSEWHERE) == set(settings(TrainConfig))


def test_a_save_by_the_clock_that_fails_is_tried_again_after_the_interval_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(snapshot, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    trainer, _ = made(checkpoint_minutes=2.0)
    trainer.start()
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 100, 0)
    store = CheckpointStore(tmp_path)
    saver = Saver(trainer, store, monitor)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", full)
        for _ in range(3):
            assert not saver.overdue()
            now[0] += 119.0
            assert not saver.overdue()
            now[0] += 2.0
            assert saver.overdue()
            assert "NOT SAVED" in saver.save(0)
    assert (saver.failed, saver.overdue()) == (3, False)
    now[0] += 121.0
    assert saver.overdue()
    assert saver.save(0) == ""
    assert (saver.failed, saver.overdue()) == (0, False)
    now[0] += 121.0
    assert saver.overdue()
    assert saver.save(0) == "", "the very state is saved already"
    assert not saver.overdue(), "which is no reason to look at every tick"
    monitor.close()


# ------------------------------------------------------------------ seeds


def test_no_two_consumers_of_any_two_seeds_share_a_stream() -> None:
    """Runs with neighbouring seeds are compared with each other."""
    seeds = [seed for root in range(200) for seed in seeds_of(root).values()]
    assert len(set(seeds)) == 200 * len(CONSUMERS)


@pytest.mark.parametrize("consumer", ["network", "replay", "actor"])
def test_each_part_has_the_seed_of_its_name(consumer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> dict[str, Any]:
        trainer, _ = made()
        weights = next(trainer.learner.online.parameters()).detach().numpy().tobytes()
        replay = trainer.replay.generator.get_state().numpy().tobytes()
        return {"network": weights, "replay": replay, "actor": str(trainer.actor.state())}

    before = drawn()
    monkeypatch.setattr(assembly, "seeds_of", lambda root: seeds_of(root) | {consumer: 5})
    after = drawn()
    assert [name for name in before if before[name] != after[name]] == [consumer]


def test_a_resume_plays_other_games_than_the_run_before_and_the_same_ones_whenever_it_is_tried(tmp_path: Path) -> None:
    def seed_of_games(trainer: Trainer, table: Table) -> int:
        seeds: list[int] = []
        trainer._make_pool = lambda seed, on_wait: seeds.append(seed) or table  # type: ignore[func-returns-value]
        trainer.start()
        return seeds[0]

    trainer, table = made()
    games, store = [seed_of_games(trainer, table)], CheckpointStore(tmp_path)
    assert games[0] == seeds_of(trainer.config.run.seed)["envs"]
    for steps in (20, 40):
        while trainer.env_steps < steps:
            trainer.iterate()
        save(trainer, store)
        for _ in range(2):
            resumed, table = made()
            resume(resumed, store)
            games.append(seed_of_games(resumed, table))
        trainer = resumed
    first, second, again, third, once_more = games
    assert (second, third) == (again, once_more)
    assert len({first, second, third}) == 3


# ------------------------------------------------------------------ a checkpoint and a row


def test_a_checkpoint_hands_every_count_back(tmp_path: Path) -> None:
    trainer, _ = made()
    trainer.start()
    while trainer.env_steps < 40:
        trainer.iterate()
    assert trainer.edit(Request("replay_ratio", 2.0, "test")).taken
    assert trainer.edit(Request("target_update_interval", 3, "test")).taken
    trainer.iterate()
    trainer.evaluated, trainer.clock.before = 7.0, 1_000.0
    save(trainer, CheckpointStore(tmp_path), edit_lines=2)
    other, _ = made(replay_ratio=4.0)
    resumed = resume(other, CheckpointStore(tmp_path))
    assert (resumed.edit_lines, resumed.overruled) == (2, [])
    assert (other.env_steps, other.evaluated) == (trainer.env_steps, 7.0)
    assert other.clock.elapsed() >= 1_000
    assert other.rate_set_at == trainer.rate_set_at != (0, 0)
    assert other.updates_due() == trainer.updates_due()
    assert other.learner.target_update_interval == 3
    assert other.learner.updates == trainer.learner.updates > 0
    assert other.episodes.returns == trainer.episodes.returns
    assert len(other.episodes.returns) > 0
    assert other.actor.state() == trainer.actor.state()
    assert torch.equal(other.replay.generator.get_state(), trainer.replay.generator.get_state())
    assert other.replay.newest == trainer.replay.newest


def test_a_row_says_what_the_trainer_holds() -> None:
    trainer, _ = made(epsilon_values=(0.5, 0.3), beta_values=(0.2, 0.6), max_grad_norm=3.0)
    trainer.start()
    while trainer.env_steps < 40:
        trainer.iterate()
    trainer.clock.before = 100.0
    row = row_of(trainer, 3, 2)
    assert (row["env_step"], row["update"]) == (trainer.env_steps, trainer.learner.updates)
    assert row["time"] >= 100
    assert row["settings/epsilon"] == pytest.approx(trainer.epsilon(trainer.env_steps))
    assert 0.3 < row["settings/epsilon"] < 0.5
    assert row["settings/beta"] == pytest.approx(0.2 + 0.4 * trainer.env_steps / 64)
    assert row["settings/learning_rate"] == 1e-2
    assert row["settings/replay_ratio"] == 4.0
    assert row["settings/target_update_interval"] == 4
    assert row["settings/max_grad_norm"] == 3.0
    assert (row["run/workers_replaced"], row["run/failed_saves"]) == (3, 2)
    assert row["learner/skipped_updates"] == 0
    assert 0 < row["run/replay_fill"] < 1
    assert {"losses/td_loss", "charts/episodic_return", "charts/SPS"} <= set(row)
