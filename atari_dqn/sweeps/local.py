"""Running the members of a sweep on this machine: as many at once as cores and memory allow, all stopped together."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from atari_dqn.cli.command import DONE
from atari_dqn.config.derived import RUN_BYTES, derive
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.sweeps.members import STOPPED, Member, command, cores_for, memory_for, progress, start
from atari_dqn.sweeps.table import Board
from atari_dqn.system.machine import available_memory, cores
from atari_dqn.system.signals import StopRequest

LOOK_SECONDS = 0.2
"""Seconds between two looks at the running processes."""
PROGRESS_SECONDS = 2.0
"""Seconds between two looks at how far they are."""


def at_once(members: Sequence[tuple[Member, EnvSpec]]) -> int:
    """How many of these runs to have at once: each needs its cores, and memory for a full replay.

    Raises `ConfigError` if there is not enough memory for one of them. Imports torch.
    """
    import torch

    from atari_dqn.agent.device import check_memory, resolve_device

    fits = [len(members)]
    for member, spec in members:
        replay_bytes = derive(member.config, spec.frame_bytes).replay_bytes
        check_memory(member.config, replay_bytes)
        device = resolve_device(member.config.run.device)
        on_gpu = device.type == "cuda"
        fits.append(cores() // cores_for(member.config, on_gpu=on_gpu))
        fits.append(available_memory() // memory_for(member, spec, on_gpu=on_gpu))
        if on_gpu:
            fits.append(int(torch.cuda.mem_get_info(device)[0] / (replay_bytes + RUN_BYTES)))
    return max(1, min(fits))


def threads_each(member: Member, kind: str, beside: int) -> int:
    """Torch threads of one of `beside` runs at once on observations of a `kind`; 0: as its settings say."""
    from atari_dqn.agent.device import threads_asked, threads_by_default

    return 0 if beside == 1 or threads_asked(member.config) else max(1, threads_by_default(kind) // beside)


def run(
    members: Sequence[tuple[Member, EnvSpec]],
    root: Path,
    stop: StopRequest,
    board: Board,
    flags: Mapping[str, str],
    beside: int,
) -> dict[str, int]:
    """Run members, `beside` at once, in their directories in `root`.

    After a request to stop none is started, and those that run save their state. Returns the exit codes by name,
    without those that were never started. `flags` are further flags of `train`.
    """
    waiting = [(member, threads_each(member, spec.kind, beside)) for member, spec in members]
    running: dict[str, tuple[Member, subprocess.Popen[bytes]]] = {}
    codes: dict[str, int] = {}
    told, looked = False, 0.0
    try:
        while running or (waiting and not told):
            if stop.asked() and not told:
                told = True
                board.say("stopping as soon as every run has saved its state")
                for name, (_, process) in running.items():
                    board.lines[name].state = "saving"
                    process.terminate()
            elif waiting and not told and len(running) < beside:
                member, threads = waiting.pop(0)
                process = start(command(member, root, flags, threads), member.log(root))
                running[member.name] = member, process
                board.lines[member.name].state = "running"
                board.say(f"{member.label} started")
            time.sleep(LOOK_SECONDS)
            ended = [name for name, (_, process) in running.items() if process.poll() is not None]
            if ended or time.monotonic() >= looked + PROGRESS_SECONDS:
                looked = time.monotonic()
                for name, (member, _) in running.items():
                    board.lines[name].progress = progress(member.run_dir(root))
            for name in ended:
                member, process = running.pop(name)
                codes[name] = process.returncode
                _end(member, process.returncode, root, board)
            board.show()
    finally:
        for _, process in () if told else running.values():  # a second signal would end it at once
            process.terminate()
    return codes


def _end(member: Member, code: int, root: Path, board: Board) -> None:
    state = "done" if code == DONE else "stopped" if code in STOPPED else "failed"
    board.lines[member.name].state = state
    how = f"failed with exit code {code}: see {member.log(root)}" if state == "failed" else state
    board.say(f"{member.label} {how}")
