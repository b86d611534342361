"""Doctor's checks: libraries, GPU, CPU cores, memory and shared memory.

Each check imports what it needs: doctor must run where a library is missing or broken, and a broken library is a
finding of its own check only.
"""

import dataclasses
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Literal

from atari_dqn.system import machine

PACKAGE = "atari_dqn"
MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL"}
"""Modules whose name cannot be derived from that of their distribution"""
INDENT = 24
"""Columns before the text of a finding"""
GET_TORCH = "https://pytorch.org/get-started/locally/"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Literal["ok", "note", "warning", "error"]
    text: str
    remedy: str = ""
    """What to do about it; empty where nothing needs to be done"""

    def line(self, check: str) -> str:
        """Its text after the name of its check; its level stands before, in nine columns."""
        width = max(40, shutil.get_terminal_size().columns - INDENT) if sys.stdout.isatty() else sys.maxsize
        wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        lines = [*wrap.wrap(self.text), *wrap.wrap(f"-> {self.remedy}" if self.remedy else "")]
        return f"{check:<15}" + f"\n{'':<{INDENT}}".join(lines)


Check = Callable[[], Iterator[Finding]]


def run_check(check: Check) -> Iterator[Finding]:
    """Yield the findings of `check`. Whatever it raises, a failed import included, becomes a finding too."""
    try:
        yield from check()
    except (Exception, SystemExit) as error:
        yield Finding("error", f"cannot check: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_libraries() -> Iterator[Finding]:
    """Versions, and what `pip check` says about the requirements of this package and of all others."""
    versions = [f"{name} {version}" for name in machine.PACKAGES if (version := machine.installed_version(name))]
    yield Finding("ok", ", ".join([f"Python {platform.python_version()}", *versions]))
    if importlib.util.find_spec("pip") is None:
        yield Finding("note", "pip is not installed: cannot check what the libraries require of each other")
        return
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=60)
    conflicts = result.stdout.splitlines() if result.returncode else []
    others = []
    for line in conflicts:  # "NAME VERSION requires NAME, which is not installed." or "... has requirement ..."
        words = line.split()
        name = words[3].rstrip(",") if words[2:3] == ["requires"] else ""
        if words[0].replace("-", "_") != PACKAGE:
            others.append(line)
        elif name and importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))):
            yield Finding("note", f"{name} is installed under another name: cannot check its version")
        else:
            yield Finding("error", line, "python -m pip install the version that is required")
    if others:
        text = f"{len(others)} conflicts among other libraries, such as: {others[0]}"
        yield Finding("warning", text, "python -m pip check lists them; reinstall with --constraint constraints.txt")


def check_gpu() -> Iterator[Finding]:
    """The device torch will use, tried with one matrix product."""
    import torch

    driver, cuda = _nvidia_smi(), torch.version.cuda
    build = f"torch {torch.__version__} for {f'CUDA {cuda}' if cuda else 'CPUs only'}"
    if torch.cuda.is_available():
        name, (free, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
        try:
            ones = torch.ones(256, 256, device="cuda")
            (ones @ ones).sum().item()
        except RuntimeError as error:
            text = f"{name} cannot compute: {first_line(error)}"
            yield Finding("error", text, f"install a torch built for this GPU ({GET_TORCH}), or use --device cpu")
            return
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Finding("ok", f"{name}, {memory}, {build}; {driver or 'driver unknown'}")
    elif driver:
        remedy = f"install a torch for the driver's CUDA ({GET_TORCH}); is the GPU hidden by CUDA_VISIBLE_DEVICES?"
        yield Finding("warning", f"{driver}, but {build} finds no GPU", remedy)
    else:
        yield Finding("ok", "none; the learner runs on the CPU")


def check_cores() -> Iterator[Finding]:
    """CPU cores: those of the machine, and those this process may use by its affinity and its control groups."""
    usable, quota = machine.cores(), min(machine.cgroup_cores(), default=float("inf"))
    limit = f"; a control group limits this process to {quota:g} cores" if quota < usable else ""
    yield Finding("note" if limit else "ok", f"{usable} of {os.cpu_count()} usable: {machine.processor()}{limit}")


def check_memory() -> Iterator[Finding]:
    """Free memory against what a run with the default replay takes."""
    from atari_dqn.config.derived import RUN_BYTES
    from atari_dqn.config.presets import PRESETS
    from atari_dqn.diagnostics.advice import replay_bytes

    capacity = PRESETS["cpu"](1, 1).replay.replay_capacity
    replay, free = replay_bytes(capacity), machine.available_memory()
    run = f"a run takes {RUN_BYTES / 1e9:.1f} GB, and {replay / 1e9:.1f} GB for the replay of the preset cpu"
    text = f"{free / 1e9:.1f} GB free; {run}"
    if free < RUN_BYTES:
        yield Finding("error", text, "stop other programs, or raise the memory limit of the container")
    elif free < RUN_BYTES + replay:
        yield Finding("warning", text, "use a smaller --replay-capacity, as suggested below")
    else:
        yield Finding("ok", text)


def check_shared_memory() -> Iterator[Finding]:
    """Room in /dev/shm for the block through which the default workers hand over their frames."""
    import numpy as np

    from atari_dqn.config.schema import TrainConfig
    from atari_dqn.workers.shared_memory import block_bytes, room_fault

    envs = TrainConfig().num_envs
    needed = block_bytes(envs, (84, 84), np.dtype(np.uint8))
    if fault := room_fault(needed):
        yield Finding("error", fault, "in a container: docker run --shm-size 256m")
        return
    text = f"enough for the {needed / 1e6:.2f} MB of {envs} envs"
    if os.path.isdir("/dev/shm"):
        usage = shutil.disk_usage("/dev/shm")
        text += f"; {usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free in /dev/shm"
    yield Finding("ok", text)


CHECKS: dict[str, Check] = {
    "libraries": check_libraries,
    "GPU": check_gpu,
    "cores": check_cores,
    "memory": check_memory,
    "shared memory": check_shared_memory,
}


def _nvidia_smi() -> str:
    """Name and driver version of the first GPU according to the driver's own program; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, driver = (output.splitlines() or [""])[0].partition(", ")
    return f"{name}, driver {driver}" if driver else ""
