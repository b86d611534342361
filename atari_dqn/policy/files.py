"""Files of an exported policy: `policy.safetensors`, `policy.onnx` and `SHA256SUMS`.

Both policy files hold the same header and the reference network (`agent/reference.py`): one its state_dict, the other
its graph. Reading one runs no code of its author. A file must match the checksums that lie beside it; these reveal
damage, not forgery. Reading imports neither torch nor gymnasium.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from atari_dqn.config.file import from_dict
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.runs.directory import POLICY_FILES

if TYPE_CHECKING:
    from atari_dqn.agent.reference import ReferenceNetwork

SAFETENSORS, ONNX = POLICY_FILES
CHECKSUMS = "SHA256SUMS"
FORMAT = 2
"""Version of the header and of the names and shapes of the weights."""
KEY = "atari_dqn"
"""Name of the header in the metadata of both kinds of file."""

Weights = Mapping[str, npt.NDArray[np.float32]]
QFunction = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""Observations [B, *observation_shape] to Q values, float32 [B, num_actions]."""


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
            flattened=() if self.kind == "pixels" else shape,
            first_action=self.first_action,
            kwargs=self.config.env.arguments(),
            wrapper=self.config.env.wrapper,
        )

    def to_json(self) -> str:
        return json.dumps({**vars(self), "format": FORMAT, "config": self.settings()}, sort_keys=True)

    def settings(self) -> dict[str, Any]:
        """The settings by name, without the run's directory."""
        return {name: value for name, value in self.config.to_dict().items() if name != "run_dir"}


def header_from_json(text: str) -> Header:
    """The inverse of `Header.to_json`. Raises `ConfigError` for anything that it cannot have written."""
    try:
        fields = json.loads(text)
        if (found := fields.pop("format", None)) != FORMAT:
            raise ConfigError(
                f"it has format {shown(found)} and this version of atari_dqn reads format {FORMAT}; try to export the"
                " run again"
            )
        config, shape = from_dict(fields.pop("config")).validate(), tuple(map(int, fields.pop("observation_shape")))
        return Header(**fields, config=config, observation_shape=shape)
    except ConfigError:
        raise
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"its header is corrupt ({type(error).__name__})") from None


@dataclasses.dataclass(frozen=True)
class Exported:
    """The content of a policy file."""

    header: Header
    weights: Weights
    """State_dict of the reference network; empty for an ONNX file."""
    q: QFunction | None = None
    """Runs the graph of an ONNX file; None for a safetensors file."""


def extra(name: str) -> ModuleType:
    """Import a package of the extra `[export]`. Raises `ConfigError` if it is not installed."""
    if name == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at its import; a later call does not stop it
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{error}; exported policies need: pip install "atari_dqn[export]"') from None


def to_safetensors(header: Header, network: ReferenceNetwork) -> bytes:
    """The content of `policy.safetensors`. Raises `ConfigError` if the extra is not installed."""
    content: bytes = extra("safetensors.torch").save(network.state_dict(), metadata={KEY: header.to_json()})
    return content


def checksums(contents: Mapping[str, bytes]) -> bytes:
    """The content of `SHA256SUMS` for files by name, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()).encode()


def read_exported(file: Path) -> Exported:
    """Read a `.safetensors` or `.onnx` file. Raises `ConfigError` unless it is valid and matches its checksum."""
    try:
        return (_from_onnx if file.suffix == ".onnx" else _from_safetensors)(_content(file))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except ConfigError as error:
        raise ConfigError(f"{file} is not a valid exported policy: {error}") from None


def _content(file: Path) -> bytes:
    """The bytes of a file. Raises `ConfigError` unless they match its line in `SHA256SUMS`, if that lies beside it."""
    content, sums = file.read_bytes(), file.with_name(CHECKSUMS)
    if sums.exists():
        # As `sha256sum` writes them, in text or binary mode.
        listed = re.findall(rb"^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", sums.read_bytes(), re.MULTILINE)
        expected = {digest.lower() for digest, name in listed if name == os.fsencode(file.name)}
        if not expected:
            raise ConfigError(f"{CHECKSUMS} beside it has no checksum of {file.name}; correct or remove {CHECKSUMS}")
        if expected != {hashlib.sha256(content).hexdigest().encode()}:
            raise ConfigError(f"it does not match its checksum in {CHECKSUMS}")
    return content


def _from_safetensors(content: bytes) -> Exported:
    reader = extra("safetensors.numpy")
    try:
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + length])["__metadata__"][KEY]
        weights: Weights = reader.load(content)
    except Exception as error:  # anything that a foreign file makes the readers raise
        raise ConfigError(f"not a safetensors file of atari_dqn ({type(error).__name__})") from None
    for name, weight in weights.items():
        if weight.dtype != np.float32:
            raise ConfigError(f"the weight {shown(name)} is {weight.dtype}, not float32")
        if not np.isfinite(weight).all():
            raise ConfigError(f"the weight {shown(name)} has NaN or infinity")
    return Exported(header_from_json(text), weights)


def _from_onnx(content: bytes) -> Exported:
    from atari_dqn.policy.onnx import read_onnx

    header, q = read_onnx(content)
    return Exported(header, {}, q)
