"""labml 0.5.3's client, used to make the packets that a labml server expects of a run.

It runs in the reporter process only. labml's own sending is replaced, since it retries for ever, keeps everything and
raises on errors; so are its readings of the repository and of stdout, since they would be sent.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIT_SECONDS = 5.0
"""Longest time for one git command."""


@dataclass(frozen=True)
class LiveSlider:
    """A live hyperparameter on the page."""

    name: str
    is_int: bool
    low: float
    high: float
    value: float


@dataclass(frozen=True)
class Introduction:
    """What the reporter needs to introduce a run to the server."""

    uuid: str
    """Name of the run on the server."""
    url: str
    """Address of the server's API."""
    name: str
    config: Mapping[str, Any]
    live: tuple[LiveSlider, ...]
    repository: Path
    """Git repository whose revision is reported."""
    env_step: int
    """Environment step at which the run starts or resumes."""
    directory: Path
    """Temporary directory for labml's files, removed when the reporter ends."""


class Client:
    """Makes labml's packets. It changes the process's home and working directory, and discards its output."""

    def __init__(self, introduction: Introduction) -> None:
        git = _revision(introduction.repository)
        directory = str(introduction.directory)
        os.environ["HOME"] = directory  # labml keeps a file about the computer there
        os.chdir(directory)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)

        import labml.internal.app
        import labml.internal.experiment
        import labml.internal.lab
        from labml import experiment, lab, tracker
        from labml.internal.configs.dynamic_hyperparam import FloatDynamicHyperParam, IntDynamicHyperParam

        self._tracker = tracker
        self._collectors: list[_Collector] = []

        def collector(url: str, params: Mapping[str, Any], **_: Any) -> _Collector:
            self._collectors.append(_Collector({**params, "labml_version": labml.__version__}))
            return self._collectors[-1]

        labml.internal.app.AppTracker = collector
        labml.internal.experiment.get_git_status = lambda: (git, None)
        # Or a `.labml.yaml` in a directory above this file would be read.
        labml.internal.lab._internal = labml.internal.lab.Lab(introduction.directory)
        lab.configure(
            {
                "path": directory,
                "experiments_path": directory,
                "data_path": directory,
                "app_url": introduction.url,
                "app_open_browser": False,
                "app_track_frequency": -1,  # a packet whenever we ask for one
                "check_repo_dirty": False,
            }
        )
        experiment.create(
            uuid=introduction.uuid,
            name=clean(introduction.name),
            python_file="atari_dqn.train",
            comment=clean(f"{git['commit'][:12]}{' with changes' if git['is_dirty'] else ''} {git['commit_message']}"),
            tags=set(),
            writers={"app"},
        )
        sliders = {
            slider.name: (IntDynamicHyperParam if slider.is_int else FloatDynamicHyperParam)(
                slider.value, (slider.low, slider.high)
            )
            for slider in introduction.live
        }
        config = {name: clean(value) for name, value in introduction.config.items()}
        experiment.configs(config | {"git_revision": git["commit"]} | sliders)
        experiment.start()
        self._farewell = labml.internal.experiment.experiment_singleton().finish
        (self._collector,) = self._collectors
        self.query = self._collector.query
        self._introduction = self._collector.packets()
        self._first_step = introduction.env_step
        self._last_step: int | None = None

    def introduction(self, values: Mapping[str, float]) -> list[dict[str, Any]]:
        """Packets with the run's name, revision, configuration and live hyperparameters at their present `values`."""
        for packet in self._introduction:
            for name, setting in packet.get("configs", {}).items():
                if name in values:
                    for described in (setting["value"], setting["computed"]):
                        described["default"] = values[name]
        if self._last_step is not None:
            return self._introduction
        # The page has no slider for a value that was never reported.
        return [*self._introduction, self.metrics([{"env_step": self._first_step}], values)]

    def metrics(self, rows: Sequence[Mapping[str, float]], values: Mapping[str, float]) -> dict[str, Any]:
        """One packet with all scalars of `rows` by environment step, and the live hyperparameters' present `values`."""
        whole: dict[str, Any] = {"track": {}}
        for row in rows:
            scalars = {name: value for name, value in row.items() if "/" in name}
            # The row's own value is better: a schedule moves it, and the row may be older than an edit.
            scalars |= {f"hp.{name}": row.get(f"charts/{name}", value) for name, value in values.items()}
            self._last_step = int(row["env_step"])
            self._tracker.save(self._last_step, {name: float(v) for name, v in scalars.items() if _is_number(v)})
            # One at a time: labml thins out and averages points that it sends together.
            for packet in self._collector.packets():
                for name, series in packet.pop("track", {}).items():
                    joined = whole["track"].setdefault(name, {"step": [], "value": []})
                    joined["step"] += series["step"]
                    joined["value"] += series["value"]
                whole |= packet
        return whole

    def farewell(self) -> list[dict[str, Any]]:
        """Packets that say the run is over."""
        self._farewell("completed")
        return self._collector.packets()


class _Collector:
    """Stands in for labml's network thread: remembers which sources have data until asked for packets."""

    def __init__(self, query: Mapping[str, Any]) -> None:
        self.query = query
        self._sources: dict[Any, None] = {}

    def has_data(self, source: Any) -> None:
        self._sources[source] = None

    def add_handler(self, handler: Any) -> None:
        pass  # the reporter reads the replies itself

    def stop(self) -> None:
        pass

    def packets(self) -> list[dict[str, Any]]:
        from labml.internal.app.logs import APP_CONSOLE_LOGS

        taken = [source.get_data_packet().data for source in self._sources if source is not APP_CONSOLE_LOGS]
        self._sources.clear()
        return taken


def clean(value: Any) -> Any:
    """`value` as JSON can represent it, without the credentials of URLs in its texts."""
    if isinstance(value, str):
        return re.sub(r"([a-zA-Z][\w+.-]*://)[^\s/]*@", r"\1", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    return value if isinstance(value, int | float | None) else clean(str(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _revision(repository: Path) -> dict[str, Any]:
    """The commit of `repository` in labml's format, without remotes, whose URLs may contain credentials."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return ""
        return run.stdout.strip()

    return {
        "remotes": [],
        "commit": git("rev-parse", "HEAD") or "unknown",
        "commit_message": clean(git("log", "-1", "--format=%s")),
        "is_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "diff": "",
    }
