"""Packets that a labml server expects of a run: JSON objects, as labml 0.5.3's own client sends them."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atari_dqn.config.live import LiveSetting
from atari_dqn.config.schema import TrainConfig
from atari_dqn.system.machine import git_revision

CLIENT = {"labml_version": "0.5.3", "rank": 0, "world_size": 0}
"""Query parameters of a report, beside the run's identifier."""
NAMED = ("env_id", "seed", "run_dir")
"""Settings that the page shows anyway."""


def introduction(
    uuid: str, name: str, config: Mapping[str, Any], live: Iterable[LiveSetting], values: Mapping[str, float]
) -> dict[str, Any]:
    """The packet that makes a run known, with its settings, and its live hyperparameters at their present `values`.

    Below its `name` the page shows the environment, the seed and what differs from the defaults.
    """
    defaults = TrainConfig().to_dict()
    facts = [str(config.get("env_id", "")), f"seed {config.get('seed')}"]
    facts += [f"{key} {value}" for key, value in config.items() if key not in NAMED and value != defaults.get(key)]
    revision = git_revision() or "unknown"
    shown = json.loads(json.dumps({**config, "git_revision": revision}, default=str), parse_constant=str)
    for param in live:
        slider = {"default": values[param.name], "range": [*param.suggested], "dynamic_type": param.kind.__name__}
        shown[param.name] = {"type": "DynamicSchedule", **slider, "bounds": param.bounds_on_page}
    configs = {
        setting: {"name": setting, "type": type(value).__name__, "value": value, "computed": value, "order": order}
        | {"options": [], "is_hyperparam": False, "is_meta": False, "is_explicitly_specified": False}
        for order, (setting, value) in enumerate(shown.items())
    }
    about = {"python_file": "atari_dqn.train", "commit": revision, "computer": uuid, "start_step": 0}
    return {"time": time.time(), "name": name, "comment": " · ".join(facts), **about, "configs": configs}


def points(rows: Sequence[Mapping[str, float]], values: Mapping[str, float]) -> dict[str, Any]:
    """The packet with all scalars of `rows` by env step, and the live hyperparameters' present `values`."""
    track: dict[str, Any] = {}
    for row in rows:
        scalars = {name: value for name, value in row.items() if "/" in name}
        # The row's own value is better: a schedule moves it, and the row may be older than an edit.
        scalars |= {f"hp.{name}": row.get(f"settings/{name}", value) for name, value in values.items()}
        for name, value in scalars.items():
            if is_number(value):
                series = track.setdefault(name, {"step": [], "value": []})
                series["step"].append(float(row["env_step"]))
                series["value"].append(float(value))
    return {"time": time.time(), **({"track": track} if track else {})}


def farewell() -> dict[str, Any]:
    """The packet that says the run is over."""
    now = time.time()
    return {"time": now, "status": {"rank": 0, "status": "completed", "details": None, "time": now}}


def is_number(value: object) -> bool:
    """Whether `value` can be sent: JSON has no NaN and no infinity."""
    return isinstance(value, int | float) and math.isfinite(value)
