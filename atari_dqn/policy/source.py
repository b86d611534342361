"""The path of a run or of an exported policy, resolved and checked without torch; `Source.load` builds the network."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.cli.output import open_console, say
from atari_dqn.config.objects import in_use
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.policy.files import Exported, Header, read_exported
from atari_dqn.runs.directory import named, newest_run, read_config

if TYPE_CHECKING:  # imported when the input is known to be right: it takes seconds
    import torch

    from atari_dqn.envs.protocol import EnvSpec
    from atari_dqn.policy.trained import TrainedNetwork


@dataclasses.dataclass(frozen=True)
class Source:
    """A run directory, or an exported policy."""

    path: Path
    """The run's directory, or the exported file."""
    checkpoint: str
    """Latest, best or an env step."""
    exported: Exported | None
    """The content of the file; None for a run."""
    spec: EnvSpec | None = None
    """The environment that an exported policy was found to fit."""

    @property
    def config(self) -> TrainConfig:
        return self.exported.header.config if self.exported else read_config(self.path)

    @property
    def home(self) -> Path:
        """The directory for evaluations and videos."""
        return self.path.parent if self.exported else self.path

    def load(self, device: str | torch.device, say: Callable[[str], None] = lambda line: None) -> TrainedNetwork:
        """Build the network. Raises `ConfigError` if the run has no such checkpoint or the weights do not fit."""
        from atari_dqn.policy.trained import load_exported, load_policy

        if self.exported is None:
            return load_policy(self.path, self.checkpoint, device, say)
        trained = load_exported(self.exported, self.path, device)
        return dataclasses.replace(trained, spec=self.spec or trained.spec)


def read_source(path: Path | None, checkpoint: str = "latest") -> Source:
    """The run or the exported policy that `path` stands for, see `named`; without one, the newest run.

    Raises `ConfigError` if the path is neither, the run has no such checkpoint, or the file is corrupt.
    """
    path = path or newest_run(partial(say, open_console()), checkpoint=True)
    found = named(path, checkpoint, takes="run policy file")
    if found.kind == "run":
        read_config(found.path)
        return Source(found.path, found.checkpoint, None)
    if checkpoint != "latest":
        raise ConfigError(f"--checkpoint {checkpoint}: {found.path} holds one network; only a run has several")
    return Source(found.path, checkpoint, read_exported(found.path))


def playable_source(path: Path | None, checkpoint: str = "latest") -> Source:
    """`read_source`; raises `ConfigError` also unless the env is known and, for a file, as the file describes it."""
    source = read_source(path, checkpoint)
    try:
        if source.exported is not None:
            return dataclasses.replace(source, spec=_fitting_spec(source.exported.header))
        from atari_dqn.envs.make import resolve_env_id

        env_id = source.config.env.env_id
        if resolve_env_id(env_id) != env_id:  # a run's is a full one: it was registered under a game's name
            raise ConfigError(f"--env-id {env_id}: unknown environment; for one of your own use module:{env_id}")
    except ConfigError as error:
        raise ConfigError(f"{source.path}: {error}") from None
    return source


def _fitting_spec(header: Header) -> EnvSpec:
    check_modules(header.env_id, header.config.env.wrapper)
    from atari_dqn.envs.make import resolve_env_id, spec_of

    spec = spec_of(header.config.replace(env_id=resolve_env_id(header.env_id)).env)
    shape, first_action = spec.observation_shape, spec.first_action
    if (spec, shape, first_action) != (header.spec, header.observation_shape, header.first_action):
        raise ConfigError(
            f"it was trained in {header.env_id} with {header.num_actions} actions on observations of"
            f" {list(header.observation_shape)}; here that env has {spec.num_actions} on {list(shape)}"
        )
    return spec


def check_modules(*names: str) -> None:
    """Raise `ConfigError` if using what a file names would import a module or call just anything.

    A file may be anybody's, and it has the arguments, too. So it may name what this program itself uses, registered
    environments, and environments, wrappers and networks that are classes of modules which this program imported.
    """
    import gymnasium as gym

    def is_part(thing: Any) -> bool:
        parts: list[type] = [gym.Env, gym.Wrapper]
        if torch := sys.modules.get("torch"):
            parts.append(torch.nn.Module)
        return isinstance(thing, type) and issubclass(thing, tuple(parts))

    for name in names:
        module, _, bare = name.rpartition(":")
        if not module or in_use(name):
            continue
        if module not in sys.modules or not (bare in gym.registry or is_part(getattr(sys.modules[module], bare, None))):
            raise ConfigError(
                f"trained with {name}, and a file is not trusted to name a module; try the run that it was exported"
                f" from or, in a program, import {module} first"
            )
