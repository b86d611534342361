"""Reference scores of random play and human testers, and scores normalised by them.

Raw scores of games of different scale become comparable as (score - random) / (human - random): 0 is uniformly random
play, 1 a professional human tester.
"""

import numpy as np

from atari_dqn.envs.ids import is_atari, short_name
from atari_dqn.evaluation.intervals import Array, means

# (random, human), means over whole games that begin with 1 to 30 no-ops and are cut after 108,000 frames. Source:
# dqn_zoo's atari_data.py; the table of Agent57 has the same numbers, but 0 for random play of Video Pinball.
RANDOM_AND_HUMAN: dict[str, tuple[float, float]] = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "Asteroids": (719.1, 47388.7),
    "Atlantis": (12850.0, 29028.1),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Berzerk": (123.7, 2630.4),
    "Bowling": (23.1, 160.7),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "Centipede": (2090.9, 12017.0),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "Defender": (2874.5, 18688.9),
    "DemonAttack": (152.1, 1971.0),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0.0, 860.5),
    "FishingDerby": (-91.7, -38.7),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Gravitar": (173.0, 3351.4),
    "Hero": (1027.0, 30826.4),
    "IceHockey": (-11.2, 0.9),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MontezumaRevenge": (0.0, 4753.3),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.3, 8049.0),
    "Phoenix": (761.4, 7242.6),
    "Pitfall": (-229.4, 6463.7),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "Riverraid": (1338.5, 17118.0),
    "RoadRunner": (11.5, 7845.0),
    "Robotank": (2.2, 11.9),
    "Seaquest": (68.4, 42054.7),
    "Skiing": (-17098.1, -4336.9),
    "Solaris": (1236.3, 12326.7),
    "SpaceInvaders": (148.0, 1668.7),
    "StarGunner": (664.0, 10250.0),
    "Surround": (-10.0, 6.5),
    "Tennis": (-23.8, -8.3),
    "TimePilot": (3568.0, 5229.2),
    "Tutankham": (11.4, 167.6),
    "UpNDown": (533.4, 11693.2),
    "Venture": (0.0, 1187.5),
    "VideoPinball": (16256.9, 17667.9),
    "WizardOfWor": (563.5, 4756.5),
    "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}

# Source: atari5.py and dataset.csv of github.com/maitchison/Atari-5, whose regression (no intercept) gives these.
ATARI_5: dict[str, float] = {
    "ALE/BattleZone-v5": 0.38197512,
    "ALE/DoubleDunk-v5": 0.06790995,
    "ALE/NameThisGame-v5": 0.31080415,
    "ALE/Phoenix-v5": 0.12412619,
    "ALE/Qbert-v5": 0.08048518,
}
"""Weights of the log scores of five games in the log of the median over all 57 games."""


def references(env_id: str) -> tuple[float, float] | None:
    """(random, human) raw scores of `ALE/<game>-v5`; None for any other env, or a game outside the usual 57."""
    return RANDOM_AND_HUMAN.get(short_name(env_id)) if is_atari(env_id) and env_id.endswith("-v5") else None


def human_normalized(env_id: str, score: float) -> float | None:
    """0 for random play, 1 for a human; None where no reference is known."""
    known = references(env_id)
    if known is None:
        return None
    random, human = known
    return (score - random) / (human - random)


def predicted_median(*samples: Array) -> Array:
    """Median over all 57 games as Aitchison et al. 2023 predict it, to about 10%, from the games of `ATARI_5`.

    It is a statistic in the sense of `intervals`: samples are human-normalised scores, in the order of `ATARI_5`.
    """
    percent = 100 * np.maximum(means(samples), 0)
    weights = np.array(list(ATARI_5.values()))
    return np.asarray((10 ** np.tensordot(weights, np.log10(1 + percent), axes=1) - 1) / 100)


def with_human(env_id: str, score: float) -> str:
    """`31 (human-normalised 1.02)`; the raw score alone where no reference is known."""
    human = human_normalized(env_id, score)
    return f"{score:g}" + ("" if human is None else f" (human-normalised {human:.2f})")
