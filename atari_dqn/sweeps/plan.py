"""The plan of a sweep, kept in its directory, so that the directory alone resumes it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from atari_dqn.config.file import from_dict
from atari_dqn.config.setting import ConfigError, flag, shown
from atari_dqn.runs.directory import is_run_dir
from atari_dqn.runs.lock import LOCK
from atari_dqn.sweeps.members import Member
from atari_dqn.system.files import replace

HIDDEN = ".sweep"
"""Directory of the plan and of Ray's files: no run, so `SWEEP_DIR/*` leaves it out"""


@dataclasses.dataclass(frozen=True)
class OnRay:
    """How the runs are spread over a Ray cluster."""

    cluster: str
    """HOST:PORT of its head, auto or local"""
    cpus_per_run: int | None = None
    """None: as many as a run can use well"""
    gpus_per_run: float = 0.0
    retries: int = 3
    """Times that a failed run is started again"""
    stop_early: bool = False
    search: str | None = None
    trials: int = 0
    """Number of runs of a search"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a sweep is."""

    members: list[Member]
    """For a search one, with the settings that it does not vary"""
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    """Further flags of `train`"""
    ranges: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a search draws, as [search] of the file"""
    at_most: int | None = None
    """Most runs at once"""
    on_ray: OnRay | None = None
    """None: this machine alone, without Ray"""


def plan_file(root: Path) -> Path:
    return root / HIDDEN / "plan.json"


def save(plan: Plan, root: Path) -> None:
    """Write the plan. Raises `ConfigError` where it cannot be written."""
    stored = dataclasses.asdict(plan) | {"members": {each.name: each.config.to_dict() for each in plan.members}}
    try:
        plan_file(root).parent.mkdir(parents=True, exist_ok=True)
        replace(plan_file(root), (json.dumps(stored, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write {plan_file(root)}: {error.strerror}") from None


@contextlib.contextmanager
def kept(plan: Plan, root: Path) -> Iterator[None]:
    """Keep `plan` in `root`, unless the block raises `ConfigError`: then `root` has the former plan again, or none."""
    former = load(root)
    save(plan, root)
    try:
        yield
    except ConfigError:
        if former:
            save(former, root)
        else:
            shutil.rmtree(root / HIDDEN, ignore_errors=True)
        raise


def load(root: Path) -> Plan | None:
    """The plan of the sweep in `root`; None if there is none. Raises `ConfigError` if it cannot be read."""
    file = plan_file(root)
    try:
        stored = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    try:
        members = [Member(name, from_dict(settings)) for name, settings in stored.pop("members").items()]
        on_ray = stored.pop("on_ray")
        return Plan(members, on_ray=on_ray and OnRay(**on_ray), **stored)
    except (ConfigError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{file} is not the plan of a sweep: {error}") from None


def check_directory(root: Path) -> None:
    """Raise `ConfigError` if `root` has something else than a sweep, or is a URL, which `Path` writes as `s3:/...`."""
    if re.match(r"[\w+.-]+:/", str(root)):
        raise ConfigError(f"--sweep-dir {root} is not a folder; give one that all nodes share, at the same path")
    if is_run_dir(root):
        raise ConfigError(f"--sweep-dir {root} is a single run; name an empty or a new directory")
    try:
        others = not plan_file(root).exists() and root.exists() and {path.name for path in root.iterdir()} - {LOCK}
    except OSError as error:
        raise ConfigError(f"--sweep-dir {root}: {error.strerror}") from None
    if others:
        raise ConfigError(f"--sweep-dir {root} is not a sweep's directory, nor empty; choose an empty or a new one")


def as_begun(new: Plan, old: Plan, given: Container[str]) -> Plan:
    """`new` with what the runs of `old` began with and nobody changed, whose settings are not in `given`.

    The knots of schedules stay at their env steps, those of added seeds too. The same number of envs stays spread over
    the same number of workers, which a preset chooses by the machine.
    """
    begun = {member.name: member.config for member in old.members}
    for member in old.members:  # an added seed is averaged with those that were there
        begun.setdefault(_group(member), member.config)
    members = []
    for member in new.members:
        config = member.config
        if before := begun.get(member.name) or begun.get(_group(member)):
            if "schedule_env_steps" not in given and before.schedule_length != config.schedule_length:
                config = config.replace(schedule_env_steps=before.schedule_length)
            workers = ("num_workers", "envs_per_worker")
            if before.num_envs == config.num_envs and not any(name in given for name in workers):
                config = config.replace(**{name: getattr(before.env, name) for name in workers})
        members.append(dataclasses.replace(member, config=config))
    return dataclasses.replace(new, members=members)


def _group(member: Member) -> str:
    return member.name.rpartition("seed-")[0]


def check_extends(new: Plan, old: Plan, root: Path) -> str:
    """A line saying what `new` adds to `old`, the plan of the sweep in `root`; empty if nothing.

    Raises `ConfigError` unless `new` has all runs of `old` with their settings, but for a later end.
    """
    now = {member.name: member.config for member in new.members}
    missing = [member.name for member in old.members if member.name not in now]
    way = "give --sweep-dir alone to resume it, or choose another --sweep-dir"
    if missing:
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise ConfigError(f"{root} has another plan: {missing[0]}{others} would be left out; {way}")
    if new.flags != old.flags:
        names = " and ".join(flag(name) for name in sorted({**new.flags, **old.flags}))
        raise ConfigError(f"{root} has another plan: {names} would not be the same in all runs; {way}")
    for member in old.members:
        was, wanted = (
            {**config.to_dict(), "schedule_env_steps": config.schedule_length}
            for config in (member.config, now[member.name])
        )
        for name in was:
            if was[name] != wanted[name] and name != "total_env_steps":
                raise ConfigError(
                    f"{root} has another plan: {flag(name)} of {member.name} was {shown(was[name])}, not"
                    f" {shown(wanted[name])}; {way}"
                )
    searches = [(plan.ranges, plan.on_ray and (plan.on_ray.search, plan.on_ray.trials)) for plan in (new, old)]
    if (new.ranges or old.ranges) and searches[0] != searches[1]:
        raise ConfigError(f"{root} has another plan: its search is another; {way}")
    added = len(new.members) - len(old.members)
    early = [bool(plan.on_ray and plan.on_ray.stop_early) for plan in (new, old)]
    longer = any(member.config.run.total_env_steps != now[member.name].run.total_env_steps for member in old.members)
    if early[0] != early[1] or ((early[1] or old.ranges) and (added or longer)):
        raise ConfigError(
            f"{root} has another plan: with --stop-early or --search nothing can be added or made longer; {way}"
        )
    return f"{added} runs more than before" if added else ""


def overridden(plan: Plan, at_most: int | None, ray: Mapping[str, Any]) -> Plan:
    """`plan` with what was given of how it runs; `ray` has the fields of `OnRay` that were given."""
    at_most = plan.at_most if at_most is None else at_most
    if not ray:
        return dataclasses.replace(plan, at_most=at_most)
    if plan.ranges and plan.on_ray and ray.get("trials", plan.on_ray.trials) != plan.on_ray.trials:
        raise ConfigError(f"--trials is {plan.on_ray.trials} in the plan that is kept; a search is not continued")
    if plan.on_ray:
        return dataclasses.replace(plan, at_most=at_most, on_ray=dataclasses.replace(plan.on_ray, **ray))
    if "cluster" not in ray:
        name = next(iter(ray)).replace("_", "-")
        raise ConfigError(f"--{name} is for Ray; add --cluster local, --cluster auto or --cluster HOST:PORT")
    return dataclasses.replace(plan, at_most=at_most, on_ray=OnRay(**ray))
