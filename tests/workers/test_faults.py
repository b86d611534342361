"""Tests of failing workers and parents: the worker is named, nothing hangs, and no process remains."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.system.linux import libc
from atari_dqn.workers.pool import WorkerError, WorkerPool
from tests.stubs import Fragile, Numbered, pids

NATURE = PROTOCOLS["nature"]
FRAGILE = "tests.stubs:Fragile-v0"
NUMBERED = env_spec("tests.stubs:Numbered-v0", NATURE, 4)


def pool_of(env_id: str, deadline: float = 60.0, spec: EnvSpec | None = None) -> WorkerPool:
    """Two workers of two envs; with a `spec` none is made in this process."""
    spec = spec or env_spec(env_id, NATURE, 4)
    return WorkerPool(spec, NATURE, num_workers=2, envs_per_worker=2, seed=1, deadline=deadline)


def terminals() -> bool:
    try:
        for descriptor in os.openpty():
            os.close(descriptor)
    except OSError:
        return False
    return True


def workers() -> list[multiprocessing.process.BaseProcess]:
    return [process for process in multiprocessing.active_children() if process.name.startswith("env-worker")]


def pid_of(name: str) -> int:
    return next(process.pid for process in workers() if process.name == name and process.pid)


@contextlib.contextmanager
def failing(pool: WorkerPool, *, message: str) -> Iterator[None]:
    """The block must end in a `WorkerError` that matches; the pool is closed by it, and its processes are gone."""
    with pool:
        with pytest.raises(WorkerError, match=message):
            yield
        assert workers() == []
        with pytest.raises(RuntimeError, match="closed"):
            pool.reset()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"worker 1 \(envs 2 to 3 of tests.stubs:Fragile-v0\) failed:\n(.*\n)*.*stubs.py(.*\n)*.*stub broke"),
        ("exit", r"worker 1 \(envs 2 to 3 .*\) failed:\n(.*\n)*SystemExit: the stub left"),
        ("crash", r"worker 1 \(envs 2 to 3 .*\) exited with code 7"),
        ("hang", r"worker 1 \(envs 2 to 3 .*\) has not answered for 1.5 s(.*\n)*.*stubs.py.* in _sleep_forever"),
        ("spin", r"worker 1 \(envs 2 to 3 .*\) has not answered for 1.5 s(.*\n)*.*stubs.py.* in step"),
    ],
    ids=["raise", "exit", "crash", "hang", "spin"],
)
def test_an_env_that_fails_is_named_with_its_stack(fault: str, message: str) -> None:
    pool = pool_of(FRAGILE, deadline=1.5)
    with failing(pool, message=message):
        pool.reset()
        pool.send(np.zeros(4, np.int64))
        pool.recv()
        pool.send(np.array([0, 0, Fragile.FAULTS.index(fault), 0]))
        pool.recv()


def test_a_fault_during_a_game_is_reported_the_same_way() -> None:
    pool = pool_of("tests.stubs:Raises-v0")
    with failing(pool, message=r"(?s)worker [01] \(envs .*the stub broke"):
        pool.reset()
        for _ in range(21):
            pool.send(np.zeros(4, np.int64))
            pool.recv()


def test_an_env_that_a_worker_cannot_make_is_reported_at_once() -> None:
    with pytest.raises(WorkerError, match=r"(?s)worker [01] \(envs .*Traceback.*no licence on this machine"):
        pool_of("tests.stubs:Unmakeable-v0")
    assert workers() == []


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_worker_is_named(busy: bool) -> None:
    pool = pool_of(FRAGILE)
    with failing(pool, message=r"worker 1 \(envs 2 to 3 .*\) was killed by SIGKILL"):
        pool.reset()
        if busy:
            pool.send(np.array([0, 0, 0, Fragile.FAULTS.index("spin")]))
        os.kill(pid_of("env-worker-1"), signal.SIGKILL)
        if not busy:
            pool.send(np.zeros(4, np.int64))
        pool.recv()


def test_a_stopped_worker_is_named_and_ended() -> None:
    pool = pool_of(FRAGILE, deadline=1.5)
    with failing(pool, message=r"worker 0 \(envs 0 to 1 .*not answered for 1.5 s and hangs; it answers no signal"):
        pool.reset()
        os.kill(pid_of("env-worker-0"), signal.SIGSTOP)
        pool.send(np.zeros(4, np.int64))
        pool.recv()


def test_workers_leave_ctrl_c_and_termination_to_the_trainer() -> None:
    with pool_of(FRAGILE) as pool:
        pool.reset()
        for process in workers():
            assert process.pid
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        pool.send(np.zeros(4, np.int64))
        assert (pool.recv().frames[:, 1] == 1).all()


@pytest.mark.parametrize("env_id", ["Spawns-v0", "ForksOne-v0", "Abandons-v0"])
def test_an_env_may_start_processes_and_none_outlives_the_pool(env_id: str) -> None:
    before = set(psutil.pids())
    spec = dataclasses.replace(NUMBERED, env_id=f"tests.stubs:{env_id}")
    with WorkerPool(spec, NATURE, num_workers=1, envs_per_worker=2, seed=1) as pool:
        frames = pool.reset().frames.copy()
        simulators = [int(pid) for pid in frames[:, 0]]
        assert frames[:, 1].all(), "they run"
        os.kill(pids(pool)[0], signal.SIGTERM)
        pool.send(np.zeros(2, np.int64))
        assert pool.recv().frames[:, 1].all(), "and heed no signal to the whole job that the worker does not heed"
        assert len(set(simulators) - before) == 2
    assert all_end(simulators, seconds=5)


@pytest.mark.skipif(not terminals(), reason="the sandbox has no terminals")
@pytest.mark.parametrize("env_id", ["ForksOne-v0", "Runs-v0"])
def test_processes_of_an_env_end_with_its_killed_worker(env_id: str) -> None:
    env_id = f"tests.stubs:{env_id}"
    with pool_of(env_id, spec=dataclasses.replace(NUMBERED, env_id=env_id)) as pool:
        frames = pool.reset().frames.copy()
        assert frames[:, 1].all(), "they run"
        os.kill(pid_of("env-worker-0"), signal.SIGKILL)
        assert all_end([int(pid) for pid in frames[:2, 0]], seconds=5)
        assert all(psutil.pid_exists(int(pid)) for pid in frames[2:, 0]), "those of the others live"


# --- separate programs: which processes remain when the parent ends

HEAD = """\
import os, signal, sys, threading
import numpy as np
from multiprocessing import active_children
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.workers.pool import WorkerPool
from tests.stubs import Fragile
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def pool_of(env_id, **settings):
    nature = PROTOCOLS["nature"]
    return WorkerPool(env_spec(env_id, nature, 4), nature, num_workers=2, envs_per_worker=2, seed=1, **settings)
