"""The command `python -m atari_dqn.sweep`: many runs, games times seeds times settings."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from atari_dqn.cli.command import DONE, parse_flags, run_command
from atari_dqn.config.presets import Preset
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.labml.http import check_url
from atari_dqn.runs.directory import named
from atari_dqn.sweeps import flags, plan
from atari_dqn.sweeps.grid import Grid, combined, members_of, read_grid, specs_of
from atari_dqn.sweeps.on_ray import check_options
from atari_dqn.sweeps.plan import Plan
from atari_dqn.sweeps.session import Session
from atari_dqn.sweeps.suites import SUITES
from atari_dqn.system.signals import StopRequest


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Train many runs: games times seeds times settings, on this machine or on a Ray cluster.

    Every setting of train takes one or several values here, and each combination is a run of its own:

    sweep --env-id pong breakout --seeds 5 --learning-rate 1e-4 2.5e-4

    Stop with Ctrl-C: the states are saved, and the same command, or --sweep-dir alone, resumes. Runs that are done are
    not run again, those that failed are.
    """

    sweep_dir: Annotated[
        Path | None, Setting("the sweep's directory, with a directory for each run; by default a new one in runs")
    ] = None
    file: Annotated[
        Path | None, Setting("TOML file with [base] settings, [grid] lists, [[variant]]s and [search] ranges")
    ] = None
    suite: Annotated[
        Literal[tuple(SUITES)] | None,  # type: ignore[valid-type]
        Setting(
            f"a standard set of games with its protocol: {'; '.join(f'{s.name}: {s.about}' for s in SUITES.values())}"
        ),
    ] = None
    seeds: Annotated[int, Setting("number of seeds, from --seed on", "", 1, 1000)] = 1
    config: Annotated[Path | None, Setting("another run, or a config.json, to take the settings from")] = None
    preset: Annotated[
        Preset | None, Setting("settings to begin with for Atari games, as train --preset; by default paper")
    ] = None
    init_from: Annotated[
        Path | None,
        Setting("start every run from the weights of this run, checkpoint or learner.safetensors"),
    ] = None
    labml_url: Annotated[str | None, Setting("report every run to the labml server at this URL")] = None
    parallel: Annotated[
        int | None,
        Setting("most runs at once; by default as many as cores and memory allow", "", 1, 4096),
    ] = None
    dry_run: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("check everything, list the runs, and train nothing")
    ] = False
    cluster: Annotated[
        str | None,
        Setting("run through Ray Tune: HOST:PORT of the cluster's head, auto (this machine's cluster) or local"),
    ] = None
    cpus_per_run: Annotated[
        int | None, Setting("cores that Ray reserves for a run; by default as many as it can use well", "", 1, 4096)
    ] = None
    gpus_per_run: Annotated[
        float | None, Setting("GPUs, or a fraction of one, that Ray reserves for a run", "", 0, 64)
    ] = None
    retries: Annotated[
        int | None,
        Setting("times that Ray resumes a failed run (3 by default)", "", 0, 1000),
    ] = None
    stop_early: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("stop hopeless settings early", source="ASHA, Li et al. 2020")
    ] = False
    search: Annotated[
        Literal["optuna"] | None, Setting("draw the settings in [search] of --file, for --trials runs")
    ] = None
    trials: Annotated[int | None, Setting("runs of a search", "", 1, 100_000)] = None


