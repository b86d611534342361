"""A run directory: paths that stand for it, its checks before a start, its settings, what it ran on. Needs no torch."""

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atari_dqn.config.file import load_config
from atari_dqn.config.objects import recall
from atari_dqn.config.schema import COLUMNS, TrainConfig
from atari_dqn.config.setting import ConfigError, as_written, flag, settings
from atari_dqn.runs.lock import LOCK
from atari_dqn.system.files import append, remove_empty, replace
from atari_dqn.system.machine import describe_system

SHOWN = 5
"""Most runs named in a message."""
PARTIAL = "config.partial"
"""Name of the settings' file while it is being written, at the start of a run."""
LEARNER = "learner.safetensors"
"""Name of a checkpoint's file with the weights."""
CHECKPOINT = re.compile(r"(?P<step>0|[1-9][0-9]*)|\.(?P<former>0|[1-9][0-9]*)\.former")
"""Names of a checkpoint's directory; the second one while another checkpoint of the same env step replaces it."""
POINTERS = ("latest", "best")
"""Names that stand for a checkpoint: the newest, and the one with the highest score."""
POLICY_FILES = ("policy.safetensors", "policy.onnx")
"""Names of the files of an exported policy, the preferred one first."""


class Named(NamedTuple):
    """What a path that a person gave stands for, see `named`."""

    kind: str
    """run, seeds (the runs of `train --seeds`), runs (a folder of any), policy, weights, file, nothing or other.

    Weights are a directory with a learner's file, or that file, that belong to no checkpoint of a run.
    """
    path: Path
    """A run's directory, the file of a policy, or the path itself."""
    checkpoint: str = ""
    """Checkpoint of the run: latest, best or an env step."""

    def settings(self) -> TrainConfig:
        """Settings of the run, or of the first of several seeds, or in the file. Raises `ConfigError`."""
        place = seeds_in(self.path)[0] if self.kind == "seeds" else self.path
        return load_config(place) if self.kind == "file" else read_config(place)


def named(path: Path, checkpoint: str | None = None, *, takes: str | None = "run", prefix: str = "") -> Named:
    """What a path that a person gave stands for.

    A run's config.json and checkpoints stand for the run, checkpoints/latest, checkpoints/best, checkpoints/<env step>
    and a file in one of these for that checkpoint. Unless `checkpoint` is None, the run must have this one, or the one
    that the path names. Raises `ConfigError`, starting with `prefix`, if the path is of no kind that `takes` names;
    None takes all.
    """
    for place in (path, Path(os.path.abspath(path))):
        for run_dir in filter(is_run_dir, (place, *place.parents)):
            match place.relative_to(run_dir).parts:
                case () | ("config.json" | "checkpoints",):
                    which = checkpoint or "latest"
                case ("checkpoints", which, *file) if len(file) < 2 and (which in POINTERS or which.isdecimal()):
                    if checkpoint not in (None, "latest", which):
                        raise ConfigError(f"--checkpoint {checkpoint}: {path} names another; give one of them")
                case _:
                    continue
            if checkpoint is not None:
                check_checkpoint(run_dir, which)
            return Named("run", run_dir, which)
    found = _other_than_run(path)
    if takes is None or found.kind in takes.split():
        return found
    what = "is not a run directory: it has no config.json"
    if found.kind == "policy":
        what = "is an exported policy; give the run that it was exported from"
    elif found.kind == "weights":
        what = "is a checkpoint outside of its run, or a corrupt one; give the run"
    elif found.kind == "nothing":
        what = "does not exist"
    elif inside := runs_in(path):
        what += f"; the newest runs in it: {', '.join(map(str, reversed(inside[-SHOWN:])))}"
    raise ConfigError(f"{prefix}{found.path} {what}")


def _other_than_run(path: Path) -> Named:
    file = next((path / name for name in (*POLICY_FILES, LEARNER) if os.path.isfile(path / name)), path)
    if os.path.isfile(file):
        if file.name == LEARNER:
            return Named("weights", path)
        return Named("policy" if file.name in POLICY_FILES else "file", file)
    if os.path.isdir(path):
        return Named("seeds" if seeds_in(path) else "runs" if runs_in(path) else "other", path)
    return Named("other" if os.path.lexists(path) else "nothing", path)


