"""Model card of an exported policy: the template `model_card.md`, filled in.

Its front matter is Hugging Face's, so that the directory can be uploaded as it is. JSON there is valid YAML.
"""

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import atari_dqn
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import as_written
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import FRAME_SIZE, FRAME_SKIP, PROTOCOLS, Protocol
from atari_dqn.policy.files import Header

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "dqn", "gymnasium", "onnx", "safetensors")
RECORDED = ("date", "processor", "python", "torch", "gymnasium", "ale-py", "numpy", "opencv-python")
"""Facts of `system.json` that the card shows."""
Row = Mapping[str, Any]


IMAGES = "Images are scaled from their space's bounds to 0 to 255, channels last; the newest is the last of a stack."


def model_card(header: Header, evaluations: Sequence[Row], trained_on: Row, comparison: str) -> str:
    """The whole file, from the rows of `evaluations.jsonl` for this very network and the run's `system.json`, if any.

    `comparison` is a sentence about the ONNX file on real play.
    """
    atari, config = is_atari(header.env_id), header.config
    settings, default = header.settings(), TrainConfig().to_dict()
    prioritized = config.replay.replay == "prioritized"
    traits = {"prioritized": prioritized, "dueling": config.network.dueling, "double": config.learner.double_q}
    known = {**trained_on, **(trained_on.get("packages") or {})}
    versions = {
        "atari_dqn, training": _version(known.get("atari_dqn"), known.get("git_revision")),
        "atari_dqn, export": _version(atari_dqn.__version__, header.git_revision),
        **{name: known[name] for name in RECORDED if known.get(name)},
    }
    changed = {f"`{name}`": as_written(value) for name, value in settings.items() if value != default[name]}
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        tags=json.dumps([*TAGS, *(["atari"] if atari else []), header.env_id]),
        model_index=json.dumps(_model_index(header, evaluations)),
        env_id=header.env_id,
        algorithm=f"{', '.join(name for name, has in traits.items() if has) or 'plain'} DQN",
        env_step=f"{header.env_step:,}",
        seed=config.run.seed,
        scores=_scores(header, evaluations),
        protocol=_protocol(PROTOCOLS[config.env.protocol]) if atari else "",
        shape=", ".join(map(str, header.observation_shape)),
        dtype=header.dtype,
        first_action=header.first_action,
        num_actions=header.num_actions,
        comparison=comparison if atari or header.kind == "vector" else f"{IMAGES} {comparison}",
        changed=_table(["setting", "value"], changed.items()),
        settings=json.dumps(settings, indent=2),
        versions=_table(["of the training", "version"], versions.items()),
    )


def _version(number: str | None, revision: str | None) -> str:
    return ", ".join([number or "unknown", *([f"revision {revision}"] if revision else [])])


def _model_index(header: Header, evaluations: Sequence[Row]) -> list[dict[str, Any]]:
    metrics = [
        {
            "type": "mean_reward",
            "name": f"mean score, {_conditions(header, row)}",
            "value": _with_interval(row["mean"], row["ci95"]),
            "verified": False,
        }
        for row in evaluations
    ]
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    result = {"task": task, "dataset": {"name": header.env_id, "type": header.env_id}, "metrics": metrics}
    name = f"dqn-{header.env_id.removeprefix('ALE/').replace(':', '-')}"
    return [{"name": name, "results": [result]}] if metrics else []


def _conditions(header: Header, row: Row) -> str:
    epsilon = f"epsilon {row['epsilon']:g}"
    if not is_atari(header.env_id):
        return epsilon
    # Under a protocol other than the training's a network keeps its actions.
    others = row["full_action_space"] != PROTOCOLS[row["protocol"]].full_action_space
    return f"{row['protocol']}{f' with {header.num_actions} actions' if others else ''}, {epsilon}"


def _scores(header: Header, evaluations: Sequence[Row]) -> str:
    if not evaluations:
        return "Not evaluated: no game was played for a score with this very network."

    def cells(row: Row) -> list[str]:
        human = row.get("human_normalized")
        return [
            _conditions(header, row),
            f"{row['episodes']:,}",
            _with_interval(row["mean"], row["ci95"]),
            _with_interval(row["iqm"], row["iqm_ci95"]) if "iqm" in row else "",
            f"{row['median']:,g}",
            "" if human is None else f"{human:.3f}",
        ]

    head = ["protocol, epsilon", "games", "mean (95% interval)", "IQM (95% interval)", "median", "human-normalised"]
    return (
        "Raw scores of whole games, all lives included. IQM: mean of the middle half of the games.\n\n"
        f"{_table(head, map(cells, evaluations))}\n\n"
        "Intervals are percentile bootstraps over games; they say nothing about other seeds of the training."
    )


def _protocol(protocol: Protocol) -> str:
    sticky = protocol.repeat_action_probability
    rules = [
        f"sticky actions ({sticky:g})" if sticky else "no sticky actions",
        f"0 to {protocol.noop_max - 1} no-ops at a game's start" if protocol.noop_max > 1 else "no no-ops",
        "all 18 actions" if protocol.full_action_space else "the game's minimal set of actions",
        f"at most {protocol.max_episode_frames:,} frames",
        "a lost life terminal to learning" if protocol.life_loss_terminal else "no signal of lost lives",
    ]
    return (
        f"## Protocol\n\n`{protocol.name}`: {', '.join(rules)}. An action lasts {FRAME_SKIP} frames; the pixelwise"
        f" maximum of the last two, grey and resized to {FRAME_SIZE}x{FRAME_SIZE}, is a frame of the observation.\n\n"
    )


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:,.2f} ({low:,.2f} to {high:,.2f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
