"""Header of an exported policy: all that is needed, beside the weights, to rebuild the network and to act with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
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
        """The dtype of an observation."""
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
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        config = {name: value for name, value in self.config.to_dict().items() if name != "run_dir"}
        return json.dumps({**fields, "format": FORMAT, "config": config}, sort_keys=True)


def header_from_json(text: Any) -> Header:
    """The inverse of `Header.to_json`. Raises `ConfigError` for anything that it cannot have written."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ConfigError("its header is not text, or is too long")
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            stored = fields.get("format") if isinstance(fields, dict) else None
            raise ConfigError(
                f"it has format {shown(stored)} and this version of atari_dqn reads format {FORMAT}; try to export the"
                " run again"
            )
        header = _checked(fields)
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"its header is corrupt ({type(error).__name__})") from None
    if header is None:
        raise ConfigError("its header is corrupt")
    return header


def _checked(fields: Mapping[str, Any]) -> Header | None:
    """The header in `fields`, or None if a value is impossible."""
    config, shape = from_dict(fields["config"]).validate(), tuple(fields["observation_shape"])
    header = Header(**{name: value for name, value in fields.items() if name != "format"})
    header = dataclasses.replace(header, config=config, observation_shape=shape)
    pixels = header.kind == "pixels"
    valid = (
        isinstance(header.env_id, str)
        and header.env_id.isprintable()
        and header.kind in ("pixels", "vector")
        and all(type(size) is int and 0 < size <= MAX_SIZE for size in shape)
        and math.prod(shape) <= MAX_SIZE
        and (not pixels or (len(shape) in (3, 4) and min(shape[1:3]) >= 36))
        and all(type(number) is int for number in (header.num_actions, header.first_action, header.env_step))
        and 0 < header.num_actions <= MAX_SIZE
        and header.env_step >= 0
        and isinstance(header.git_revision, str | None)
    )
    return header if valid else None