def check_checkpoint(run_dir: Path, which: str) -> None:
    """Raise `ConfigError` unless a run has checkpoint `which`: latest, best, or an env step."""
    directory = run_dir / "checkpoints"
    try:
        stored = checkpoints_in(run_dir)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    if not stored:
        raise ConfigError(f"no checkpoint in {directory}; train writes one every --checkpoint-interval")
    if which not in (*POINTERS, *map(str, stored)):
        known = ", ".join(map(str, sorted(stored)))
        raise ConfigError(f"no checkpoint {which!r} in {directory}; choose latest, best or one of {known}")


def checkpoints_in(run_dir: Path) -> dict[int, Path]:
    """Directories of a run's checkpoints by env step, valid or not. Raises `OSError`.

    A checkpoint that was being replaced counts only if its replacement is missing.
    """
    directory = run_dir / "checkpoints"
    try:
        found = [(match, path) for path in directory.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    except FileNotFoundError:
        if os.path.lexists(directory):
            raise  # a link to a disk that is not mounted: there may well be checkpoints
        return {}
    formers = {int(match["former"]): path for match, path in found if match["former"]}
    return formers | {int(match["step"]): path for match, path in found if match["step"] and path.is_dir()}


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
        remove_empty(run_dir, run_dir.parent)


def check_run_dir(config: TrainConfig, run_dir: Path) -> list[str]:
    """Check that a run with `config` can start or resume in `run_dir`, without creating anything.

    A run may resume with other rates and intervals, but not as another run. Returns a line for each setting that
    changes, such as `--learning-rate 0.0001 -> 0.0005`; raises `ConfigError` if it cannot.
    """
    try:
        started = is_run_dir(run_dir)
        if not started and (found := named(run_dir, takes=None)).kind == "run" and checkpoints_in(found.path):
            raise ConfigError(f"--run-dir {run_dir} is part of a run; give {found.path} to resume it")
        place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            what = "not writable" if place.is_dir() else "a file"
            raise ConfigError(f"--run-dir {run_dir}: {place} is {what}; choose a writable directory")
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


def is_run_dir(run_dir: Path) -> bool:
    """Whether there is a run in `run_dir` that can be resumed. Never raises, whatever the path."""
    return os.path.isfile(run_dir / "config.json")


def runs_in(folder: Path) -> list[Path]:
    """The runs in `folder` and in its folders of several seeds or of sweeps, the newest, started or resumed last, at
    the end.
    """
    patterns = ("*/config.json", "*/seed-*/config.json", "*/*/seed-*/config.json")
    configs = [config for pattern in patterns for config in folder.glob(pattern)]
    configs = [config for config in configs if is_run_dir(config.parent)]
    return [config.parent for config in sorted(configs, key=lambda config: config.stat().st_mtime)]


def newest_run(say: Callable[[str], None], *, checkpoint: bool = False) -> Path:
    """The run in `runs` that was started or resumed last and has readable settings and, if asked, a checkpoint.

    `say` is told which one it is. Raises `ConfigError` if there is none.
    """
    for run_dir in reversed(runs_in(Path("runs"))):
        with contextlib.suppress(ConfigError, OSError):
            read_config(run_dir)
            if not checkpoint or checkpoints_in(run_dir):
                say(f"the newest run: {run_dir}")
                return run_dir
    raise ConfigError(f"no run{' with a checkpoint' if checkpoint else ''} in runs; name a run directory")


def seeds_in(run_dir: Path) -> list[Path]:
    """The runs that `train --seeds` made in `run_dir`, in order of their seeds."""
    found = run_dir.glob("seed-*") if os.path.isdir(run_dir) else ()  # it raises for a name that is too long
    places = [place for place in found if place.name[5:].isdecimal() and is_run_dir(place)]
    return sorted(places, key=lambda place: int(place.name[5:]))


def _changes(config: TrainConfig, run_dir: Path) -> list[str]:
    before = read_config(run_dir)
    stored, asked = ({**each.to_dict(), "schedule_env_steps": each.schedule_length} for each in (before, config))
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
    """The settings of a run. Raises `ConfigError` when they cannot be read."""
    return recall(run_dir, load_config(run_dir / "config.json"))
