"""The machine: its description for records, and the cores and memory that are available."""

import contextlib
import errno
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import atari_dqn
from atari_dqn.system.linux import allowed_cores

PACKAGES = ("torch", "gymnasium", "ale-py", "numpy", "opencv-python")


def cores() -> int:
    """Cores that this process may use."""
    return len(allowed_cores()) or os.cpu_count() or 1


def usable_cores() -> int:
    """Cores' worth of time that this process may use, in whole cores, limited by its control groups too."""
    return int(max(1, min([cores(), *cgroup_cores()])))


def describe_system() -> dict[str, Any]:
    """The machine, the versions and the revision, JSON-ready."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "atari_dqn": atari_dqn.__version__,
        "git_revision": git_revision(),
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def installed_version(name: str) -> str | None:
    """Version of a distribution or its headless build (opencv-python-headless); None if none has this name."""
    for build in (name, f"{name}-headless"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(build)
    return None


def processor() -> str:
    """The processor's name, as the kernel reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git_revision() -> str | None:
    """`git describe` of this code, with `-dirty` after changes; None where it is installed as a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():  # a virtual environment may lie in a repository of something else
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def available_memory() -> int:
    """Bytes this process may still take, limited by the machine, its containers and its address space (`ulimit -v`)."""
    import psutil

    available: int = psutil.virtual_memory().available
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        available = min(available, address_space - psutil.Process().memory_info().vms)
    return max(0, min([available, *cgroup_memory()]))


def cgroup_memory(proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left in each control group of this process that has a limit, from its own up to the root.

    Pages of files that the kernel can reclaim count as free. `proc` is where the kernel describes processes; `mounts`
    has the tree of cgroup v2, or version 1's `memory` tree, alone or beside `unified`.
    """
    left = []
    for group, second in _groups("memory", proc, mounts):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        left.append(_left(group, *(("memory.max", "memory.current", "inactive_file") if second else names)))
    return [number for number in left if number is not None]


def cgroup_cores(proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """Number of cores' worth of time allowed by each control group that limits it; see `cgroup_memory`."""
    allowed = []
    for group, second in _groups("cpu", proc, mounts):
        files = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            quota, period = " ".join((group / name).read_text() for name in files).split()
            allowed.append(int(quota) / int(period))
        except (OSError, ValueError):  # the group is absent, or has no limit ("max")
            continue
    return [cores for cores in allowed if cores > 0]  # version 1 writes -1 for no limit


def _groups(controller: str, proc: Path, mounts: Path) -> Iterator[tuple[Path, bool]]:
    """Directories that may hold the limits of a `controller`, and whether they are those of cgroup v2."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path may be the host's while the container's own group is at the root: try all parents.
        for tree in (mounts / controller,) if controllers else (mounts, mounts / "unified"):
            group = tree / path.lstrip("/")
            yield from ((place, not controllers) for place in (group, *group.parents) if place.is_relative_to(tree))


def _left(group: Path, limit: str, usage: str, inactive: str) -> int | None:
    try:
        allowed, taken = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the group is absent, or has no limit ("max")
        return None
    return allowed - taken + int(stat.get(inactive, 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or the one before it, means that memory ran out, here or on a GPU; each library words it so."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
        # a CUDA graph that runs out of memory while it is recorded raises another error at its end
        or (error.__context__ is not None and is_out_of_memory(error.__context__))
    )
