"""`python -m atari_dqn.bench`: every quantity is measured, and the bottleneck and the advice follow from them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atari_dqn.bench import BenchCommand
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.measure import Bench, machine_cpu
from atari_dqn.diagnostics.profiler import LOOP_PARTS
from atari_dqn.diagnostics.report import diagnose, tables
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.system.linux import allowed_cores
from atari_dqn.train import TrainCommand
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.beginning import parse_training
from atari_dqn.training.trainer import Trainer

BENCH = [sys.executable, "-m", "atari_dqn.bench"]
TINY = "--env-id CartPole-v1 --num-workers 2 --envs-per-worker 2 --replay-capacity 4096 --learning-starts 200"
TINY += " --replay-ratio 4 --batch-size 16 --precision fp32 --device cpu --torch-threads 1 --seconds 0.05 --rounds 2"


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_command_prints_and_writes_every_quantity(tmp_path: Path) -> None:
    result = run([*TINY.split(), "--out", "figures.json"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 rounds of four measurements of 0.05 s" in result.stdout
    words = ("workers alone", "learner alone", "the loop", "env steps/s", "updates/s", "cores busy", "limit: envs")
    for word in (*words, *LOOP_PARTS, "limit: learner", "limit: cores", "bottleneck:", "to change:"):
        assert word in result.stdout, word

    report = json.loads((tmp_path / "figures.json").read_text())
    rates = report["rates"]
    assert rates["workers alone"]["env_steps_per_second"] > 0
    assert rates["learner alone"]["updates_per_second"] > 0
    assert rates["the loop"]["env_steps_per_second"] > 0
    assert all(len(rate["turns"]) == 2 and rate["cores_busy"] > 0 for rate in rates.values())
    assert set(report["account"]) == set(LOOP_PARTS)
    assert sum(report["account"].values()) == pytest.approx(1, abs=0.2)
    assert all(share > 0 for share in report["account"].values())
    assert report["memory_bytes"] > 50e6
    assert 0 < report["memory_bytes_full"] - report["memory_bytes"] <= 4096 * 16
    assert report["command"].endswith("--rounds 2 --out figures.json")
    assert report["times_limit"] > 0
    assert (report["config"]["env_id"], report["precision"], report["torch_threads"]) == ("CartPole-v1", "fp32", 1)
    assert {"date", "processor", "cores", "git_revision", "packages"} <= set(report["system"])


def test_it_measures_the_training_that_the_same_flags_would_start(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TrainConfig().replace(batch_size=48).to_dict()))
    for flags in ("", "--env-id pong --batch-size 16", "--preset paper", "--preset gpu", f"--config {file} --n-step 2"):
        measured = parse_training(BenchCommand, flags.split(), "bench")
        trained = parse_training(TrainCommand, flags.split(), "train")
        assert (measured.settings(), measured.preset) == (trained.settings(), trained.preset), flags


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env-id", "Braekout"], "Breakout"),
        (["--seconds", "0"], "--seconds is 0; it must be above 0 to 3600"),
        (["--rounds", "0"], "--rounds is 0; it must be from 1 to 1000"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--out", "nowhere/figures.json"], "cannot write --out nowhere/figures.json"),
        (["--out", "."], "cannot write --out ."),
        (["--out", "/proc/figures.json"], "cannot write --out /proc/figures.json"),
        (["--replay-capacity", str(2**30), "--num-workers", "64"], "GB"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--preset", "gpu", "--env-id", "CartPole-v1"], "--preset gpu is for Atari games"),
    ],
)
def test_a_mistake_gets_a_short_message_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = run(arguments, tmp_path)
    assert result.returncode == 2
    assert words in re.sub(r"\s+", " ", result.stdout + result.stderr)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_figures_that_cannot_be_kept_are_printed(tmp_path: Path) -> None:
    result = run([*TINY.split(), "--out", "/dev/full"], tmp_path)
    assert result.returncode == 1
    assert "to change:" in result.stdout
    assert result.stderr == "error: cannot write --out /dev/full: No space left on device\n"


def make_trainer(num_workers: int, envs_per_worker: int) -> Trainer:
    """A trainer with small settings that soon starts to learn."""
    config = TrainConfig().replace(
        env_id="CartPole-v1",
        num_workers=num_workers,
        envs_per_worker=envs_per_worker,
        replay_capacity=1024,
        learning_starts=100,
        replay_ratio=8.0,
        batch_size=16,
        precision="fp32",
        device="cpu",
    )
    return local_trainer(config, env_spec("CartPole-v1", PROTOCOLS["nature"], 4))


def test_turns_count_steps_and_updates_without_changing_the_counts_of_the_loop() -> None:
    trainer = make_trainer(1, 4)
    ticks: list[int] = []
    bench_ = Bench(trainer, lambda: ticks.append(trainer.env_steps))
    try:
        bench_.prepare()
        assert trainer.env_steps >= 100
        for _ in range(3):
            steps, updates = trainer.env_steps, trainer.learner.updates
            alone = bench_.workers_alone(0.05)
            assert alone.env_steps > 0
            assert alone.updates == 0
            alone = bench_.learner_alone(0.05)
            assert alone.updates > 0
            assert alone.env_steps == 0
            assert (trainer.env_steps, trainer.learner.updates) == (steps, updates)
            together = bench_.loop(0.05)
            assert trainer.env_steps == steps + together.env_steps
            assert trainer.learner.updates == updates + together.updates
            assert together.updates == pytest.approx(together.env_steps / 2, abs=4), "one update per two env steps"
            assert all(turn.wall > 0 and turn.cpu > 0 for turn in (alone, together))
    finally:
        trainer.close()
    assert len(ticks) > 100


def test_only_the_cores_of_this_process_count() -> None:
    mine = allowed_cores()
    if len(mine) < 2:
        pytest.skip("one core, or they cannot be chosen here")
    of_all = machine_cpu()
    try:
        os.sched_setaffinity(0, mine[:1])
        assert machine_cpu() < of_all
    finally:
        os.sched_setaffinity(0, mine)


def report(**changes: Any) -> dict[str, Any]:
    """Figures of a machine with two cores; by default everything takes 1 ms per env step."""

    def rate(env_steps: float, updates: float, busy: float) -> dict[str, float]:
        return {
            "env_steps_per_second": env_steps,
            "updates_per_second": updates,
            "cores_busy": busy,
            "cores_taken": taken,
        }

    taken = changes.pop("taken", 0.0)
    config = TrainConfig().replace(num_workers=2).to_dict() | changes.pop("config", {})
    return {
        "config": config,
        "system": {"cores": 2},
        "precision": "bf16",
        "torch_threads": 2,
        "rates": {
            "workers alone": rate(changes.pop("env_steps", 1000), 0, changes.pop("workers_busy", 1)),
            "learner alone": rate(0, changes.pop("updates", 250), changes.pop("learner_busy", 1)),
            "the loop": rate(changes.pop("loop", 1000), 250, 2),
        },
        "account": dict.fromkeys(LOOP_PARTS, 0.0) | changes.pop("account", {}),
    } | changes


@pytest.mark.parametrize(
    ("figures", "limit", "times", "bottleneck", "advice"),
    [
        (report(updates=500), "envs", 1.0, "the workers", "higher --replay-ratio"),
        (report(updates=500, config={"num_workers": 1}), "envs", 1.0, "the workers", "--num-workers 2"),
        (report(env_steps=4000), "learner", 1.0, "the learner", "lower --replay-ratio"),
        (report(env_steps=4000, precision="fp32", config={"precision": "fp32"}), "learner", 1.0, "the le", "auto"),
        (report(env_steps=4000, precision="fp32"), "learner", 1.0, "the learner", "native bf16"),
        (report(env_steps=2000, learner_busy=2), "cores", 0.8, "80% with updates, 20%", "--replay-ratio"),
        (report(updates=500, workers_busy=2), "cores", 0.8, "20% with updates, 80%", "higher --replay-ratio"),
        (report(loop=500, account={"append": 0.3}), "envs", 2.0, "30% of the time", "--envs-per-worker"),
        (report(taken=0.5), "envs", 1.0, "other programs, which used 0.5", "--torch-threads 1"),
        (report(taken=0.5, torch_threads=1), "envs", 1.0, "the workers", "higher --replay-ratio"),
        (report(loop=500), "envs", 2.0, "compete for cores", "--torch-threads 1"),
    ],
)
def test_the_largest_limit_is_named_with_what_to_change(
    figures: dict[str, Any], limit: str, times: float, bottleneck: str, advice: str
) -> None:
    found = diagnose(figures)
    assert max(found["limits"], key=found["limits"].get) == limit
    assert found["times_limit"] == pytest.approx(times)
    assert bottleneck in found["bottleneck"]
    assert advice in found["advice"]


def test_the_tables_fit_a_narrow_terminal() -> None:
    figures = report(
        device="cpu", account={"waiting": 0.75, "forward": 0.25}, memory_bytes=6 * 10**8, memory_bytes_full=15 * 10**8
    )
    figures["system"] |= {"processor": "Slow", "packages": {"torch": "2"}, "git_revision": "abc1234"}
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(tables(figures | diagnose(figures)))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    assert "commit abc1234" in text
    assert "0.60 GB, 1.50 once the replay is full" in text
    assert re.search(r"forward +25\.0% +250 +target values, Q values", text), "a quarter of a millisecond per env step"
