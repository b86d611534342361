"""Epsilon-greedy play with a trained network: frames in, actions out.

Evaluations, films and clips all play through a `Player`, so that a network sees in a game what it saw in training: the
stacks of frames come from the replay's own ring, and random actions from the trainer's own `Actor`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.agent.actor import Actor
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.protocol import GAME_LIMIT, EnvSpec
from atari_dqn.replay.ring import FrameRing

NOTE_AFTER = 2_000
"""Steps in which no game has ended, after which the user is told if the environment has no time limit."""


class Player:
    """Picks an action for each of N environments from the frames that they show."""

    def __init__(
        self,
        network: torch.nn.Module,
        spec: EnvSpec,
        num_envs: int,
        *,
        epsilon: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._network, self._epsilon = network, epsilon
        self._actor = Actor(lambda q: q, spec.num_actions, seed=seed)  # it acts on Q values, which films show as well
        self._ring = FrameRing(spec.stack + 2, num_envs, spec.frame_shape, spec.frame_dtype, spec.stack, 1, device)
        self._unused = np.zeros(num_envs)
        self.q = torch.empty(0)
        """Q values behind the newest actions, float32 [N, A]."""

    @property
    def explored(self) -> npt.NDArray[np.bool_]:
        """Which of the newest actions were drawn at random, [N]."""
        return self._actor.explored

    @torch.inference_mode()
    def act(self, frames: npt.NDArray[Any], last: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The next actions, [N], after the newest frames, [N, *frame_shape].

        `last` says which of these are the final ones of their episodes, [N]; the next one then starts a new stack.
        """
        # Only stacks are read from this ring: the other fields of a transition do not matter.
        self._ring.append(frames, last=last, actions=self._unused, rewards=self._unused, terminal=self._unused)
        self.q = self._network(self._ring.latest_observation())
        return self._actor.act(self.q, self._epsilon)


@dataclasses.dataclass(frozen=True)
class Decision:
    """An action, and why it was chosen."""

    q: npt.NDArray[np.float32]
    """Q values, [num_actions]."""
    action: int
    random: bool
    """Whether it was drawn at random, even if it is the best one."""


def play(
    network: torch.nn.Module,
    env: FilmedEnv,
    epsilon: float,
    seed: int,
    on_decision: Callable[[Decision], None] = lambda decision: None,
    say: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[float, int]]:
    """Play one game epsilon-greedily, and yield the raw score so far and the number of env steps after each.

    The same arguments give the same game, filmed or not. `on_decision` is called before the environment takes the
    action, `say` as in `tell_of_endless_game`.
    """
    device = next(network.parameters()).device
    player = Player(network, env.spec, 1, epsilon=epsilon, seed=seed, device=device)
    frame, over = env.reset(seed), False
    for env_step in itertools.count(1):
        action = int(player.act(frame[None], np.array([over]))[0])
        on_decision(Decision(player.q[0].cpu().numpy(), action, bool(player.explored[0])))
        try:
            frame, _, over = env.step(action)
        except FloatingPointError as error:  # a reward that is not a number
            raise ConfigError(f"cannot play {error}") from None
        tell_of_endless_game(env.spec, env_step, say)
        yield env.score, env_step
        if over:
            return


def tell_of_endless_game(spec: EnvSpec, steps: int, say: Callable[[str], None]) -> None:
    """Tell the user, once in `steps` of a game without end, if no time limit ends it: a policy may stand still."""
    own = spec.time_limit or 0
    if steps == max(NOTE_AFTER, own + 2) and not spec.is_atari:  # a reset later: then it is not enforced
        say(
            f"no game has ended in {steps:,} steps, not even by a time limit of {spec.env_id}: evaluations and films"
            f" cut a game after {max(GAME_LIMIT, own):,}; register it with max_episode_steps=... for a limit of its own"
        )
