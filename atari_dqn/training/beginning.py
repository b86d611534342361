"""The settings with which a training begins before its flags or keywords: a preset's, another run's or a file's.

They are found before torch is imported, and before the flags are parsed, whose defaults they become.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from atari_dqn.cli.command import parse_flags, whole
from atari_dqn.config.presets import ABOUT, PRESETS, Preset, auto, settings_of
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.envs.ids import is_atari
from atari_dqn.runs.directory import is_run_dir, named, read_config, seeds_in
from atari_dqn.runs.lock import check_not_training
from atari_dqn.system.machine import usable_cores


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning(TrainConfig):
    """Settings of a training, and where they come from."""

    config: Annotated[
        Path | None, Setting("another run, or a config.json, to take the settings from; flags override it")
    ] = None
    preset: Annotated[
        Preset,
        Setting(
            "settings to begin with for an Atari game: "
            + "".join(f"{name}, {about}; " for name, about in ABOUT.items())
            + "auto, cpu or gpu as the machine has"
        ),
    ] = "auto"


Command = TypeVar("Command", bound=Beginning)


def parse_training(
    schema: type[Command], argv: Sequence[str] | None, prog: str, default: TrainConfig | None = None
) -> Command:
    """`parse_flags`, the flags' defaults being the settings with which such a training begins."""
    preset, config = settings_before_flags(argv, default, prog)
    return parse_flags(schema, argv, prog=prog, default=with_settings(schema, config, preset=preset))


def with_settings(schema: type[Command], config: TrainConfig, **given: Any) -> Command:
    """A command with these settings, and what else is given to it."""
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return schema(**sections, **given)


def settings_before_flags(
    argv: Sequence[str] | None, default: TrainConfig | None, prog: str
) -> tuple[Preset, TrainConfig]:
    """`begin_with` for a command line; a mistake in a flag is left to the parser."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--config", type=Path, nargs="?")
    scan.add_argument("--run-dir", "--run_dir", type=Path, nargs="?", default=default and default.run.run_dir)
    for name in ("preset", "env-id", "device", "total-env-steps", "seeds"):
        scan.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="?")
    return begin_with(scan.parse_known_args(argv)[0], default, prog)


def begin_with(given: argparse.Namespace, default: TrainConfig | None, prog: str) -> tuple[Preset, TrainConfig]:
    """The settings of `--config`, of the run in `--run-dir` or of a preset, which flags then override."""
    runs: list[Path] = []
    if given.run_dir is not None:
        place = _expanded(given.run_dir)
        check_not_training(place)  # before anything slow: starting a run twice is an error worth hearing at once
        runs = [place] if is_run_dir(place) else seeds_in(place)
    if given.preset and (given.config is not None or default is not None):
        raise ConfigError(f"--preset {given.preset}: {'--config' if given.config else prog} has settings of its own")
    if given.config is not None:
        # The other run keeps its directory: only its settings are wanted.
        found = named(_expanded(given.config), takes="run seeds file", prefix="--config ")
        default = found.settings().replace(run_dir=None)
        if runs and not default.run.schedule_env_steps:
            kept = _keep_knots(read_config(runs[0]), given.total_env_steps).run.schedule_env_steps
            default = default.replace(schedule_env_steps=kept)
    elif runs:
        default = _keep_knots(read_config(runs[0]), given.total_env_steps).replace(run_dir=given.run_dir)
    return _preset(given) if default is None else ("auto", default)


def _keep_knots(config: TrainConfig, total: str | None) -> TrainConfig:
    """Settings of a run to resume. Its knots keep their env steps, or a longer run would explore a second time."""
    with contextlib.suppress(ConfigError, ValueError, OverflowError):
        if total is not None and whole(total) != config.run.total_env_steps:
            return config.replace(schedule_env_steps=config.schedule_length)
    return config


def _preset(given: argparse.Namespace) -> tuple[Preset, TrainConfig]:
    """The preset that the scanned flags ask for, and its settings; a mistake in a flag is left to the parser."""
    from atari_dqn.envs.make import resolve_env_id

    default = TrainConfig()
    name: Preset = given.preset or "auto"
    if name == "auto":
        name = auto(given.device)
    atari = True
    with contextlib.suppress(ConfigError, ValueError, OverflowError):
        total = whole(given.total_env_steps or str(default.run.total_env_steps))
        atari = is_atari(resolve_env_id(given.env_id or default.env.env_id))
        if name in PRESETS and total > 0 and atari:
            return name, settings_of(name, usable_cores(), total, alone=whole(given.seeds or "1") == 1)
    if given.preset in ("cpu", "gpu") and not atari:
        raise ConfigError(f"--preset {name} is for Atari games; leave it out for {given.env_id}")
    return "auto", default


def _expanded(path: Path) -> Path:
    """Expand `~` as `parse_flags`. Raises `ConfigError` for an unknown user."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: unknown user") from None
