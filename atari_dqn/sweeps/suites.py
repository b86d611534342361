"""Standard sets of Atari games, each with the protocol under which its scores are published."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from atari_dqn.evaluation.references import RANDOM_AND_HUMAN


@dataclasses.dataclass(frozen=True)
class Suite:
    """Games, and what their source prescribes for all of them."""

    name: str
    """As `--suite` takes it."""
    about: str
    """What it is, under which protocol, and the source: one sentence."""
    games: tuple[str, ...]
    """Env ids."""
    settings: Mapping[str, Any]
    """Settings of `train` by their flat names; all others are the user's."""


def _ids(names: str) -> tuple[str, ...]:
    return tuple(f"ALE/{name}-v5" for name in names.split())


_LONG = {"protocol": "nature", "total_env_steps": 50_000_000}
"""200 million frames, random no-ops at the start, no sticky actions."""

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "atari-5",
            "five games whose scores predict the median of all 57: 200 million frames, no sticky actions"
            " (Aitchison et al. 2023)",
            _ids("BattleZone DoubleDunk NameThisGame Phoenix Qbert"),
            _LONG,
        ),
        Suite(
            "atari-26",
            "Atari 100k: 100,000 env steps, no sticky actions, then an evaluation of 100 games"
            " (Kaiser et al. 2020; evaluated as by Agarwal et al. 2021)",
            _ids(
                "Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber"
                " DemonAttack Freeway Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong"
                " PrivateEye Qbert RoadRunner Seaquest UpNDown"
            ),
            {"protocol": "nature", "total_env_steps": 100_000, "eval_interval": 100_000, "eval_episodes": 100},
        ),
        Suite(
            "atari-57",
            "all games with a human's score: 200 million frames, no sticky actions (Wang et al. 2016)",
            _ids(" ".join(RANDOM_AND_HUMAN)),
            _LONG,
        ),
    )
}
"""By name."""
