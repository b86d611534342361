"""Worker process: steps one slice of a pool's environments on command.

One pipe brings one-byte commands, another takes the answers: one byte for done, or one for failed and the traceback.
Actions come, and frames, rewards and flags go, by shared memory. A worker never outlives its parent, and imports
neither torch nor labml.
"""

import faulthandler
import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

from atari_dqn.envs.atari import AtariGames
from atari_dqn.envs.make import make_vector_env, register
from atari_dqn.envs.plain import PlainEnvs
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.system.linux import pin
from atari_dqn.system.processes import end_with_parent
from atari_dqn.workers.shared_memory import map_block

START, RESET, STEP = b"b", b"r", b"s"
DONE, FAILED = b".", b"!"
TRACEBACK_BYTES = 2**15
"""Maximum size of a traceback in an answer, of which the end is kept: a pipe takes this much at once."""


def serve(
    commands: Connection,
    answers: Connection,
    tracebacks: Connection,
    block: Any,
    registered: bytes,
    spec: EnvSpec,
    protocol: Protocol,
    core: int | None,
    num_envs: int,
    mine: slice,
) -> None:
    """Run a worker until the pipes close: the environments `mine` of the pool's `num_envs`, on `core` (None: any).

    `block` is the pool's shared memory; `tracebacks` takes the process's own on SIGUSR1, even while an environment
    hangs. The worker heeds no SIGINT, SIGTERM or SIGHUP, which may reach every process of a job: the trainer alone
    decides when to end.
    """
    faulthandler.register(signal.SIGUSR1, file=tracebacks, all_threads=True)
    if core is not None:
        pin(core)
    end_with_parent(hang_up_children=not spec.is_atari)
    # Bare reads and writes below: with few environments a tick is short, and a process wakes with cold caches.
    envs: AtariGames | PlainEnvs | None = None
    command, error = START, ""
    while command and not error:  # an empty read means that the pool closed the pipes
        try:
            if envs is None:
                out, orders = map_block(block, num_envs, spec.frame_shape, spec.frame_dtype)
                orders, out = orders.of(mine), out.of(mine)
                register(registered)
                envs = make_vector_env(spec, protocol, len(orders.actions), out, mine.start)
            else:
                if command == STEP:
                    envs.step(orders.actions)
                envs.reset(orders.seeds.tolist())
        except BaseException:  # an environment may even call sys.exit: the trainer must hear of anything
            error = traceback.format_exc()
        try:
            os.write(answers.fileno(), FAILED if error else DONE)
            if error:
                answers.send_bytes(error.encode(errors="backslashreplace")[-TRACEBACK_BYTES:])
            else:
                command = os.read(commands.fileno(), 1)
        except OSError:
            break  # the pool closed the pipes during a step
    if envs is not None:
        envs.close()