@cache
def _command() -> type:
    """`SweepCommand` with the settings of train."""
    fields = [
        (name, Annotated[section, tyro.conf.OmitArgPrefixes], dataclasses.field(default=section()))
        for name, section in flags.sections().items()
    ]
    made = dataclasses.make_dataclass("Sweep", fields, bases=(SweepCommand,), frozen=True, kw_only=True)
    made.__doc__ = SweepCommand.__doc__
    return made


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.sweep") -> int:
    """Train as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    with StopRequest() as stop:
        return _main(_parse(sys.argv[1:] if argv is None else argv, prog), stop)


def _parse(argv: Sequence[str], prog: str) -> Any:
    return parse_flags(_command(), flags.spelled_out(argv), prog=prog)


def _main(command: Any, stop: StopRequest) -> int:
    root = command.sweep_dir or Path("runs") / time.strftime("sweep-%Y%m%d-%H%M%S")
    plan.check_directory(root)
    made, specs, notes = _plan(command, root)
    if made.on_ray:
        check_options(made)
    if command.dry_run:
        print(*(member.name for member in made.members), sep="\n")
        return DONE
    games = {member.config.env.env_id for member in made.members}
    seeds = {member.config.run.seed for member in made.members}
    number = made.on_ray.trials if made.on_ray and made.ranges else len(made.members)
    about = ", ".join([f"{len(games)} games", f"{len(seeds)} seeds", *notes])
    what = f"{number} runs ({about}) in {root}, output in output-K.txt"
    session = Session(made, specs, root, stop, what, f"--sweep-dir {shlex.quote(str(root))}")
    try:
        return session.on_ray() if made.on_ray else session.here()
    except ConfigError as error:  # of a run
        raise ConfigError(str(error).replace("--run-dir", "--sweep-dir")) from None


def _plan(command: Any, root: Path) -> tuple[Plan, dict[str, EnvSpec], list[str]]:
    """The plan of the flags, or the one that is kept in `root`, the environments of its runs, and notes on it."""
    names = ("cluster", "cpus_per_run", "gpus_per_run", "retries", "stop_early", "search", "trials")
    ray = {name: value for name in names if (value := getattr(command, name)) is not None and value is not False}
    before, given = plan.load(root), flags.given(command)
    asked = (command.file, command.suite, command.config, command.preset, command.init_from, command.labml_url)
    if not given and not any(asked) and command.seeds == 1:
        if before is None:
            raise ConfigError("nothing to run: give settings, such as --env-id pong --seeds 5, or --file, or --suite")
        return plan.overridden(before, command.parallel, ray), specs_of(before.members), []
    members, specs = members_of(grid := _grid(command, given))
    made = plan.overridden(Plan(members, _flags(command), dict(grid.search)), command.parallel, ray)
    notes = [f"settings of {command.config}" if command.config else f"preset {grid.preset}"]
    if before:
        own = given if command.config else {*grid.base, *grid.axes, *itertools.chain(*grid.variants)}
        made = plan.as_begun(made, before, own)
        if added := plan.check_extends(made, before, root):
            notes.append(added)
    return made, specs, notes


def _grid(command: Any, given: dict[str, list[Any]]) -> Grid:
    grid = read_grid(command.file) if command.file else Grid()
    base: dict[str, Any] = {}
    if command.preset:
        grid = dataclasses.replace(grid, preset=command.preset)
        if command.config:
            raise ConfigError(f"--preset {command.preset}: --config has settings of its own")
        if command.preset == "auto" and command.cluster:
            grid = dataclasses.replace(grid, preset="gpu" if command.gpus_per_run else "cpu")
    if command.config:
        base = (
            named(command.config, takes="run seeds file", prefix="--config ").settings().replace(run_dir=None).to_dict()
        )
    if command.suite:
        suite = SUITES[command.suite]
        if "env_id" in {**given, **grid.base, **grid.axes}:
            raise ConfigError(f"--suite {suite.name} says which games; leave out --env-id")
        base |= suite.settings
        grid = dataclasses.replace(grid, axes={"env_id": suite.games, **grid.axes})
    grid = combined(dataclasses.replace(grid, base={**base, **grid.base}), given)
    if command.seeds > 1:
        several = grid.axes.get("seed", [grid.base.get("seed", TrainConfig().run.seed)])
        if len(several) > 1:
            raise ConfigError("--seeds and several values of --seed both say which; give one of them")
        seeds = list(range(several[0], several[0] + command.seeds))
        grid = dataclasses.replace(grid, axes={**grid.axes, "seed": seeds})
    return grid


def _flags(command: Any) -> dict[str, str]:
    """Flags that `train` takes besides settings. Raises `ConfigError` for a wrong one."""
    found = {}
    if command.init_from:
        named(command.init_from, "latest", takes="run weights file", prefix="--init-from ")
        found["init_from"] = os.path.abspath(command.init_from)
    if command.labml_url:
        found["labml_url"] = check_url(command.labml_url)
    return found


if __name__ == "__main__":
    run_command(main)