def print_pids():
    print(*(process.pid for process in active_children()), flush=True)
"""
LIMIT = 300
"""Seconds after which a program that should have ended counts as hanging."""


@contextlib.contextmanager
def program(tmp_path: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """A script without `if __name__ == "__main__"`, in a session of its own, which is killed at the end."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def printed_pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the program failed before it had workers"
    return [int(pid) for pid in line.split()]


def all_end(pids: list[int], seconds: float) -> bool:
    """Whether each process ends in time."""
    left = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    return not psutil.wait_procs(left, seconds)[1]


@pytest.mark.parametrize(
    "state",
    [
        "signal.pause()",
        "pool.send(np.full(4, Fragile.FAULTS.index('spin'))); pool.recv()",
        "pool.send(np.full(4, Fragile.FAULTS.index('hang'))); pool.recv()",
    ],
    ids=["idle", "busy", "hanging"],
)
def test_workers_end_with_a_killed_parent(tmp_path: Path, state: str) -> None:
    body = f"""
        pool = pool_of("{FRAGILE}")
        pool.reset()
        print_pids()
        {state}
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        assert len(pids) == 2
        os.kill(parent.pid, signal.SIGKILL)
        assert all_end(pids, seconds=5)


@pytest.mark.skipif(not terminals(), reason="the sandbox has no terminals")
def test_processes_of_an_env_end_with_a_killed_parent(tmp_path: Path) -> None:
    body = """
        pool = pool_of("tests.stubs:Runs-v0")
        print(*pool.reset().frames[:, 0].astype(int), flush=True)
        signal.pause()
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        assert len(set(pids)) == 4
        os.kill(parent.pid, signal.SIGKILL)
        assert all_end(pids, seconds=5)


@pytest.mark.skipif(not libc("prctl"), reason="only Linux ends a stopped process with its parent")
def test_stopped_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """They cannot exit by themselves."""
    body = f"""
        pool = pool_of("{FRAGILE}")
        pool.reset()
        for process in active_children():
            os.kill(process.pid, signal.SIGSTOP)
        print_pids()
        signal.pause()
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        os.kill(parent.pid, signal.SIGKILL)
        assert all_end(pids, seconds=5)


def test_emulators_end_with_a_killed_parent(tmp_path: Path) -> None:
    body = """
        pool = pool_of("ALE/Breakout-v5")
        pool.reset()
        print_pids()
        while True:
            pool.send(np.ones(4, np.int64))
            pool.recv()
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        os.kill(parent.pid, signal.SIGKILL)
        assert all_end(pids, seconds=5)


