"""Too little memory, of whichever kind: said up front where it can be known, and survived where not."""

from __future__ import annotations

import dataclasses
import errno
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.system.machine import cgroup_memory, is_out_of_memory
from atari_dqn.workers.pool import WorkerError, WorkerPool
from tests.test_train import SHORT, TRAIN, rows, run

# --- what control groups leave


def written(place: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Write out a tree; returns its `proc` and its `cgroup`."""
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content + "\n")
    return place / "proc", place / "cgroup"


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, []),
        ({"proc/self/cgroup": "0::/"}, []),
        ({"proc/self/cgroup": "0::/", "cgroup/memory.max": "max", "cgroup/memory.current": "5"}, []),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "cgroup/a/b/memory.max": "max",
                "cgroup/a/b/memory.current": "600",
                "cgroup/a/b/memory.stat": "inactive_file 0",
                "cgroup/a/memory.max": "1000",
                "cgroup/a/memory.current": "700",
                "cgroup/a/memory.stat": "anon 200\nfile 500\ninactive_file 400",
            },
            [700],
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job/1\n2:cpu,cpuacct:/job/1\n1:name=systemd:/\n0::/",
                **{f"cgroup/memory/job/1/{name}": value for name, value in zip(V1, ("1000", "900"), strict=True)},
                "cgroup/memory/job/1/memory.stat": "inactive_file 1\ntotal_inactive_file 50",
                **{f"cgroup/memory/{name}": value for name, value in zip(V1, (str(2**63 - 4096), "7"), strict=True)},
                "cgroup/memory/memory.stat": "total_inactive_file 0",
                "cgroup/memory.max": "1",
            },
            [150, 2**63 - 4096 - 7],
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/f00",
                **{f"cgroup/memory/{name}": value for name, value in zip(V1, ("1000", "900"), strict=True)},
                "cgroup/memory/memory.stat": "total_inactive_file 0",
            },
            [100],
        ),
        (
            {
                "proc/self/cgroup": "0::/a",
                "cgroup/unified/a/memory.max": "1000",
                "cgroup/unified/a/memory.current": "1",
                "cgroup/unified/a/memory.stat": "anon 1",
            },
            [999],
        ),
    ],
    ids=["no proc", "bare", "no limit", "parent's limit", "version 1", "a container's", "hybrid"],
)
def test_every_control_group_above_a_process_counts(files: dict[str, str], left: list[int], tmp_path: Path) -> None:
    assert cgroup_memory(*written(tmp_path, files)) == left


# --- a whole training in little memory


def test_a_replay_larger_than_the_address_space_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    """The limit is one that torch loads under."""
    command = [*TRAIN, "--env-id", "breakout", "--run-dir", "run", "--num-workers", "1", "--device", "cpu"]
    result = subprocess.run(
        [*command, "--replay-capacity", str(2**20)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)),
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --replay-capacity 1048576 needs 7.4 GB and this machine has ")
    fits = int(line.split("; try ")[1])
    assert fits in (2**17, 2**18, 2**19)
    assert not (tmp_path / "run").exists()


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LITTLE = {
    "cpu": "vms = psutil.Process().memory_info().vms; resource.setrlimit(resource.RLIMIT_AS, (vms + 2**28, -1))",
    "cuda": "torch.cuda.set_per_process_memory_fraction("
    "(torch.cuda.memory_reserved() + 2**28) / torch.cuda.get_device_properties(0).total_memory)",
}
"""Leaves 256 MB more than what is taken."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_memory_that_runs_out_in_training_ends_it_with_the_state_saved(device: str, tmp_path: Path) -> None:
    """The limit comes after the start, as it does when others take what was free."""
    program = (
        "import resource, psutil, torch\n"
        "from atari_dqn.train import main\n"
        "from atari_dqn.cli.command import run_command\n"
        "from atari_dqn.training import trainer\n"
        "class Poor(trainer.Trainer):\n"
        "    def start(self, *watchers):\n"
        "        super().start(*watchers)\n"
        f"        {LITTLE[device]}\n"
        "trainer.Trainer = Poor\n"
        "run_command(main)\n"
    )
    flags = [*SHORT[len(TRAIN) :], "--run-dir", "run", "--batch-size", "65536", "--replay-ratio", "1024"]
    result = run([sys.executable, "-c", program, *flags, "--mlp-hidden", "4096", "--device", device], tmp_path)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: out of memory (")
    assert "lower --batch-size to resume run, or --replay-capacity and the number of environments in a new run" in line
    assert int(CheckpointStore(tmp_path / "run").find("latest").name) >= 200

    flags = ["--run-dir", "run", "--batch-size", "16", "--replay-ratio", "1", "--total-env-steps", "400"]
    result = run([*TRAIN, *flags], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--batch-size 65536 -> 16\n" in result.stdout


def test_each_librarys_way_to_say_it_is_known() -> None:
    def allocates(allocate: Callable[[], object]) -> Exception:
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        return caught.value

    for error in (
        allocates(lambda: torch.empty(2**60)),
        allocates(lambda: np.empty(2**50)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        assert is_out_of_memory(error)
        later = RuntimeError("operation failed due to a previous error during capture")
        later.__context__ = error
        assert is_out_of_memory(later)
    for other in (RuntimeError("shapes do not match"), OSError(errno.ENOSPC, "No space left on device"), ValueError()):
        assert not is_out_of_memory(other)


# --- shared memory


def in_small_shm(size: str, full: bool, command: list[str], more: str = "true") -> list[str]:
    """`command` in a mount namespace of its own, where /dev/shm is of `size`. Skips where that is not permitted."""
    fill = "dd if=/dev/zero of=/dev/shm/other bs=4k 2>/dev/null;" if full else ""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting in a namespace of its own is not permitted here")
    return ["unshare", "-m", "sh", "-c", f'{mount}; {fill} {more}; exec "$@"', "sh", *command]


@pytest.mark.parametrize(
    ("size", "full"),
    [("64m", False), pytest.param("64k", False, marks=pytest.mark.slow), ("64k", True)],
    ids=["64 MB", "64 KB", "full"],
)
def test_training_gets_by_with_a_small_shared_memory(size: str, full: bool, tmp_path: Path) -> None:
    """Breakout with 16 envs shares 0.1 MB: what has no room in /dev/shm goes to the directory for temporary files."""
    flags = ["--run-dir", "run", "--total-env-steps", "300", "--env-id", "breakout", "--envs-per-worker", "8"]
    result = run(in_small_shm(size, full, [*SHORT, *flags]), tmp_path)
    assert result.returncode == 0, result.stderr
    assert rows(tmp_path / "run")[-1]["env_step"] >= 300


def test_no_shared_memory_at_all_is_told_up_front(tmp_path: Path) -> None:
    more = "export TMPDIR=/dev/shm"
    flags = ["--run-dir", "run", "--total-env-steps", "300", "--env-id", "breakout", "--envs-per-worker", "8"]
    result = run(in_small_shm("64k", False, [*SHORT, *flags], more), tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the workers need 0.11 MB of shared memory, and /dev/shm has 0.07 MB")
    assert not (tmp_path / "run").exists()


def test_a_pool_without_room_for_its_block_is_not_begun() -> None:
    """As one for an evaluation may be in mid-run: the training ends with its state saved, not by a bus error."""
    nature = PROTOCOLS["nature"]
    huge = dataclasses.replace(env_spec("CartPole-v1", nature, 4), frame_shape=(10**8, 10**8))
    with pytest.raises(WorkerError, match=r"need 4\d{10}\.\d\d MB of shared memory, and /dev/shm has .* enlarge one"):
        WorkerPool(huge, nature, num_workers=1, envs_per_worker=1, seed=1)
