"""`python -m atari_dqn.doctor`: every problem is a finding with a remedy, and none makes it crash."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atari_dqn import doctor
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics import advice, checks
from atari_dqn.diagnostics.checks import Finding, run_check
from atari_dqn.system import machine as system
from atari_dqn.train import TrainCommand
from atari_dqn.training.beginning import parse_training
from atari_dqn.workers import shared_memory
from tests.faults.test_limits import written
from tests.test_train import run

DOCTOR = [sys.executable, "-m", "atari_dqn.doctor"]


@pytest.mark.long
def test_a_machine_that_is_ready_gets_settings_that_are_valid(tmp_path: Path) -> None:
    result = run(DOCTOR, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in checks.CHECKS:
        assert f" {name} " in result.stdout
    assert "\nready" in result.stdout
    for text in ("suggested:", "measured:", "env steps/s", "an hour", "load: ", "--preset cpu"):
        assert text in result.stdout, text
    words = shlex.split(result.stdout.splitlines()[-1])
    assert words[1:3] == ["-m", "atari_dqn.train"]
    command = parse_training(TrainCommand, words[3:], "train")
    TrainConfig(env=command.env, replay=command.replay, learner=command.learner).validate()
    assert list(tmp_path.iterdir()) == [], "no file is left behind"


@pytest.mark.parametrize("modules", [("torch", "numpy", "tyro"), ("rich",)])
def test_a_library_that_cannot_be_imported_is_an_error_and_the_other_checks_run(
    modules: tuple[str, ...], tmp_path: Path
) -> None:
    hidden = f"import sys; sys.modules |= dict.fromkeys({modules})"
    result = run([sys.executable, "-c", f"{hidden}; from atari_dqn import doctor; sys.exit(doctor.main([]))"], tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    for module in modules:
        assert re.search(rf": ModuleNotFoundError: .*{module}", result.stdout)
    for name in checks.CHECKS:
        assert f" {name} " in result.stdout
    assert result.stdout.splitlines()[-1].startswith("not ready: ")


def test_a_finding_is_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("warning", "4.2 GB free; a run takes 1.2 GB, and the replay 3.7", "use less --replay-capacity")
    indent = " " * 24
    assert finding.line("memory") == f"memory         {finding.text}\n{indent}-> {finding.remedy}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "64")
    assert finding.line("memory").splitlines() == [
        "memory         4.2 GB free; a run takes 1.2 GB, and the",
        f"{indent}replay 3.7",
        f"{indent}-> use less --replay-capacity",
    ]


def distribution(place: Path, name: str, version: str, *requires: str) -> None:
    """Write the metadata that pip writes for an installed distribution."""
    (info := place / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
    required = "".join(f"Requires-Dist: {each}\n" for each in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")


def test_what_the_libraries_require_is_checked_by_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of another name may bring the module: opencv-python-headless, conda, a build from source."""
    distribution(tmp_path, "atari_dqn", "9.8", "json", "no-such-module", "zstandard>=99")
    distribution(tmp_path, "Farama-Notifications", "9.9", "numpy<1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ok, *found = run_check(checks.check_libraries)
    assert (ok.level, "torch 2" in ok.text) == ("ok", True)
    assert [finding.level for finding in found] == ["note", "error", "error", "warning"]
    words = ("json is installed under another name", "atari-dqn 9.8 requires no-such-module", "zstandard>=99, but you")
    for finding, text in zip(found, (*words, "9.9 has requirement numpy<1, but you have numpy"), strict=True):
        assert text in finding.text


def test_without_pip_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    _, note = run_check(checks.check_libraries)
    assert (note.level, "pip is not installed" in note.text) == ("note", True)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA here")
def test_a_torch_without_cuda_beside_a_gpu_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100, 570.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (finding,) = run_check(checks.check_gpu)
    assert finding.level == "warning"
    assert finding.text == f"NVIDIA H100, driver 570.1, but torch {torch.__version__} for CPUs only finds no GPU"
    assert "install a torch for the driver's CUDA" in finding.remedy


@pytest.mark.parametrize(("gigabytes", "level"), [(0.5, "error"), (1.5, "warning"), (5.5, "ok")])
def test_memory_is_compared_with_what_a_run_takes(
    gigabytes: float, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "available_memory", lambda: int(gigabytes * 1e9))
    (finding,) = run_check(checks.check_memory)
    assert finding.level == level
    assert f"{gigabytes} GB free" in finding.text


def test_a_limit_on_cores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "cores", lambda: 8)
    monkeypatch.setattr(system, "cgroup_cores", lambda: [16.0, 2.5])
    (finding,) = run_check(checks.check_cores)
    assert (finding.level, "to 2.5 cores" in finding.text) == ("note", True)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, []),
        ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "max 100000"}, []),
        ({"proc/self/cgroup": "0::/a/b", "cgroup/a/cpu.max": "150000 100000", "cgroup/cpu.max": "4 1"}, [1.5, 4]),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n0::/",
                "cgroup/cpu/job/cpu.cfs_quota_us": "50000",
                "cgroup/cpu/job/cpu.cfs_period_us": "100000",
                "cgroup/cpu/cpu.cfs_quota_us": "-1",
                "cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            [0.5],
        ),
    ],
    ids=["no proc", "no limit", "limits of the parents", "version 1"],
)
def test_every_control_group_is_read_for_cores(files: dict[str, str], cores: list[float], tmp_path: Path) -> None:
    assert system.cgroup_cores(*written(tmp_path, files)) == cores


