"""Environment ids: what can be read from an id alone."""


def is_atari(env_id: str) -> bool:
    """Whether a resolved id names an Atari game, to which protocols, frames and reference scores apply."""
    return env_id.startswith("ALE/")


def short_name(env_id: str) -> str:
    """The name of a game for people: `ALE/Pong-v5` -> `Pong`. Other ids stay as they are."""
    return env_id.removeprefix("ALE/").removesuffix("-v5") if is_atari(env_id) else env_id
