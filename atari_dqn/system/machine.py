"""The machine: what it is and what it has left flow out, for files that record a figure and for checks before a run."""

from __future__ import annotations

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
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def installed_version(name: str) -> str | None:
    """Version of a distribution; None if none has this name (another build, such as opencv-python-headless)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git_revision() -> str | None:
    """`git describe` of this code, `-dirty` when it was changed since; None where it lies in no repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def available_memory() -> int:
    """Bytes this process may still take: of the machine's, its containers' and its own address space (`ulimit -v`)."""
    import psutil

    available: int = psutil.virtual_memory().available
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        available = min(available, address_space - psutil.Process().memory_info().vms)
    return max(0, min(available, *cgroup_memory()))


def cgroup_memory(proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left in each control group with a limit that this process is in, from its own up to the root.

    `proc` is where the kernel tells of processes; `mounts` holds the one tree of cgroup v2, or version 1's `memory`
    tree, or that beside `unified`. Pages of files that the kernel gives back when asked do not count as taken.
    """
    left = []
    for group, second in _groups("memory", proc, mounts):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        left.append(_left(group, *(("memory.max", "memory.current", "inactive_file") if second else names)))
    return [number for number in left if number is not None]


def cgroup_cores(proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """Cores' worth of time that each control group with such a limit leaves this process; as `cgroup_memory` looks."""
    allowed = []
    for group, second in _groups("cpu", proc, mounts):
        files = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            quota, period = " ".join((group / name).read_text() for name in files).split()
            allowed.append(int(quota) / int(period))
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
    return [cores for cores in allowed if cores > 0]  # version 1 says -1 for none


def _groups(controller: str, proc: Path, mounts: Path) -> Iterator[tuple[Path, bool]]:
    """Where the limits of a `controller` may be found, and whether they are those of cgroup v2."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path may be the host's, and the container's own group lie at the root: look at all above.
        for tree in (mounts / controller,) if controllers else (mounts, mounts / "unified"):
            group = tree / path.lstrip("/")
            yield from ((place, not controllers) for place in (group, *group.parents) if place.is_relative_to(tree))


def _left(group: Path, limit: str, usage: str, inactive: str) -> int | None:
    try:
        allowed, taken = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or no limit: "max"
        return None
    return allowed - taken + int(stat.get(inactive, 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one it came of, says that no memory is left, on a GPU or here: each library has its words."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
        # a CUDA graph that ran out while it was recorded raises something else at its end
        or (error.__context__ is not None and is_out_of_memory(error.__context__))
    )
