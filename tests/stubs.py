"""Small gymnasium environments with known steps, for tests.

Importing this module registers them; `tests.stubs:NAME` names one from anywhere, including a worker process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from atari_dqn.workers.local import LocalSupervisor

if TYPE_CHECKING:
    from atari_dqn.training.trainer import Trainer
    from atari_dqn.workers.pool import WorkerPool

Info = dict[str, Any]


def pids(of: Trainer | WorkerPool) -> list[int]:
    """Process ids of a pool's workers, or of a started trainer's. On a cluster they must be idle."""
    supervisor: Any = getattr(of, "workers", of)._supervisor  # type: ignore[union-attr]
    if isinstance(supervisor, LocalSupervisor):
        return _pids(supervisor)
    import ray

    asked = [share.actor.__ray_call__.remote(lambda node: _pids(node._supervisor)) for share in supervisor.shares]
    found = dict(zip((share.workers[0] for share in supervisor.shares), ray.get(asked), strict=True))
    return [pid for first in sorted(found) for pid in found[first]]


def _pids(supervisor: LocalSupervisor) -> list[int]:
    return [supervisor.processes[index].pid for index in supervisor.workers]


class Numbered(gym.Env[npt.NDArray[np.float32], Any]):
    """Each observation is numbered: [episode, step, a random number of the env's own, the action that led here].

    An episode ends after `length` steps; without one, after 1 to 9, drawn for each. Every step pays `reward`.
    """

    observation_space = Box(0, np.inf, (4,), np.float32)
    action_space = Discrete(3)

    def __init__(self, length: int | None = None, reward: float = 1.0) -> None:
        self._given_length, self._reward = length, reward
        self._episode = -1

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[npt.NDArray[np.float32], Info]:
        super().reset(seed=seed)
        self._episode = 0 if seed is not None else self._episode + 1
        self._length = self._given_length or int(self.np_random.integers(1, 10))
        self._step = 0
        return self._observation(0), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        self._step += 1
        return self._observation(action), self._reward, self._step == self._length, False, {}

    def _observation(self, action: int) -> npt.NDArray[np.float32]:
        return np.array([self._episode, self._step, self.np_random.random(), action], np.float32)


class FiveLives(Numbered):
    """A game of five lives, reported in `info` as in Atari: each lasts 3 steps, each step pays 2, a game 30."""

    def __init__(self) -> None:
        super().__init__(length=15, reward=2.0)

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        *outcome, _ = super().step(action)
        return *outcome, {"lives": 5 - self._step // 3}  # type: ignore[return-value]

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[npt.NDArray[np.float32], Info]:
        observation, _ = super().reset(seed=seed)
        return observation, {"lives": 5}


class Shaped(Numbered):
    """A game of 5 steps: each pays 2, which a wrapper would have made of the raw 1."""

    def __init__(self) -> None:
        super().__init__(length=5, reward=2.0)

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        *outcome, info = super().step(action)
        return *outcome, info | {"raw_reward": 1.0}  # type: ignore[return-value]


class Shifted(Numbered):
    """Its actions are 5, 6 and 7."""

    action_space = Discrete(3, start=5)


class Fragile(Numbered):
    """Fails when an action asks for it, or with `fault` after `after` steps; else it is an endless `Numbered`."""

    FAULTS: ClassVar = ["none", "raise", "hang", "spin", "exit", "crash", "nan", "1e300", "inf observed"]
    action_space = Discrete(len(FAULTS))

    def __init__(self, fault: str = "none", after: int = 20) -> None:
        super().__init__(length=sys.maxsize)
        self._fault, self._after = fault, after

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        fault = self._fault if self._step >= self._after else self.FAULTS[action]
        if fault == "raise":
            raise RuntimeError("the stub broke")
        if fault == "hang":
            self._sleep_forever()
        while fault == "spin":
            pass
        if fault == "exit":
            sys.exit("the stub left")
        if fault == "crash":
            os._exit(7)
        observation, reward, *rest = super().step(action)
        if fault == "inf observed":
            observation[2] = np.inf
        return observation, float(fault) if fault in ("nan", "1e300") else reward, *rest  # type: ignore[return-value]

    def _sleep_forever(self) -> None:
        while True:
            time.sleep(3600)


class OnlyOne(Numbered):
    """Refuses a second one in the same process, as some emulators do."""

    alive = 0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(length=5)
        self.render_mode, self.metadata = render_mode, {"render_modes": ["rgb_array"]}
        if OnlyOne.alive:
            raise RuntimeError("cannot create multiple emulator instances per process")
        OnlyOne.alive += 1

    def render(self) -> npt.NDArray[np.uint8]:
        return np.zeros((64, 64), np.uint8)

    def close(self) -> None:
        OnlyOne.alive -= 1


class Slow(Numbered):
    """Each step takes half a second."""

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        time.sleep(0.5)
        return super().step(action)


class HangsInReset(Fragile):
    """Its first episode ends after 20 steps, and the next reset hangs."""

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        observation, reward, _, truncated, info = super().step(0)
        return observation, reward, self._step == self._after, truncated, info

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[npt.NDArray[np.float32], Info]:
        if seed is None:
            self._sleep_forever()
        return super().reset(seed=seed)


class Lives(Numbered):
    """Observes which process and episode it is in: [process id, episode, step, action]; pays the number of the step."""

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        observation, _, *rest = super().step(action)
        return observation, float(self._step), *rest  # type: ignore[return-value]

    def _observation(self, action: int) -> npt.NDArray[np.float32]:
        return np.array([os.getpid(), self._episode, self._step, action], np.float32)


class Forks(Lives):
    """Its worker process forks another, which keeps all its pipes open and outlives it for half a minute."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None and os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.alarm(30)
            signal.pause()


class Simulated(Numbered):
    """Has a process of its own, started by `method`, which it terminates when closed; observes that process's id."""

    def __init__(self, method: str) -> None:
        super().__init__()
        context: Any = multiprocessing.get_context(method)
        self._simulator = context.Process(target=time.sleep, args=(3600,))
        self._simulator.start()

    def _observation(self, action: int) -> npt.NDArray[np.float32]:
        return np.array([self._simulator.pid, self._simulator.is_alive(), 0, 0], np.float32)

    def close(self) -> None:
        self._simulator.terminate()
        self._simulator.join()


class Abandons(Simulated):
    """Leaves its process running."""

    def close(self) -> None:
        pass


class Runs(Numbered):
    """Runs a program, which it leaves running; observes its process id."""

    def __init__(self) -> None:
        super().__init__()
        self._program = subprocess.Popen(["sleep", "3600"])

    def _observation(self, action: int) -> npt.NDArray[np.float32]:
        return np.array([self._program.pid, self._program.poll() is None, 0, 0], np.float32)


class OneLife(Lives):
    """Can be made once by each worker, which leaves a file of its name in the directory `STUB_DIRECTORY`."""

    def __init__(self) -> None:
        super().__init__()
        process = multiprocessing.current_process()
        if multiprocessing.parent_process() is not None:
            (Path(os.environ["STUB_DIRECTORY"]) / process.name).touch(exist_ok=False)


class Late(Fragile):
    """Its one action is harmless; the fault comes after 20 steps."""

    action_space = Discrete(1)


class Unmakeable(Numbered):
    """Can be made by the parent process, but not by a worker."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            raise OSError("no licence on this machine")


class Modules(Numbered):
    """Observes which modules its process has loaded: [torch, labml, tests.stubs]."""

    observation_space = Box(0, 1, (3,), np.float32)

    def _observation(self, action: int) -> npt.NDArray[np.float32]:
        names = ("torch", "labml", "tests.stubs")
        return np.array([name in sys.modules for name in names], np.float32)


class Colors(gym.Env[npt.NDArray[np.uint8], Any]):
    """Frames of 40x36 in three colours, one flat grey level each: the number of the step."""

    observation_space = Box(0, 255, (40, 36, 3), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[npt.NDArray[np.uint8], Info]:
        super().reset(seed=seed)
        self._step = 0
        return np.zeros((40, 36, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.uint8], float, bool, bool, Info]:
        self._step += 1
        return np.full((40, 36, 3), self._step, np.uint8), 0.0, self._step == 200, False, {}


class Catch(gym.Env[npt.NDArray[np.uint8], Any]):
    """Catch the falling ball: 84x84 pixels on a grid of 7x7, actions left, stay, right.

    A game is one ball of 6 steps; the paddle starts in the middle and can reach every ball. Caught pays 1, missed -1:
    the optimum is a return of 1 in every game. The ball drifts one column to the left or right at every step, off the
    walls; a single frame does not show which way.
    """

    CELL, CELLS = 12, 7
    observation_space = Box(0, 255, (84, 84), np.uint8)
    action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[npt.NDArray[np.uint8], Info]:
        super().reset(seed=seed)
        self._row, self._paddle = 0, self.CELLS // 2
        self._column = int(self.np_random.integers(self.CELLS))
        self._drift = int(self.np_random.choice([-1, 1]))
        return self._frame(), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.uint8], float, bool, bool, Info]:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.CELLS - 1)
        if not 0 <= self._column + self._drift < self.CELLS:
            self._drift = -self._drift
        self._column += self._drift
        self._row += 1
        over = self._row == self.CELLS - 1
        reward = 0.0 if not over else 1.0 if self._column == self._paddle else -1.0
        return self._frame(), reward, over, False, {}

    def _frame(self) -> npt.NDArray[np.uint8]:
        frame = np.zeros((84, 84), np.uint8)
        for row, column, level in ((self.CELLS - 1, self._paddle, 128), (self._row, self._column, 255)):
            y, x = row * self.CELL, column * self.CELL
            frame[y : y + self.CELL, x : x + self.CELL] = level
        return frame


gym.register("Numbered-v0", "tests.stubs:Numbered")
gym.register("FiveSteps-v0", "tests.stubs:Numbered", kwargs={"length": 5})
gym.register("Endless-v0", "tests.stubs:Numbered", kwargs={"length": sys.maxsize})
gym.register("OnlyOne-v0", "tests.stubs:OnlyOne")
gym.register("PaysSeven-v0", "tests.stubs:Numbered", kwargs={"length": 5, "reward": 7.0})
gym.register("PaysTooMuch-v0", "tests.stubs:Numbered", kwargs={"length": 5, "reward": 3e38})  # float32 holds no two
gym.register("Timed-v0", "tests.stubs:Numbered", kwargs={"length": sys.maxsize}, max_episode_steps=5)
gym.register("FiveLives-v0", "tests.stubs:FiveLives")
gym.register("Shaped-v0", "tests.stubs:Shaped")
gym.register("Shifted-v0", "tests.stubs:Shifted")
gym.register("Fragile-v0", "tests.stubs:Fragile")
gym.register("Raises-v0", "tests.stubs:Fragile", kwargs={"fault": "raise"})
gym.register("Hangs-v0", "tests.stubs:Fragile", kwargs={"fault": "hang"})
gym.register("Slow-v0", "tests.stubs:Slow", kwargs={"length": 1})
gym.register("HangsInReset-v0", "tests.stubs:HangsInReset")
gym.register("Lives-v0", "tests.stubs:Lives")
gym.register("Forks-v0", "tests.stubs:Forks")
gym.register("Spawns-v0", "tests.stubs:Simulated", kwargs={"method": "spawn"})
gym.register("ForksOne-v0", "tests.stubs:Simulated", kwargs={"method": "fork"})
gym.register("Abandons-v0", "tests.stubs:Abandons", kwargs={"method": "fork"})
gym.register("Runs-v0", "tests.stubs:Runs")
gym.register("OneLife-v0", "tests.stubs:OneLife")
gym.register("LateHang-v0", "tests.stubs:Late", kwargs={"fault": "hang"})
gym.register("LateSpin-v0", "tests.stubs:Late", kwargs={"fault": "spin"})
gym.register("Unmakeable-v0", "tests.stubs:Unmakeable")
gym.register("Modules-v0", "tests.stubs:Modules")
gym.register("Colors-v0", "tests.stubs:Colors")
gym.register("Catch-v0", "tests.stubs:Catch")
