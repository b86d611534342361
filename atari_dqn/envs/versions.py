"""What must be equal on all nodes of a cluster for equal bits: versions, our code and the games' ROMs."""

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym

import atari_dqn
from atari_dqn.envs.ids import is_atari
from atari_dqn.system.machine import installed_version

PACKAGES = ("ale-py", "gymnasium", "numpy", "opencv-python")
LEARNING = (*PACKAGES, "torch")
"""What a node needs that trains a whole run"""


def rom_of(env_id: str) -> str:
    """ALE's name of a game's ROM, such as "ms_pacman"; empty for other environments."""
    if not is_atari(env_id):
        return ""
    import ale_py  # noqa: F401  it registers the games

    return str(gym.spec(env_id).kwargs["game"])


def versions(games: Iterable[str], packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions on this machine by name, and hashes of our code and of the ROMs of `games`, by ALE's names."""
    package = Path(atari_dqn.__file__).parent
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    found = {"Python": platform.python_version()}
    found["atari_dqn"] = f"{atari_dqn.__version__} (code {code.hexdigest()[:8]})"
    # Without torch's `+cpu`: the nodes of one cluster may have different devices.
    found |= {name: (installed_version(name) or "none").partition("+")[0] for name in packages}
    for game in games:
        from ale_py import roms

        rom = roms.get_rom_path(game)
        found[f"ROM of {game}"] = hashlib.sha256(Path(rom).read_bytes()).hexdigest()[:8] if rom else "none"
    return found


def difference(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """What a node has and this machine has instead, for each version that differs; empty if none does."""
    pairs = [(name, theirs.get(name, "none"), version) for name, version in ours.items()]
    return ", ".join(f"{name} {there} instead of {here}" for name, there, here in pairs if there != here)