@pytest.mark.parametrize(
    ("ending", "code", "last_line"),
    [("raise ValueError('a bug of the user')", 1, "ValueError: a bug of the user"), ("sys.exit(0)", 0, "")],
    ids=["exception", "exit"],
)
def test_a_program_that_forgets_its_pool_still_ends(tmp_path: Path, ending: str, code: int, last_line: str) -> None:
    body = f"""
        pool = pool_of("{FRAGILE}")
        pool.reset()
        pool.send(np.full(4, Fragile.FAULTS.index("spin")))
        print_pids()
        {ending}
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        assert parent.wait(LIMIT) == code
        assert all_end(pids, seconds=5)
        assert parent.stderr is not None
        assert parent.stderr.read().strip().rpartition("\n")[2] == last_line


def test_closing_does_not_wait_for_a_stopped_worker(tmp_path: Path) -> None:
    body = f"""
        pool = pool_of("{FRAGILE}")
        print_pids()
        os.kill(active_children()[0].pid, signal.SIGSTOP)
        pool.close()
        print(len(active_children()))
    """
    with program(tmp_path, body) as parent:
        pids = printed_pids(parent)
        output, errors = parent.communicate(timeout=LIMIT)
        assert (output, errors) == ("0\n", "")
        assert all_end(pids, seconds=5)


def test_ctrl_c_reaches_the_program_alone(tmp_path: Path) -> None:
    """A terminal signals the whole group: workers must neither end nor print a traceback each."""
    body = f"""
        with pool_of("{FRAGILE}") as pool:
            pool.reset()
            try:
                print_pids()
                signal.pause()
            except KeyboardInterrupt:
                pool.send(np.zeros(4, np.int64))
                print(pool.recv().frames[:, 1])
    """
    with program(tmp_path, body) as parent:
        printed_pids(parent)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=LIMIT) == ("[1. 1. 1. 1.]\n", "")


def test_ctrl_c_while_workers_start_reaches_the_program_alone(tmp_path: Path) -> None:
    body = f"""
        signal.signal(signal.SIGINT, lambda *_: None)
        started = threading.Event()
        def press():
            while not started.wait(0.01):
                os.killpg(0, signal.SIGINT)
        threading.Thread(target=press).start()
        try:
            with pool_of("{FRAGILE}") as pool:
                started.set()
                print(pool.reset().is_reset)
        finally:
            started.set()
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """
    with program(tmp_path, body) as parent:
        assert parent.communicate(timeout=LIMIT) == ("[ True  True  True  True]\nset()\n", "")


def test_workers_run_no_line_of_the_parents_script(tmp_path: Path) -> None:
    """Nor do they import what it imports, such as torch."""
    body = """
        print("once")
        sys.modules["torch"] = sys  # the real one takes seconds
        with pool_of("tests.stubs:Modules-v0") as pool:
            print(pool.reset().frames[0])
        print(sys.modules["__main__"].__file__ == __file__)
    """
    with program(tmp_path, body) as parent:
        output, _ = parent.communicate(timeout=LIMIT)
        assert output == "once\n[0. 0. 1.]\nTrue\n", "neither torch nor labml, but the env's own module"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system shows no memory maps")
def test_shared_memory_has_no_name_that_could_remain(tmp_path: Path) -> None:
    """A SIGKILL of every process leaves named blocks in /dev/shm; ours is unlinked when it is created."""
    body = """
        pool = pool_of("ALE/Breakout-v5")
        for line in open("/proc/self/maps"):
            if "pym-" in line:
                print(line.rstrip().endswith("(deleted)"), flush=True)
        os.killpg(0, signal.SIGKILL)
    """
    with program(tmp_path, body) as parent:
        output, _ = parent.communicate(timeout=LIMIT)
        assert set(output.split()) == {"True"}


def test_an_env_registered_in_the_script_travels_to_the_workers(tmp_path: Path) -> None:
    body = """
        import gymnasium as gym
        WORD = 7.0
        class Mine(gym.Env):
            observation_space, action_space = gym.spaces.Box(0, 9, (1,), np.float32), gym.spaces.Discrete(2)
            def __init__(self, place=WORD):
                self.place = place
            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                return np.full(1, self.place, np.float32), {}
            def step(self, action):
                return np.full(1, WORD, np.float32), 0.0, False, False, {}
        gym.register("CartPole-v1", Mine)  # in place of gymnasium's own
        gym.register("Named-v0", "__main__:Mine", max_episode_steps=9)
        gym.register("Made-v0", (lambda place: lambda: Mine(place))(5))
        for env_id in ("CartPole-v1", "Named-v0", "Made-v0"):
            with pool_of(env_id) as pool:
                print(pool.reset().frames.ravel())
    """
    with program(tmp_path, body) as parent:
        output, errors = parent.communicate(timeout=LIMIT)
        assert output == "[7. 7. 7. 7.]\n" * 2 + "[5. 5. 5. 5.]\n", errors


def test_an_env_that_cannot_travel_is_refused_with_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(Numbered):
        lock = threading.Lock()

    monkeypatch.setitem(gym.registry, "Locked-v0", gym.envs.registration.EnvSpec("Locked-v0", Locked))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cannot send the environment to the workers .*; register it in a module"):
        pool_of("Locked-v0")
    assert workers() == []