def test_too_little_shared_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in run_check(checks.check_shared_memory)] == ["ok"]
    monkeypatch.setattr(shared_memory, "room_fault", lambda needed: f"no room for {needed}")
    (error,) = run_check(checks.check_shared_memory)
    assert (error.level, "no room for 1" in error.text, "--shm-size" in error.remedy) == ("error", True, True)


@pytest.mark.parametrize("error", [ImportError("no x"), RuntimeError("a\nb"), SystemExit("s")])
def test_a_check_that_raises_is_an_error_after_what_it_found(error: BaseException) -> None:
    def check() -> Iterator[Finding]:
        yield Finding("ok", "first")
        raise error

    first, second = run_check(check)
    assert first.text == "first"
    assert second.level == "error"
    assert str(error).splitlines()[0] in second.text
    assert "\n" not in second.text


def test_a_short_run_that_fails_makes_the_machine_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(tick: object) -> None:
        raise RuntimeError("no process may be started")

    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(advice, "measure_machine", fail)
    assert doctor.main([]) == 1
    assert "not ready: a short run failed: RuntimeError: no process may be started" in capsys.readouterr().out


def test_a_wrong_flag_gets_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run([*DOCTOR, "--x"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--x" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- what it suggests

LAPTOP = advice.Machine("cpu", 2, 22 * 10**9, steps_per_core=3_000, loops={1: 214, 2: 37}, load=6.5)
SERVER = advice.Machine("cuda", 16, 70 * 10**9, steps_per_core=2_000, loops={16: 8_000})


def suggested(machine: advice.Machine) -> dict[str, str]:
    """The flags of the suggested command."""
    words = shlex.split(advice.suggestion(machine)[-1])[5:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_a_cpu_gets_its_preset_and_the_better_number_of_threads() -> None:
    values = suggested(LAPTOP)
    assert values == {"--preset": "cpu", "--replay-capacity": "524288", "--torch-threads": "1"}
    assert suggested(dataclasses.replace(LAPTOP, loops={1: 214, 2: 300}))["--torch-threads"] == "2"
    assert "--torch-threads" not in suggested(dataclasses.replace(LAPTOP, cores=1, loops={1: 214}))


def test_the_text_names_the_load_both_thread_counts_the_preset_and_the_first_improvement() -> None:
    text = "\n".join(advice.suggestion(LAPTOP))
    for words in ("load: 6.5 on 2 cores", "214 env steps/s with it, 37 with 2", "measured: 214 env steps/s"):
        assert words in text
    assert "its score rises above that of random play after about 7m47s at this speed" in text
    of_server = "\n".join(advice.suggestion(SERVER))
    assert "--preset gpu --replay-capacity 1048576" in of_server
    assert "its score rises" not in of_server, "that was measured on a CPU"


@pytest.mark.parametrize(("gigabytes", "capacity"), [(2, 2**13), (5, 2**17), (8, 2**18), (11, 2**19), (500, 2**19)])
def test_the_replay_leaves_half_of_the_memory_free(gigabytes: int, capacity: int) -> None:
    found = advice.settings_for(advice.Machine("cpu", 2, gigabytes * 10**9))
    assert found.validate().replay.replay_capacity == capacity
