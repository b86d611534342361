"""`train --seeds N`: one run per seed, one at a time or several at once, stopped and resumed together."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import resolve_env
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.sweeps import local, session
from atari_dqn.sweeps.members import Member, command
from atari_dqn.sweeps.table import Board
from atari_dqn.system.signals import StopRequest
from atari_dqn.train import TrainCommand, main
from atari_dqn.training.beginning import parse_training
from tests.faults.trainings import LIMIT, Harmed, training
from tests.test_train import SHORT, TRAIN, rows, run

FLAGS = SHORT[len(TRAIN) :]


def group(total: int, number: int = 2) -> list[str]:
    return [*SHORT, "--run-dir", "run", "--seeds", str(number), "--total-env-steps", str(total)]


def parsed(flags: list[str]) -> TrainConfig:
    command = parse_training(TrainCommand, flags, "train")
    return TrainConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainConfig)})


def learns(harmed: Harmed, seed: int = 1) -> bool:
    metrics = harmed.run_dir / f"seed-{seed}" / "metrics.jsonl"
    return metrics.exists() and "losses/td_loss" in metrics.read_text()


@pytest.mark.long
def test_a_stop_reaches_all_and_the_same_command_goes_on_with_all(tmp_path: Path) -> None:
    with training(tmp_path, group(100_000_000)) as harmed:
        harmed.until(lambda: learns(harmed), 2 * LIMIT)
        harmed.signal(signal.SIGINT, group=True)
        assert harmed.end(300) == INTERRUPTED, harmed.said
    said = harmed.said
    assert "seeds 1 to 2" in said
    assert "seed 1 stopped" in said.splitlines()
    assert "resume with --run-dir run --seed 1 --seeds 2" in said
    assert "Traceback" not in said + (harmed.run_dir / "output-1.txt").read_text()
    assert "state saved" in (harmed.run_dir / "output-1.txt").read_text()
    stopped_at = int(rows(harmed.run_dir / "seed-1")[-1]["env_step"])

    again = [*TRAIN, "--run-dir", "run", "--seeds", "2", "--total-env-steps", f"{stopped_at + 300}"]
    result = run(again, tmp_path, timeout=600)
    assert result.returncode == DONE, result.stdout + result.stderr
    assert re.fullmatch(r"to compare: \S+ -m atari_dqn.compare run/seed-\*", result.stdout.splitlines()[-1])
    assert sorted((tmp_path / "run").glob("seed-*")) == [tmp_path / "run/seed-1", tmp_path / "run/seed-2"]
    for seed in (1, 2):
        config = json.loads((tmp_path / f"run/seed-{seed}/config.json").read_text())
        assert (config["seed"], config["batch_size"], config["env_id"]) == (seed, 16, "CartPole-v1")
        assert rows(tmp_path / f"run/seed-{seed}")[-1]["env_step"] >= stopped_at + 300
    assert f"resuming run/seed-1 at env step {stopped_at:,}" in (tmp_path / "run/output-1.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_run_outlives_the_command(number: signal.Signals, tmp_path: Path) -> None:
    """Neither when it is killed, nor after the second Ctrl-C."""
    with training(tmp_path, group(100_000_000)) as harmed:
        harmed.until(lambda: learns(harmed), 2 * LIMIT)
        deadline = time.monotonic() + LIMIT
        while harmed.process.poll() is None:
            assert time.monotonic() < deadline
            harmed.signal(number, group=True)
            time.sleep(0.05)
        harmed.end(0, helpers=30)
    if number == signal.SIGKILL:
        assert "state saved" in (harmed.run_dir / "output-1.txt").read_text()


def test_a_seed_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    obstacle = tmp_path / "run/seed-1/metrics.jsonl"
    obstacle.mkdir(parents=True)
    flags = [*group(250)[len(TRAIN) :], "--seed", "1"]
    config = parsed(flags)
    (tmp_path / "run/seed-1/config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(CommandFailed, match=r"of 2 seeds these failed: 1; the same command"):
        main(flags)
    said = capsys.readouterr().out
    assert "seed 1 failed with exit code 1: see run/output-1.txt" in said
    assert "error: run/seed-1/metrics.jsonl cannot be written" in Path("run/output-1.txt").read_text()
    assert "seed 2 done" in said


@pytest.mark.parametrize("begun", [True, False])
def test_a_stop_promises_no_more_than_there_is(begun: bool, tmp_path: Path) -> None:
    """Settings are taken from a run that has begun, perhaps not the first: without one, defaults would train on."""
    members = [Member(f"seed-{seed}", TrainConfig().replace(seed=seed)) for seed in (3, 4)]
    if begun:
        (tmp_path / "seed-4").mkdir()
        (tmp_path / "seed-4/config.json").write_text(json.dumps(TrainConfig().to_dict()))
    said: list[str] = []
    board = Board(Console(file=io.StringIO()), members)
    assert session.end(board, tmp_path, said.append, "--seeds 2") == INTERRUPTED
    saved = "stopped, state saved; resume with --seeds 2"
    assert said == [saved if begun else "stopped, nothing to save; run the same command again"]


def test_a_disk_that_takes_no_output_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/output-1.txt").mkdir(parents=True)
    with pytest.raises(CommandFailed, match=r"run/output-1\.txt cannot be written: Is a directory"):
        main(group(250)[len(TRAIN) :])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "0"], "--seeds is 0; it must be from 1 to 1000"),
        (["--seeds", "2", "--seed", str(2**31 - 1)], "--seeds 2: the last seed is 2147483648; it must be from 0"),
        (["--seeds", "2", "--dashboard"], "--labml-url"),
        (["--seeds", "2", "--run-dir", "single"], "is a single run"),
        (["--run-dir", "several"], "has runs of several seeds; add --seeds, or choose one of them: several/seed-2"),
        (["--seeds", "2", "--run-dir", "several", "--seed", "1", "--n-step", "3"], "cannot resume with 3"),
        (["--seeds", "2", "--env-id", "Braekout"], "did you mean ALE/Breakout-v5?"),
        (["--seeds", "2", "--init-from", "nowhere"], "--init-from nowhere does not exist"),
    ],
)
def test_a_mistake_is_found_before_anything_begins(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, seed in (("single", 1), ("several/seed-2", 2), ("several/seed-10", 10)):
        (tmp_path / place).mkdir(parents=True)
        config = parsed(FLAGS).replace(seed=seed)
        (tmp_path / place / "config.json").write_text(json.dumps(config.to_dict()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        main([*FLAGS, "--total-env-steps", "50", *flags])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("begun", [True, False])
def test_each_run_is_asked_for_the_same_settings(begun: bool, tmp_path: Path) -> None:
    """But for its seed and its directory, and whatever its own settings were before."""
    config = TrainConfig().replace(
        env_id="CartPole-v1",
        dueling=False,
        epsilon_values=(1.0, 0.3),
        epsilon_at=(0.0, 1.0),
        mlp_hidden=(64,),
        learning_rate=1.25e-4,
        epsilon_ladder=True,
    )
    if begun:
        former = config.replace(learning_rate=0.5, epsilon_ladder=False, mlp_hidden=(64, 64), gamma=0.5)
        (tmp_path / "seed-3").mkdir()
        (tmp_path / "seed-3/config.json").write_text(json.dumps(former.to_dict()))
    flags = {"init_from": "some where", "labml_url": "http://127.0.0.1:1/api/v1"}
    words = command(Member("seed-3", config.replace(seed=3)), tmp_path, flags)
    assert parsed(words[3:]) == config.replace(seed=3, run_dir=tmp_path / "seed-3")
    of_command = ["--init-from", "some where", "--labml-url", "http://127.0.0.1:1/api/v1"]
    assert words[-4:] == of_command


def members_of(config: TrainConfig, number: int) -> list[tuple[Member, EnvSpec]]:
    config, spec = resolve_env(config)
    return [(Member(f"seed-{seed}", config.replace(seed=seed)), spec) for seed in range(1, number + 1)]


@pytest.mark.parametrize(
    ("cores", "gigabytes", "threads", "beside"),
    [(1, 64, 0, 1), (3, 64, 0, 1), (4, 64, 0, 2), (16, 64, 0, 5), (16, 64, 8, 2), (16, 5, 0, 2), (16, 1, 0, 1)],
)
def test_as_many_are_beside_each_other_as_cores_and_memory_allow(
    cores: int, gigabytes: float, threads: int, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default replay takes 0.93 GB."""
    monkeypatch.setattr(local, "cores", lambda: cores)
    monkeypatch.setattr(local, "available_memory", lambda: int(gigabytes * 1e9))
    config = TrainConfig().replace(device="cpu", torch_threads=threads)
    assert local.at_once(members_of(config, 5)) == beside


@pytest.mark.parametrize(
    ("env_id", "asked", "environment", "given"),
    [("pong", 0, "", "4"), ("CartPole-v1", 0, "", "1"), ("pong", 3, "", "3"), ("pong", 0, "2", None)],
)
def test_runs_beside_each_other_share_eight_cores(
    env_id: str, asked: int, environment: str, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr("atari_dqn.agent.device.usable_cores", lambda: 8)
    commands: list[list[str]] = []

    def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
        commands.append(words)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(local, "start", start)
    members = members_of(TrainConfig().replace(env_id=env_id, device="cpu", torch_threads=asked), 2)
    board = Board(Console(file=io.StringIO()), [member for member, _ in members])
    assert local.run(members, tmp_path, StopRequest(), board, {}, beside=2) == {"seed-1": DONE, "seed-2": DONE}
    for words in commands:
        assert (words[words.index("--torch-threads") + 1] if "--torch-threads" in words else None) == given
