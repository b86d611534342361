"""`python -m atari_dqn.doctor`: what is wrong is found and told with what to do, and nothing makes it crash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ale_py import roms

from atari_dqn import doctor, train
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics import advice as doctor_advice
from atari_dqn.diagnostics import library_checks as doctor_libraries
from atari_dqn.diagnostics import machine_checks as doctor_machine
from atari_dqn.doctor import FAULT, OK, WARNING, Finding, examine
from atari_dqn.system import machine as system
from atari_dqn.workers import shared_memory as block
from tests.faults.test_limits import written
from tests.test_train import run

DOCTOR = [sys.executable, "-m", "atari_dqn.doctor"]


def found(check: Callable[[Path], doctor.Found], runs: Path = Path("runs")) -> list[Finding]:
    return list(examine("it", check, runs))


def test_a_machine_that_is_ready_is_told_so_with_settings_that_hold(tmp_path: Path) -> None:
    result = run(DOCTOR, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in doctor.CHECKS:
        assert f" {name} " in result.stdout
    assert "\nready" in result.stdout
    for told in ("suggested:", "expected:", "env steps/s", "an hour", "--replay-capacity"):
        assert told in result.stdout, told
    words = shlex.split(result.stdout.splitlines()[-1])
    assert words[:3] == ["python", "-m", "atari_dqn.train"]
    command = train._parse(words[3:], TrainConfig(), "train")
    TrainConfig(env=command.env, replay=command.replay, learner=command.learner).validate()
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


HIDDEN = {"torch": "torch", "cv2": "opencv-python", "tyro": "tyro"}
HIDDEN_SLOW = {"numpy": "numpy", "gymnasium": "gymnasium", "ale_py": "ale-py", "psutil": "psutil", "rich": "rich"}


@pytest.mark.parametrize(
    ("module", "distribution"),
    [*HIDDEN.items(), *(pytest.param(*names, marks=pytest.mark.slow) for names in HIDDEN_SLOW.items())],
)
def test_a_library_that_cannot_be_imported_is_a_finding(module: str, distribution: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from atari_dqn import doctor; sys.exit(doctor.main([]))"
    result = run([sys.executable, "-c", program], tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert f"\nfault    libraries      {distribution} " in result.stdout
    assert "cannot be imported: import of" in result.stdout
    assert f'pip install --force-reinstall "{distribution}' in result.stdout
    for name in doctor.CHECKS:
        assert f" {name} " in result.stdout, "the other checks are made all the same"
    assert result.stdout.splitlines()[-1].startswith("not ready: ")


def test_it_does_without_the_library_that_compares_versions(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['packaging'] = None; sys.modules['packaging.requirements'] = None\n"
        "from atari_dqn import doctor; list(doctor.examine('', doctor.libraries.check_python, None))\n"
        "print([f.text for f in doctor.examine('', doctor.libraries.check_libraries, None)])"
    )
    assert "versions cannot be compared" in run([sys.executable, "-c", program], tmp_path).stdout


def distribution(place: Path, name: str, version: str) -> None:
    """As pip leaves one, as far as its metadata go."""
    (info := place / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_versions_out_of_range_are_told_with_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in found(doctor_libraries.check_libraries)] == [OK]
    distribution(tmp_path, "zstandard", "0.1")
    distribution(tmp_path, "uvicorn", "0.1")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = found(doctor_libraries.check_libraries)
    assert (finding.level, finding.text) == (FAULT, "zstandard is 0.1, out of the range >=0.23")
    assert finding.remedy == 'python -m pip install "zstandard>=0.23"'
    optional = {finding.text.split("]")[0]: finding for finding in found(doctor_libraries.check_extras)}
    assert "uvicorn is 0.1, out of the range" in optional["[dashboard"].text
    assert optional["[dashboard"].level == OK
    assert "[dashboard]" in optional["[dashboard"].remedy


def test_a_second_opencv_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in found(doctor_libraries.check_opencv)] == [OK]
    distribution(tmp_path, "opencv-python-headless", "4.10.0.84")
    monkeypatch.syspath_prepend(tmp_path)
    fault, _ = found(doctor_libraries.check_opencv)
    assert fault.level == FAULT
    assert "opencv-python and opencv-python-headless overwrite" in fault.text
    assert "pip uninstall -y opencv-python opencv-python-headless; python -m pip install opencv-python" in fault.remedy


def test_missing_roms_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in found(doctor_machine.check_games)] == [OK]
    path_of = roms.get_rom_path
    monkeypatch.setattr(roms, "get_rom_path", lambda name: None if name == "pong" else path_of(name))
    (fault,) = found(doctor_machine.check_games)
    assert (fault.level, "ROMs are missing, pong first" in fault.text) == (FAULT, True)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA here")
def test_a_gpu_that_torch_is_not_built_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100, 570.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (finding,) = found(doctor_machine.check_gpu)
    assert finding.level == WARNING
    assert "NVIDIA H100, driver 570.1, and torch" in finding.text
    assert f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]} " in finding.remedy


@pytest.mark.parametrize(
    ("gigabytes", "level"), [(0.5, FAULT), (1.5, WARNING), (2.5, OK)], ids=["none", "less than by default", "enough"]
)
def test_memory_is_held_against_a_run(gigabytes: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available_memory", lambda: int(gigabytes * 1e9))
    (finding,) = found(doctor_machine.check_memory)
    assert finding.level == level
    assert f"{gigabytes} GB free" in finding.text


def test_a_limit_on_cores_is_told_with_the_threads_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "cores", lambda: 8)
    monkeypatch.setattr(system, "cgroup_cores", lambda: [16.0, 2.5])
    (finding,) = found(doctor_machine.check_cores)
    assert finding.level == WARNING
    assert "2.5 cores' worth" in finding.text
    assert "--torch-threads 2" in finding.remedy


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
    ids=["no proc", "no limit", "parents' limits", "version 1"],
)
def test_control_groups_tell_their_cores(files: dict[str, str], cores: list[float], tmp_path: Path) -> None:
    assert system.cgroup_cores(*written(tmp_path, files)) == cores


def test_shared_memory_without_room_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in found(doctor_machine.check_shared_memory)] == [OK]
    monkeypatch.setattr(block, "room_fault", lambda needed: f"no room for {needed}")
    (fault,) = found(doctor_machine.check_shared_memory)
    assert (fault.level, "no room for 1" in fault.text, "--shm-size" in fault.remedy) == (FAULT, True, True)


def test_the_disk_is_that_of_the_runs_and_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "SLOW_DISK", 0.0)
    (finding,) = found(doctor_machine.check_disk, tmp_path / "not" / "yet")
    assert finding.level == OK
    assert f"in {tmp_path}, written at" in finding.text
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor_machine, "SLOW_DISK", 1e15)
    assert found(doctor_machine.check_disk, tmp_path)[0].level == WARNING
    monkeypatch.setattr(doctor_machine, "LEAST_DISK", 1e18)
    assert "make room" in found(doctor_machine.check_disk, tmp_path)[0].remedy
    (fault,) = found(doctor_machine.check_disk, Path("/proc/nope"))
    assert fault.level == FAULT
    assert "/proc cannot be written" in fault.text


@pytest.mark.parametrize(
    ("error", "level"), [(ImportError("no x"), WARNING), (RuntimeError("a\nb"), FAULT), (SystemExit("s"), FAULT)]
)
def test_a_check_that_fails_is_a_finding_after_those_it_made(error: BaseException, level: str) -> None:
    def check(runs: Path) -> doctor.Found:
        yield OK, "first", ""
        raise error

    first, second = found(check)
    assert first.text == "first"
    assert second.level == level
    assert str(error).splitlines()[0] in second.text
    assert "\n" not in second.text


def test_a_run_that_fails_makes_a_machine_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("no process may be started")

    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(doctor_advice, "advise", fail)
    assert doctor.main([]) == 1
    assert "not ready: a short run fails: RuntimeError: no process may be started" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [(["--runs", "file"], "--runs file is a file"), (["--x"], "--x")])
def test_a_mistake_gets_one_line_and_exit_code_2(flags: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = subprocess.run([*DOCTOR, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- what it suggests

LAPTOP = doctor_advice.Machine("cpu", 2, 22 * 10**9, steps_per_core=3_000, updates=60, loop=214)
SERVER = doctor_advice.Machine("cuda", 16, 70 * 10**9, steps_per_core=2_000, updates=2_000, loop=8_000)


def suggested(machine: doctor_advice.Machine) -> dict[str, int]:
    advice = [
        *doctor_advice.envs_for(machine),
        doctor_advice.capacity_for(machine),
        *doctor_advice.batch_for(machine),
    ]
    assert all(each.reason for each in advice)
    return {each.name: each.value for each in advice}


def test_a_cpu_gets_the_usual_batch_and_eight_envs() -> None:
    values = suggested(LAPTOP)
    assert values == {"num_workers": 2, "envs_per_worker": 4, "replay_capacity": 2**20, "batch_size": 32}
    assert doctor_advice.expected_rate(LAPTOP, 32) == 214


@pytest.mark.parametrize(("cores", "workers", "envs"), [(1, 1, 8), (3, 3, 3), (8, 8, 1), (64, 8, 1)])
def test_workers_follow_the_cores(cores: int, workers: int, envs: int) -> None:
    advice = doctor_advice.envs_for(doctor_advice.Machine("cpu", cores, 10**10))
    assert [each.value for each in advice] == [workers, envs]


def test_a_gpu_gets_the_least_batch_that_keeps_up_and_the_same_target() -> None:
    """2,000 updates/s of 128 learn from 32,000 env steps/s, as many as 16 cores make."""
    values = suggested(SERVER)
    assert (values["num_workers"], values["envs_per_worker"], values["batch_size"]) == (16, 8, 128)
    assert values["target_update_interval"] * 128 == 2_000 * 32
    assert doctor_advice.expected_rate(SERVER, 128) == 32_000


@pytest.mark.parametrize(("gigabytes", "capacity"), [(2, 2**13), (5, 2**17), (11, 2**19), (18, 2**20), (500, 2**20)])
def test_the_replay_leaves_half_of_the_memory_free(gigabytes: int, capacity: int) -> None:
    advice = doctor_advice.capacity_for(doctor_advice.Machine("cpu", 2, gigabytes * 10**9))
    assert advice.value == capacity
