"""A run directory as far as torch is not needed: whether a run may live there, who holds it, its settings and rows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from atari_dqn.config.live import shown
from atari_dqn.config.schema import COLUMNS, ConfigError, TrainConfig, flag, load_config, settings
from atari_dqn.runs.records import replace
from atari_dqn.system.machine import describe_system


def new_run_dir(config: TrainConfig, seeds: int = 1) -> Path:
    """`runs/<env>-<seed>-<time>`, or `runs/<env>-<first>to<last>-<time>` for several seeds."""
    name = config.env.env_id.split(":")[-1].removeprefix("ALE/").replace("/", "-")
    seed = config.run.seed
    which = f"{seed}to{seed + seeds - 1}" if seeds > 1 else f"{seed}"
    return Path("runs") / f"{name}-{which}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_run_dir(config: TrainConfig, run_dir: Path) -> list[str]:
    """Raise `ConfigError` unless a run with `config` can begin or go on in `run_dir`; creates nothing.

    A run may go on with other rates and intervals, but not as another run. Returns a line for each setting that is to
    be another from now on, such as `--learning-rate 0.0001 -> 0.0005`.
    """
    try:
        place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            what = "not writable" if place.is_dir() else "a file"
            raise ConfigError(f"--run-dir {run_dir}: {place} is {what}; name a directory that can be written")
        begun = has_begun(run_dir)
        checkpoints = run_dir / "checkpoints"
        if checkpoints.exists() and not os.access(checkpoints, os.W_OK):
            raise ConfigError(f"--run-dir {run_dir}: {checkpoints} is not writable, and training saves there")
        if not begun and (several := seeds_in(run_dir)):
            raise ConfigError(
                f"--run-dir {run_dir} holds several seeds; give --seeds too, or one of them: {several[0]}"
            )
        if not begun and run_dir.exists() and {path.name for path in run_dir.iterdir()} - {LOCK, PARTIAL}:
            raise ConfigError(f"--run-dir {run_dir} holds something else than a run; name an empty or a new one")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    return _changes(config, run_dir) if begun else []


def has_begun(run_dir: Path) -> bool:
    """Whether there is a run in `run_dir`, to be continued. Never raises, whatever the path."""
    return os.path.isfile(run_dir / "config.json")


def seeds_in(run_dir: Path) -> list[Path]:
    """The runs that `train --seeds` made in `run_dir`, by their seeds. Never raises, whatever the path."""
    try:
        places = [place for place in run_dir.glob("seed-*") if place.name[5:].isdecimal() and has_begun(place)]
    except OSError:
        return []
    return sorted(places, key=lambda place: int(place.name[5:]))


def _changes(config: TrainConfig, run_dir: Path) -> list[str]:
    former = read_config(run_dir)
    stored, asked = former.to_dict(), config.to_dict()
    changed = []
    for name, setting in settings(TrainConfig).items():
        if stored[name] == asked[name] or name == "run_dir":
            continue
        if setting.structural and not (setting.structural == COLUMNS and config.num_envs == former.num_envs):
            raise ConfigError(
                f"{run_dir} was begun with {flag(name)} {_shown(stored[name])} and cannot go on with"
                f" {_shown(asked[name])}: {setting.structural}; give the former value, or another --run-dir"
            )
        changed.append(f"{flag(name)} {_shown(stored[name])} -> {_shown(asked[name])}")
    return changed


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


LOCK, PARTIAL = ".lock", "config.partial"
LOOK_SECONDS = 0.5
"""Within which a lock that is only looked at, as `is_training` does for microseconds, is free again."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create `run_dir` and hold it for this process. Raises `ConfigError` when another one trains in it.

    The kernel drops the lock with the process, however that ends: none is ever stale.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    with file:
        try:
            _take(file, run_dir)
        except OSError as error:
            raise ConfigError(f"--run-dir {run_dir} cannot be locked: {error.strerror}") from None
        yield


def _take(file: IO[bytes], run_dir: Path) -> None:
    give_up = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise _held(run_dir) from None
            time.sleep(LOOK_SECONDS / 50)
    with contextlib.suppress(OSError):  # the name of the process is a courtesy, and the disk may be full
        file.truncate(0)
        file.write(str(os.getpid()).encode())


def _held(run_dir: Path) -> ConfigError:
    holder = (run_dir / LOCK).read_text(errors="replace") or "?"
    return ConfigError(f"process {holder} is training in {run_dir}; name another --run-dir")


def check_not_training(run_dir: Path) -> None:
    """Raise `ConfigError`, naming the process, while one trains in `run_dir`."""
    if is_training(run_dir):
        raise _held(run_dir)


def is_training(run_dir: Path) -> bool:
    """True while a process holds `run_dir`."""
    try:
        with (run_dir / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def threads_before(run_dir: Path) -> int | None:
    """Torch threads of the run in `run_dir` so far; None when it did not say."""
    threads = read_system(run_dir).get("torch_threads")
    return threads if isinstance(threads, int) else None


def read_system(run_dir: Path) -> dict[str, Any]:
    """What a run ran on, as it said last; empty when it did not. Never raises."""
    try:
        facts = json.loads((run_dir / "system.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def describe_run(config: TrainConfig, run_dir: Path, **facts: Any) -> None:
    """Write what was asked, how, and on what: config.json, command.txt, and system.json with further `facts`.

    Raises `OSError`.
    """
    for name, content in (("config.json", config.to_dict()), ("system.json", describe_system() | facts)):
        replace(run_dir / name, (json.dumps(content, indent=2) + "\n").encode())
    with (run_dir / "command.txt").open("a") as file:
        file.write(shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]) + "\n")


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run. Raises `ConfigError` when `run_dir` is none."""
    if not has_begun(run_dir):
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    return load_config(run_dir / "config.json")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


Fields = Mapping[str, Callable[[Any], bool]]
"""What a row must have: a name, and whether a value is of its kind."""
EVALUATION: Fields = {
    "protocol": lambda value: isinstance(value, str),
    "epsilon": is_number,
    "mean": is_number,
    "ci95": is_interval,
}


def read_rows(file: Path, fields: Fields | None = None, having: str = "env_step") -> list[dict[str, Any]]:
    """The rows of one of a run's `.jsonl` files, those `having` something; none when the file is absent. A torn last
    row is left out.

    Raises `ConfigError` for a row that is none: without an env step or one of the `fields`, as a hand may leave it.
    """
    if not file.is_file():
        return []
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise ConfigError(f"{file}, line {number}, is not JSON") from None
            break
        if not isinstance(row, dict) or "env_step" not in row:
            raise ConfigError(f"{file}, line {number}, is no row: it has no env_step")
        if having not in row:
            continue
        for name, fits in ({"env_step": _is_count} | dict(fields or {})).items():
            if name not in row or not fits(row[name]):
                there = f"its {name} is {shown(row[name])}" if name in row else f"it has no {name}"
                raise ConfigError(f"{file}, line {number}, is no row: {there}")
        rows.append(row)
    return rows


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63
