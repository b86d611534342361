"""The README of an exported policy: its header, scores and versions flow in, a model card in Markdown flows out.

The front matter is Hugging Face's, so that the directory can be uploaded as it is; its strings are JSON, which is YAML.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import PROTOCOLS, Protocol
from atari_dqn.policy.files import ONNX, SAFETENSORS, Header

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says beside the header."""

    evaluations: Sequence[Row]
    """rows of `evaluations.jsonl`, of this very network"""
    trained_on: Mapping[str, Any]
    """the run's `system.json`; may be empty"""
    comparison: str
    """of the two files, on real play"""


def model_card(header: Header, facts: Facts) -> str:
    """The whole file."""
    atari = is_atari(header.env_id)
    frames = f" ({4 * header.env_step:,} frames)" if atari else ""
    return "\n".join(
        [
            *_front_matter(header, facts.evaluations),
            "",
            f"# DQN on {header.env_id}",
            "",
            f"A {_algorithm(header.config)} trained by `atari_dqn` for {header.env_step:,} env steps{frames} in"
            f" `{header.env_id}`, seed {header.config.run.seed}.",
            "",
            *_scores(header, facts.evaluations),
            *(_protocol(PROTOCOLS[header.config.env.protocol]) if atari else []),
            *_usage(header),
            *_files(header, facts),
            *_settings(header, facts.trained_on),
        ]
    )


def _front_matter(header: Header, evaluations: Sequence[Row]) -> list[str]:
    env, name = json.dumps(header.env_id), json.dumps(f"dqn-{header.env_id.removeprefix('ALE/').replace(':', '-')}")
    lines = ["---", "library_name: atari_dqn", "pipeline_tag: reinforcement-learning", "tags:"]
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "dqn", "gymnasium", "onnx", "safetensors"]
    lines += [f"- {tag}" for tag in [*tags, *(["atari"] if is_atari(header.env_id) else []), env]]
    if not evaluations:
        return [*lines, "---"]
    task = ["  - task:", "      type: reinforcement-learning", "      name: reinforcement-learning"]
    dataset = ["    dataset:", f"      name: {env}", f"      type: {env}"]
    lines += ["model-index:", f"- name: {name}", "  results:", *task, *dataset, "    metrics:"]
    for row in evaluations:
        lines += [
            "    - type: mean_reward",
            f"      name: {json.dumps('mean score, ' + _conditions(header, row))}",
            f"      value: {json.dumps(_with_interval(row['mean'], row['ci95']))}",
            "      verified: false",
        ]
    return [*lines, "---"]


def _algorithm(config: TrainConfig) -> str:
    traits = {
        "prioritized": config.replay.replay == "prioritized",
        "dueling": config.network.dueling,
        "double": config.learner.double_q,
    }
    return ", ".join(name for name, has in traits.items() if has) + " DQN" if any(traits.values()) else "plain DQN"


def _conditions(header: Header, row: Row) -> str:
    epsilon = f"epsilon {row['epsilon']:g}"
    if not is_atari(header.env_id):
        return epsilon
    # Under another protocol than the training's a network keeps its actions.
    others = row["full_action_space"] != PROTOCOLS[row["protocol"]].full_action_space
    return f"{row['protocol']}{f' with {header.num_actions} actions' if others else ''}, {epsilon}"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:,.2f} ({low:,.2f} to {high:,.2f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def _scores(header: Header, evaluations: Sequence[Row]) -> list[str]:
    if not evaluations:
        return ["## Scores", "", "Not evaluated: no game was played for a score with this very network.", ""]

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
    return [
        "## Scores",
        "",
        "Raw scores of whole games; a lost life ends none. IQM: the mean of the middle half of them.",
        "",
        *_table(head, map(cells, evaluations)),
        "The intervals are percentile bootstraps over games: they say nothing of other seeds of the training.",
        "",
    ]


def _protocol(protocol: Protocol) -> list[str]:
    sticky = protocol.repeat_action_probability
    rules = [
        f"sticky actions ({sticky:g})" if sticky else "no sticky actions",
        f"0 to {protocol.noop_max - 1} no-ops at a game's start" if protocol.noop_max > 1 else "no no-ops",
        "all 18 actions" if protocol.full_action_space else "the game's minimal set of actions",
        f"at most {protocol.max_episode_frames:,} frames",
        "a lost life terminal to learning" if protocol.life_loss_terminal else "no signal of lost lives",
    ]
    return [
        "## Protocol",
        "",
        f"`{protocol.name}`: {', '.join(rules)}. An action lasts 4 frames; the pixelwise maximum of the last two, grey"
        " and resized to 84x84, is a frame of the observation.",
        "",
    ]


def _usage(header: Header) -> list[str]:
    shape = ", ".join(map(str, header.observation_shape))
    return [
        "## Use it",
        "",
        "```python",
        "from atari_dqn import Policy",
        "",
        f'policy = Policy.load("{ONNX}")  # or {SAFETENSORS}',
        "env = policy.make_env()",
        "observation, _ = env.reset(seed=0)",
        "score, over = 0.0, False",
        "while not over:",
        "    observation, reward, terminated, truncated, _ = env.step(policy.act(observation))",
        "    score, over = score + reward, terminated or truncated",
        'print("score", score)',
        "```",
        "",
        "Without this package, onnxruntime alone gives the Q values:",
        "",
        "```python",
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{ONNX}")',
        f"observations = np.zeros((1, {shape}), np.{header.dtype})",
        '(q,) = session.run(["q"], {"observation": observations})',
        f"actions = q.argmax(1){f' + {header.first_action}' if header.first_action else ''}",
        "```",
        "",
    ]


def _files(header: Header, facts: Facts) -> list[str]:
    shape = ", ".join(map(str, header.observation_shape))
    return [
        "## Files",
        "",
        f"- `{ONNX}`: `observation`, {header.dtype} [batch, {shape}], to `q`, float32 [batch, {header.num_actions}]."
        f" {facts.comparison}",
        f"- `{SAFETENSORS}`: the weights, bit for bit, in the papers' layouts.",
        "",
        "Both hold, under `atari_dqn`, the settings and all else that is needed to rebuild the network, as JSON.",
        "",
    ]


def _settings(header: Header, trained_on: Mapping[str, Any]) -> list[str]:
    asked = {name: value for name, value in header.config.to_dict().items() if name != "run_dir"}
    default = TrainConfig().to_dict()
    changed = [(f"`{name}`", _value(value)) for name, value in asked.items() if value != default[name]]
    known = {**trained_on, **(trained_on.get("packages") or {})}
    names = ("date", "processor", "python", "torch", "gymnasium", "ale-py", "numpy", "opencv-python")
    commits = [("atari_dqn, training", known.get("git_revision")), ("atari_dqn, export", header.git_revision)]
    return [
        "## Settings",
        "",
        "What differs from the defaults:",
        "",
        *_table(["setting", "value"], changed),
        "<details><summary>All settings</summary>",
        "",
        "```json",
        "{",
        ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in asked.items()),
        "}",
        "```",
        "",
        "</details>",
        "",
        "## Versions",
        "",
        *_table(
            ["of the training", "version"],
            [(name, commit or "unknown") for name, commit in commits]
            + [(name, known[name]) for name in names if known.get(name)],
        ),
    ]


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
