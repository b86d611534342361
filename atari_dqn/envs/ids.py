"""What the id of an env tells by itself: a text flows in, an answer flows out. Nothing is imported for it."""

from __future__ import annotations


def is_atari(env_id: str) -> bool:
    """Whether a resolved id is that of a game of ALE, to which protocols, frames and reference scores apply."""
    return env_id.startswith("ALE/")
