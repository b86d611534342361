"""`python -m atari_dqn.train` as a user meets it: help, mistakes, a short run, Ctrl-C, going on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atari_dqn.cli.command import DONE
from atari_dqn.config.derived import derive
from atari_dqn.config.presets import PRESETS
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml import launch
from atari_dqn.runs.directory import read_config
from atari_dqn.runs.lock import locked
from atari_dqn.system.machine import usable_cores
from atari_dqn.train import TrainCommand, main
from atari_dqn.training.beginning import parse_training
from tests.run_dirs import make_settings

TRAIN = [sys.executable, "-m", "atari_dqn.train"]
SHORT = [
    *TRAIN,
    *("--env-id", "CartPole-v1", "--num-workers", "2", "--envs-per-worker", "2", "--replay-capacity", "4096"),
    *("--learning-starts", "200", "--batch-size", "16", "--log-interval", "100", "--checkpoint-interval", "1000"),
    *("--precision", "fp32", "--torch-threads", "1"),
]


def run(command: list[str], cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env-id", "Braekout"], "Breakout"),
        (["--learning-rate", "-1"], "--learning-rate is -1; it must be above 0 to 1"),
        (["--replay-capacity", "1000003"], "524288 or 1048576"),
        (["--replay-capacity", str(2**30), "--num-workers", "64"], "GB"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--init-from", "nowhere"], "nowhere"),
        (["--run-dir", "/proc/nope"], "--run-dir /proc/nope"),
        (["--run-dir", "x" * 300], "--run-dir"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--seed", "x"], "--seed"),
    ],
)
def test_a_mistake_gets_a_short_message_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = run([*TRAIN, *arguments], tmp_path)
    assert result.returncode == 2
    assert words in re.sub(r"\s+", " ", result.stdout + result.stderr)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    probe = (
        "import sys\n"
        "from atari_dqn.train import main; from atari_dqn.config import schema as config\n"
        "try:\n"
        "    main(['--env-id', 'Braekout'])\n"
        "except config.ConfigError:\n"
        "    print('torch' in sys.modules)\n"
    )
    assert run([sys.executable, "-c", probe], tmp_path).stdout == "False\n"


def test_help_names_units_bounds_and_sources(tmp_path: Path) -> None:
    result = subprocess.run(
        [*TRAIN, "--help"], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert result.returncode == 0
    text = re.sub(r"\s+", " ", result.stdout)
    for words in ("--learning-rate FLOAT", "above 0 to 1", "Schaul", "env steps", "--config", "--init-from"):
        assert words in text


def test_a_short_run_leaves_a_whole_run_directory_and_goes_on_longer(tmp_path: Path) -> None:
    run_dir = tmp_path / os.fsdecode(b"a run \xc3\xbc \xff")  # a byte that is not UTF-8
    command = [*SHORT, "--run-dir", str(run_dir), "--total-env-steps"]
    result = run([*command, "1200", "--eval-interval", "600", "--eval-episodes", "2"], tmp_path)
    assert result.returncode == 0, result.stderr
    first = rows(run_dir)
    assert len(first) >= 12
    assert first[-1]["env_step"] >= 1200
    quantities = {"update", "time", "charts/episodic_return", "charts/SPS", "losses/td_loss", "losses/q_values"}
    assert quantities <= set(first[-1])
    assert any("eval/episodic_return" in row for row in first)
    assert len((run_dir / "evaluations.jsonl").read_text().splitlines()) == 2
    assert {"config.json", "command.txt", "system.json"} <= {path.name for path in run_dir.iterdir()}
    assert list(run_dir.glob("events.out.tfevents*"))

    result = run([*command, "1600"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout
    steps = [row["env_step"] for row in rows(run_dir)]
    assert steps == sorted(set(steps)), "a resume repeats no row"
    assert steps[-1] >= 1600

    changed = run([*SHORT, "--run-dir", str(run_dir), "--n-step", "3"], tmp_path)
    assert changed.returncode == 2
    assert "--n-step 1" in changed.stderr

    again = run([*TRAIN, "--config", str(run_dir / "config.json"), "--total-env-steps", "300"], tmp_path)
    assert again.returncode == 0, again.stderr
    (other,) = (tmp_path / "runs").iterdir()
    stored = json.loads((other / "config.json").read_text())
    assert (stored["batch_size"], stored["total_env_steps"]) == (16, 300)


def test_two_trainings_in_one_directory_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        result = run([*SHORT, "--run-dir", "run"], tmp_path)
    assert result.returncode == 2
    assert f"process {os.getpid()} is training in run" in result.stderr
    assert run([*SHORT, "--run-dir", "run", "--total-env-steps", "50"], tmp_path).returncode == 0, "the lock is gone"


def test_a_reader_that_leaves_does_not_end_the_training(tmp_path: Path) -> None:
    command = shlex.join([*SHORT, "--run-dir", "run", "--total-env-steps", "400"])
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert rows(tmp_path / "run")[-1]["env_step"] >= 400


def test_ctrl_c_saves_the_state_and_says_so_in_one_line(
    tmp_path: Path, popen: Callable[..., subprocess.Popen[str]]
) -> None:
    command = [*SHORT, "--run-dir", "run", "--total-env-steps", "1000000"]
    process = popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert err == ""
    assert sum("state saved" in line for line in out.splitlines()) == 1
    stopped_at = rows(tmp_path / "run")[-1]["env_step"]

    result = run([*SHORT, "--run-dir", "run", "--total-env-steps", str(int(stopped_at) + 400)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"env step {int(stopped_at):,}" in result.stdout


def test_a_dashboard_that_cannot_start_is_told_with_what_train_can_do_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("labml_app")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(launch, "PORT", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"already in use.*then train --labml-url"):
            main([*SHORT[len(TRAIN) :], "--run-dir", str(tmp_path / "run"), "--dashboard"])


# ---------------------------------------------------------------------- presets


def begun_with(*flags: str, default: TrainConfig | None = None) -> tuple[str, TrainConfig]:
    command = parse_training(TrainCommand, flags, "train", default)
    return command.preset, command.settings()


def test_an_atari_game_begins_with_the_preset_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    total = TrainConfig().run.total_env_steps
    assert begun_with() == ("cpu", PRESETS["cpu"](usable_cores(), total))
    preset, config = begun_with("--env-id", "pong", "--total-env-steps", "2e6", "--batch-size", "7")
    assert (preset, config) == ("cpu", PRESETS["cpu"](usable_cores(), 2_000_000).replace(env_id="pong", batch_size=7))
    (program := tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert begun_with() == ("gpu", PRESETS["gpu"](usable_cores(), total))
    assert begun_with("--device", "cpu")[0] == begun_with("--preset", "cpu")[0] == "cpu"
    assert begun_with("--preset", "paper") == ("paper", TrainConfig())


def test_of_several_seeds_no_clips_are_made_unless_asked() -> None:
    alone, several = begun_with("--preset", "cpu")[1], begun_with("--preset", "cpu", "--seeds", "2")[1]
    assert several == alone.replace(record_interval=0) != alone
    assert begun_with("--preset", "cpu", "--seeds", "2", "--record-interval", "7")[1].run.record_interval == 7
    assert begun_with("--preset", "cpu", "--seeds", "1")[1] == alone


def test_settings_from_elsewhere_have_no_preset(tmp_path: Path) -> None:
    assert begun_with("--env-id", "CartPole-v1") == ("auto", TrainConfig().replace(env_id="CartPole-v1"))
    assert begun_with(default=TrainConfig().replace(n_step=9)) == ("auto", TrainConfig().replace(n_step=9))
    run_dir = tmp_path / "run"
    make_settings(run_dir, "ALE/Pong-v5", n_step=9)
    for flag in ("--config", "--run-dir"):
        preset, config = begun_with(flag, str(run_dir))
        assert (preset, config.replace(run_dir=None)) == ("auto", read_config(run_dir).replace(run_dir=None))
    assert begun_with("--run-dir", str(run_dir), "--preset", "gpu")[1] == begun_with("--run-dir", str(run_dir))[1]
    with pytest.raises(ConfigError, match="--preset gpu: --config has settings of its own"):
        begun_with("--config", str(run_dir), "--preset", "gpu")
    with pytest.raises(ConfigError, match="--preset gpu: train has settings of its own"):
        begun_with("--preset", "gpu", default=TrainConfig())
    with pytest.raises(ConfigError, match="--preset cpu is for Atari games; leave it out for CartPole-v1"):
        begun_with("--env-id", "CartPole-v1", "--preset", "cpu")


@pytest.mark.parametrize("total", ["600", "200"])
def test_a_run_that_is_resumed_with_another_length_keeps_its_knots_where_they_were(total: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    make_settings(run_dir, "ALE/Pong-v5", total_env_steps=300, epsilon_values=(1.0, 0.1), epsilon_at=(0.0, 1.0))
    assert begun_with("--run-dir", str(run_dir), "--total-env-steps", "3e2")[1].run.schedule_env_steps == 0
    config = begun_with("--run-dir", str(run_dir), "--total-env-steps", total)[1]
    assert config.run.total_env_steps == int(total)
    assert derive(config, 7056).epsilon_knots == ((0, 1.0), (300, 0.1))
    (run_dir / "config.json").write_text(json.dumps(config.to_dict()))
    assert derive(begun_with("--run-dir", str(run_dir), "--total-env-steps", "900")[1], 7056).epsilon_knots[1][0] == 300
    own = begun_with("--run-dir", str(run_dir), "--total-env-steps", "900", "--schedule-env-steps", "0")[1]
    assert derive(own, 7056).epsilon_knots[1][0] == 900
    like = begun_with("--config", str(run_dir / "config.json"), "--schedule-env-steps", "0", "--total-env-steps", "50")
    assert derive(like[1], 7056).epsilon_knots[1][0] == 50


@pytest.mark.parametrize(("schedule", "kept"), [(0, 300), (500, 500)])
def test_a_run_begun_by_a_file_keeps_its_knots_too(schedule: int, kept: int, tmp_path: Path) -> None:
    file, run_dir = tmp_path / "own.json", tmp_path / "run"
    file.write_text(json.dumps({"schedule_env_steps": schedule, "total_env_steps": 300}))
    make_settings(run_dir, "ALE/Pong-v5", total_env_steps=300, schedule_env_steps=schedule)
    begun = begun_with("--config", str(file), "--run-dir", str(run_dir), "--total-env-steps", "600")[1]
    assert begun.schedule_length == kept
    assert begun_with("--config", str(file), "--total-env-steps", "600")[1].schedule_length == (schedule or 600)


def test_a_preset_is_not_claimed_for_a_run_that_has_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SHORT[len(TRAIN) :], "--run-dir", str(tmp_path / "run"), "--total-env-steps", "300"]
    assert main(flags) == DONE
    assert main(["--run-dir", str(tmp_path / "run"), "--preset", "gpu"]) == DONE
    assert "--preset ignored: this run already has settings" in capsys.readouterr().out
