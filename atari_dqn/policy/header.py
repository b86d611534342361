"""Header of an exported policy: all that is needed, beside the weights, to rebuild the network and to act with it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atari_dqn.config.file import from_dict
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.envs.ids import is_atari

if TYPE_CHECKING:
    from atari_dqn.envs.protocol import EnvSpec

FORMAT = 2
"""Version of the header and of the names and shapes of the weights."""
KEY = "atari_dqn"
"""Name of the header in the metadata of both kinds of file."""
MAX_LENGTH, MAX_SIZE = 1 << 20, 1 << 30
"""Largest header, in characters, and largest size in an observation shape. Ours have some 2,000 characters."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Settings and shapes of an exported network."""

    config: TrainConfig
    """The run's settings, without `run_dir`."""
    env_id: str
    kind: Literal["pixels", "vector"]
    observation_shape: tuple[int, ...]
    """Shape of one observation as an env shows it: stacked frames of pixels, or a vector of any shape."""
    num_actions: int
    first_action: int
    """The env's number for the network's action 0."""
    env_step: int
    git_revision: str | None
    """Revision of the code that exported it."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.kind == "pixels" else np.float32)

    @property
    def spec(self) -> EnvSpec:
        from atari_dqn.envs.protocol import EnvSpec

        shape = self.observation_shape
        stack, *frame_shape = shape if self.kind == "pixels" else (1, math.prod(shape))
        return EnvSpec(
            env_id=self.env_id,
            is_atari=is_atari(self.env_id),
            kind=self.kind,
            frame_shape=tuple(frame_shape),
            frame_dtype=self.dtype,
            num_actions=self.num_actions,
            stack=stack,
        )

    def to_json(self) -> str:
        return json.dumps({**vars(self), "format": FORMAT, "config": self.settings()}, sort_keys=True)

    def settings(self) -> dict[str, Any]:
        """The settings by name, without the run's directory."""
        return {name: value for name, value in self.config.to_dict().items() if name != "run_dir"}


def header_from_json(text: Any) -> Header:
    """The inverse of `Header.to_json`. Raises `ConfigError` for anything that it cannot have written."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ConfigError("its header is not text, or is too long")
    try:
        fields = json.loads(text)
        if fields.get("format") != FORMAT:
            raise ConfigError(
                f"it has format {shown(fields.get('format'))} and this version of atari_dqn reads format {FORMAT}; try"
                " to export the run again"
            )
        fields |= {
            "config": from_dict(fields["config"]).validate(),
            "observation_shape": (*fields["observation_shape"],),
        }
        header = Header(**{name: value for name, value in fields.items() if name != "format"})
        possible = _is_possible(header)
    except ConfigError:
        raise
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"its header is corrupt ({type(error).__name__})") from None
    if not possible:
        raise ConfigError("its header is corrupt")
    return header


def _is_possible(header: Header) -> bool:
    shape, numbers = header.observation_shape, (header.num_actions, header.first_action, header.env_step)
    return (
        isinstance(header.env_id, str)
        and header.env_id.isprintable()
        and header.kind in ("pixels", "vector")
        and all(type(size) is int and 0 < size <= MAX_SIZE for size in shape)
        and math.prod(shape) <= MAX_SIZE
        and (header.kind != "pixels" or (len(shape) in (3, 4) and min(shape[1:3]) >= 36))
        and all(type(number) is int for number in numbers)
        and 0 < header.num_actions <= MAX_SIZE
        and header.env_step >= 0
        and isinstance(header.git_revision, str | None)
    )
