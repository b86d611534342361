"""The machine: what it is and what it has left flow out, for files that record a figure and for checks before a run."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from atari_dqn.config import ConfigError, TrainConfig

PACKAGES = ("torch", "gymnasium", "ale-py", "numpy", "opencv-python")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_system() -> dict[str, Any]:
    """The machine, the versions and the revision, JSON-ready."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "git_revision": git_revision(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git_revision() -> str | None:
    """`git describe` of this code, `-dirty` when it was changed since; None where it lies in no repository."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def set_up_torch(config: TrainConfig) -> int:
    """Import torch and let it compute as the settings say. Returns the threads of its arithmetic."""
    import torch

    threads = config.run.torch_threads or cores()
    torch.set_num_threads(threads)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may choose by what else is running
        # On a GPU some sums (the tree's cumsum) have no deterministic version; there torch warns instead of refusing.
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        # Only guards against reading uninitialised memory, at the price of filling every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


def check_memory(config: TrainConfig, replay_bytes: int) -> None:
    """Raise `ConfigError`, with figures, when the replay is larger than what is free where it will live."""
    import torch

    from atari_dqn.learner import resolve_device

    device = resolve_device(config.run.device)
    on_gpu = device.type == "cuda"
    available = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    if replay_bytes > available:
        fits = config.replay.replay_capacity * available // replay_bytes
        raise ConfigError(
            f"--replay-capacity {config.replay.replay_capacity} needs {replay_bytes / 1e9:.1f} GB and"
            f" {'the GPU' if on_gpu else 'this machine'} has {available / 1e9:.1f} GB free;"
            f" {2 ** max(1, fits.bit_length() - 1)} would fit"
        )


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what its container leaves."""
    import psutil

    available: int = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return available
