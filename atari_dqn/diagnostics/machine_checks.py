"""The doctor's checks of the machine: games, GPU, cores, memory and disk flow in, findings flow out.

As in doctor_libraries.py, each check imports what it needs by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from atari_dqn.diagnostics.library_checks import FAULT, OK, WARNING, Found, first_line, pip
from atari_dqn.envs.ids import is_atari

GIGABYTE = 1e9
LEAST_DISK, SLOW_DISK = 5 * GIGABYTE, 30e6
"""Bytes free, and bytes a second, below which a run directory is warned of."""
WRITTEN = 32 * 2**20
"""Bytes written to tell how fast a disk is."""


def check_games(runs: Path) -> Found:
    """ROMs, and that an emulator steps."""
    import gymnasium
    import numpy as np
    from ale_py import roms

    from atari_dqn.envs.make import env_spec, make_vector_env
    from atari_dqn.envs.protocol import PROTOCOLS

    games = {spec.kwargs["game"] for env_id, spec in gymnasium.registry.items() if is_atari(env_id)}
    missing = sorted(game for game in games if not (path := roms.get_rom_path(game)) or not path.is_file())
    if missing or not games:
        what = f"{len(missing)} of {len(games)} ROMs are missing, {missing[0]} first" if missing else "no game is known"
        yield FAULT, what, pip('"ale-py>=0.12.1"', "--force-reinstall --no-deps ")
        return
    protocol = PROTOCOLS["nature"]
    envs = make_vector_env(env_spec("ALE/Breakout-v5", protocol, 4), protocol, 1)
    envs.reset(seed=[1])  # type: ignore[arg-type]
    frames = envs.step(np.zeros(1, np.int64))[0]
    envs.close()
    yield (OK, f"{len(games)} ROMs; Breakout plays", "") if frames.any() else (FAULT, "Breakout shows black frames", "")


def check_gpu(runs: Path) -> Found:
    """What torch would compute on, with one small product as a trial."""
    import torch

    present = _nvidia_smi()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name, cuda = torch.cuda.get_device_name(), torch.version.cuda
        try:
            ones = torch.ones(256, 256, device="cuda")
            right = (ones @ ones).sum().item() == 256**3
        except RuntimeError as error:
            remedy = "install a torch that is built for it: https://pytorch.org/get-started/locally/"
            yield FAULT, f"{name} cannot compute: {first_line(error)}; --device cpu does without", remedy
            return
        memory = f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
        text = f"{name}, {memory}, CUDA {cuda}; {present or 'no driver told'}"
        if right:
            yield OK, text, ""
        else:
            yield FAULT, f"{text}; it multiplies wrongly", "use another one: CUDA_VISIBLE_DEVICES"
    elif present and torch.version.cuda is None:
        version = torch.__version__.partition("+")[0]
        remedy = (
            f"{pip(f'torch=={version}', '--force-reinstall ')} takes PyPI's build, which for Linux has CUDA;"
            " others: https://pytorch.org/get-started/locally/"
        )
        yield WARNING, f"{present}, and torch {torch.__version__} is a build for CPUs alone", remedy
    elif present:
        try:
            torch.cuda.init()
            reason = "CUDA_VISIBLE_DEVICES may hide it"
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
        remedy = f"a driver for CUDA {torch.version.cuda} or later, or a torch for the driver's CUDA"
        yield WARNING, f"{present}, and torch {torch.__version__} finds none: {reason}", remedy
    else:
        yield OK, "none: the learner computes on the CPU", ""


def check_precision(runs: Path) -> Found:
    """Which arithmetic `--precision auto` takes."""
    from atari_dqn.agent.device import resolve_device, resolve_precision

    device = resolve_device("auto")
    if resolve_precision("auto", device, deterministic=False) == "bf16":
        yield OK, f"the {device.type} multiplies bf16 natively, and --precision auto takes it", ""
    else:
        yield OK, f"the {device.type} has no native bf16, so --precision auto takes fp32", ""


def check_cores(runs: Path) -> Found:
    """Cores there are, may be used, and are allowed."""
    from atari_dqn.system.machine import cgroup_cores, cores, processor

    usable, quota = cores(), min(cgroup_cores(), default=float(os.cpu_count() or 1))
    text = f"{usable} of {os.cpu_count()} may be used: {processor()}"
    if quota < usable:
        threads = max(1, int(quota))
        remedy = f"--torch-threads {threads}: more threads than that would wait for each other"
        yield WARNING, f"{text}; a control group allows {quota:g} cores' worth of time", remedy
    else:
        yield OK, text, ""


def check_memory(runs: Path) -> Found:
    """What is free, against the default replay."""
    from atari_dqn.config.derived import derive
    from atari_dqn.config.schema import TrainConfig
    from atari_dqn.system.machine import available_memory
    from atari_dqn.training.multi_seed import RUN_BYTES

    replay, free = derive(TrainConfig(), 7_056, 4).replay_bytes, available_memory()
    text = f"{free / GIGABYTE:.1f} GB free; a run takes {RUN_BYTES / GIGABYTE:.1f} and its replay, by default"
    text += f" {replay / GIGABYTE:.1f} GB"
    if free < RUN_BYTES:
        yield FAULT, text, "stop other programs, or raise the memory limit of the container"
    elif free < RUN_BYTES + replay:
        yield WARNING, text, "a smaller --replay-capacity, as suggested below"
    else:
        yield OK, text, ""


def check_shared_memory(runs: Path) -> Found:
    """Room for what workers hand over."""
    import numpy as np

    from atari_dqn.config.schema import TrainConfig
    from atari_dqn.workers.shared_memory import block_bytes, room_fault

    default = TrainConfig().num_envs
    needed = block_bytes(default, (84, 84), np.dtype(np.uint8))
    if fault := room_fault(needed):
        yield FAULT, fault, "in a container: docker run --shm-size 256m"
    else:
        yield OK, f"room for the {needed / 1e6:.2f} MB of {default} envs" + _shm_size(), ""


def check_disk(runs: Path) -> Found:
    """Room for runs, and how fast they are written."""
    place = next(path for path in (runs, *runs.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            content = os.urandom(WRITTEN)  # zeros might be compressed
            began = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            speed = WRITTEN / (time.perf_counter() - began)
    except OSError as error:
        remedy = "name another directory, by --run-dir of train and by --runs here, or make room"
        yield FAULT, f"{place.absolute()} cannot be written: {error.strerror}", remedy
        return
    free = shutil.disk_usage(place).free
    text = f"{free / GIGABYTE:,.1f} GB free in {place.absolute()}, written at {speed / 1e6:,.0f} MB/s"
    if free < LEAST_DISK:
        yield WARNING, text, "make room: checkpoints of a full replay and videos take some GB"
    elif speed < SLOW_DISK:
        yield WARNING, text, "a local disk for --run-dir: training waits while a checkpoint is saved"
    else:
        yield OK, text, ""


def _nvidia_smi() -> str:
    """The first GPU and its driver, as the driver's own program tells them; empty without."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, driver = (told.splitlines() or [""])[0].partition(", ")
    return f"{name}, driver {driver}" if driver else ""


def _shm_size() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return ""
    return f"; /dev/shm has {usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free"
