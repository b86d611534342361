"""What a figure was measured on: hardware, versions and the code's revision flow out, for the files that record one."""

from __future__ import annotations

import os
import platform
import subprocess
import time
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
