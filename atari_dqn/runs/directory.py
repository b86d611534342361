"""A run directory: its name, its checks before a start, its settings, and what it ran on. Needs no torch."""

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atari_dqn.config.file import load_config
from atari_dqn.config.schema import COLUMNS, TrainConfig
from atari_dqn.config.setting import ConfigError, as_written, flag, settings
from atari_dqn.runs.lock import LOCK
from atari_dqn.system.files import append, replace
from atari_dqn.system.machine import describe_system

SHOWN = 5
"""Most runs named in a message."""
PARTIAL = "config.partial"
"""Name of the settings' file while it is being written, at the start of a run."""


@contextlib.contextmanager
def new_run_dir(config: TrainConfig, seeds: int = 1) -> Iterator[Path]:
    """Make `runs/<env>-<seed>-<time>`, or `runs/<env>-<first>to<last>-<time>`, which nobody else has.

    It is removed again if nothing was put into it. Raises `ConfigError` where it cannot be made.
    """
    name = config.env.env_id.split(":")[-1].removeprefix("ALE/").replace("/", "-")
    seed = config.run.seed
    which = f"{seed}to{seed + seeds - 1}" if seeds > 1 else f"{seed}"
    stem = f"{name}-{which}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        run_dir = Path("runs") / f"{stem}{suffix}"
        try:
            run_dir.mkdir(parents=True)
            break
        except FileExistsError:  # made in the same second
            continue
        except OSError as error:
            raise ConfigError(f"--run-dir {run_dir}: {error.strerror}; choose a writable directory") from None
    try:
        yield run_dir
    finally:
        for place in (run_dir, run_dir.parent):
            with contextlib.suppress(OSError):
                place.rmdir()  # fails unless it is empty


def check_run_dir(config: TrainConfig, run_dir: Path) -> list[str]:
    """Check that a run with `config` can start or resume in `run_dir`, without creating anything.

    A run may resume with other rates and intervals, but not as another run. Returns a line for each setting that
    changes, such as `--learning-rate 0.0001 -> 0.0005`; raises `ConfigError` if it cannot.
    """
    try:
        place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            what = "not writable" if place.is_dir() else "a file"
            raise ConfigError(f"--run-dir {run_dir}: {place} is {what}; choose a writable directory")
        started = is_run_dir(run_dir)
        checkpoints = run_dir / "checkpoints"
        if checkpoints.exists() and not os.access(checkpoints, os.W_OK):
            raise ConfigError(f"--run-dir {run_dir}: {checkpoints} is not writable, but training saves there")
        if not started and (several := seeds_in(run_dir)):
            raise ConfigError(
                f"--run-dir {run_dir} has runs of several seeds; add --seeds, or choose one of them: {several[0]}"
            )
        if not started and run_dir.exists() and {path.name for path in run_dir.iterdir()} - {LOCK, PARTIAL}:
            raise ConfigError(f"--run-dir {run_dir} is not a run directory, nor empty; choose an empty or a new one")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    return _changes(config, run_dir) if started else []


def settings_in(place: Path) -> TrainConfig | None:
    """Settings of the run in `place`, or of the first of several seeds there; None without either."""
    runs = [place] if is_run_dir(place) else seeds_in(place)
    return read_config(runs[0]) if runs else None


def is_run_dir(run_dir: Path) -> bool:
    """Whether there is a run in `run_dir` that can be resumed. Never raises, whatever the path."""
    return os.path.isfile(run_dir / "config.json")


def runs_in(folder: Path) -> list[Path]:
    """The runs in `folder` and in its folders of several seeds, the newest, started or resumed last, at the end."""
    configs = [*folder.glob("*/config.json"), *folder.glob("*/seed-*/config.json")]
    configs = [config for config in configs if is_run_dir(config.parent)]
    return [config.parent for config in sorted(configs, key=lambda config: config.stat().st_mtime)]


def newest_run(say: Callable[[str], None], *, checkpoint: bool = False) -> Path:
    """The run in `runs` that was started or resumed last and has readable settings; `say` is told.

    With `checkpoint`, it has a checkpoint too. Raises `ConfigError` without any.
    """
    for run_dir in reversed(runs_in(Path("runs"))):
        with contextlib.suppress(ConfigError):
            read_config(run_dir)
            if not checkpoint or any((run_dir / "checkpoints").glob("[0-9]*")):
                say(f"the newest run: {run_dir}")
                return run_dir
    raise ConfigError(f"no run{' with a checkpoint' if checkpoint else ''} in runs; name a run directory")


def seeds_in(run_dir: Path) -> list[Path]:
    """The runs that `train --seeds` made in `run_dir`, in order of their seeds. Never raises, whatever the path."""
    try:
        places = [place for place in run_dir.glob("seed-*") if place.name[5:].isdecimal() and is_run_dir(place)]
    except OSError:
        return []
    return sorted(places, key=lambda place: int(place.name[5:]))


def _changes(config: TrainConfig, run_dir: Path) -> list[str]:
    before = read_config(run_dir)
    stored, asked = before.to_dict(), config.to_dict()
    changed = []
    for name, setting in settings(TrainConfig).items():
        if stored[name] == asked[name] or name == "run_dir":
            continue
        if setting.structural and not (setting.structural == COLUMNS and config.num_envs == before.num_envs):
            raise ConfigError(
                f"{run_dir} was started with {flag(name)} {as_written(stored[name])} and cannot resume with"
                f" {as_written(asked[name])}: {setting.structural}; restore that value, or choose another --run-dir"
            )
        changed.append(f"{flag(name)} {as_written(stored[name])} -> {as_written(asked[name])}")
    return changed


def read_system(run_dir: Path) -> dict[str, Any]:
    """The machine and versions a run last ran on; empty if they are not recorded. Never raises."""
    try:
        facts = json.loads((run_dir / "system.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def describe_run(config: TrainConfig, run_dir: Path, **facts: Any) -> None:
    """Write config.json, command.txt, and system.json with further `facts`. Raises `OSError`."""
    for name, content in (("config.json", config.to_dict()), ("system.json", describe_system() | facts)):
        replace(run_dir / name, (json.dumps(content, indent=2) + "\n").encode())
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    append(run_dir / "command.txt", os.fsencode(f"{command}\n"))


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run. Raises `ConfigError` when `run_dir` is not a run directory."""
    if not is_run_dir(run_dir):
        inside = ", ".join(str(run) for run in reversed(runs_in(run_dir)[-SHOWN:]))
        hint = f"; the newest runs in it: {inside}" if inside else ""
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json{hint}")
    return load_config(run_dir / "config.json")
