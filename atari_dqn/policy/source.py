"""What there is to play with: the path of a run or of an exported policy flows in, a trained network flows out.

What can be checked without torch is checked before it is imported: `Source.load` makes the network.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.policy.files import ONNX, READERS, SAFETENSORS, Exported, Header, read_exported
from atari_dqn.runs.directory import has_begun, read_config

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    import torch

    from atari_dqn.policy.trained import TrainedNetwork


@dataclasses.dataclass(frozen=True)
class Source:
    """A run directory, or an exported policy."""

    path: Path
    """of the run's directory, or of the file"""
    checkpoint: str
    exported: Exported | None
    """None: a run"""

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.exported.header.config if self.exported else read_config(self.path)

    @property
    def is_onnx(self) -> bool:
        return self.exported is not None and self.path.suffix == ".onnx"

    @property
    def home(self) -> Path:
        """The directory for what is made of it: evaluations and videos."""
        return self.path.parent if self.exported else self.path

    def load(self, device: str | torch.device) -> TrainedNetwork:
        """Raises `ConfigError` when the run has no such checkpoint."""
        from atari_dqn.policy.layouts import OnnxNetwork, torch_network
        from atari_dqn.policy.trained import TrainedNetwork, load_policy

        if self.exported is None:
            return load_policy(self.path, self.checkpoint, device)
        network = OnnxNetwork(self.exported, device) if self.is_onnx else torch_network(self.exported, device)
        header = self.exported.header
        return TrainedNetwork(header.config, header.spec, network, header.env_step, skipped=[])


def read_source(path: Path, checkpoint: str = "latest") -> Source:
    """A run directory, a `.safetensors` or `.onnx` file of ours, or a directory with one (the former is preferred).

    Raises `ConfigError` when it is none of them, or an unsound one; `checkpoint` is for runs.
    """
    if not has_begun(path) and path.is_dir():
        path = next((path / name for name in (SAFETENSORS, ONNX) if (path / name).exists()), path)
    if path.is_dir() or path.suffix not in READERS:
        read_config(path)
        return Source(path, checkpoint, None)
    if checkpoint != "latest":
        raise ConfigError(f"--checkpoint {checkpoint}: {path} holds one network; only a run has several")
    return Source(path, checkpoint, read_exported(path))


def playable_source(path: Path, checkpoint: str = "latest") -> Source:
    """`read_source`, for what will be played in the env that it names. Raises `ConfigError` as that and `check_env`."""
    source = read_source(path, checkpoint)
    if source.exported is not None:
        try:
            check_env(source.exported.header)
        except ConfigError as error:
            raise ConfigError(f"{source.path}: {error}") from None
    return source


def check_env(header: Header) -> None:
    """Raise `ConfigError` unless the env that a file names is what the file says of it."""
    check_module(header)
    from atari_dqn.envs.make import env_spec, resolve_env_id
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.envs.single import interface

    spec = env_spec(resolve_env_id(header.env_id), PROTOCOLS[header.config.env.protocol], header.spec.stack)
    shape, first_action = interface(spec)
    if (spec, shape, first_action) != (header.spec, header.observation_shape, header.first_action):
        raise ConfigError(
            f"it was trained in {header.env_id} with {header.num_actions} actions on observations of"
            f" {list(header.observation_shape)}; here that env has {spec.num_actions} on {list(shape)}"
        )


def check_module(header: Header) -> None:
    """Raise `ConfigError` when making the env that a file names would import a module: a file may be anybody's."""
    module = header.env_id.rpartition(":")[0]
    if module and module not in sys.modules:
        raise ConfigError(
            f"trained in {header.env_id}, and a file is not trusted to name a module: name the run that it was exported"
            f" from; or, in a program, import {module} first"
        )


def header_of(trained: TrainedNetwork, git_revision: str | None = None) -> Header:
    """What an exported file says of a run's network."""
    from atari_dqn.envs.single import interface

    shape, first_action = interface(trained.spec)
    return Header(
        config=trained.config.replace(run_dir=None),
        env_id=trained.spec.env_id,
        kind=trained.spec.kind,
        observation_shape=shape,
        num_actions=trained.spec.num_actions,
        first_action=first_action,
        env_step=trained.env_step,
        git_revision=git_revision,
    )
