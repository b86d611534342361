"""The export command on a real short run, on an untrained Breakout, and with every network."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import atari_dqn
from atari_dqn import Policy, evaluate, export, play
from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.export import compare, real_play
from atari_dqn.policy.files import CHECKSUMS, ONNX, SAFETENSORS, read_exported, to_safetensors
from atari_dqn.policy.model_card import model_card
from atari_dqn.policy.trained import load_policy
from atari_dqn.runs.records import read_rows
from tests.policy.test_files import make
from tests.run_dirs import make_run, python, refusals
from tests.test_train import SHORT, run

RECIPES = Path(__file__).parents[1] / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real short run, exported with an evaluation."""
    place = tmp_path_factory.mktemp("trained")
    short = [*SHORT, "--total-env-steps", "600", "--run-dir", "run"]
    assert run(short, place, timeout=600).returncode == 0
    exporting = run([sys.executable, "-m", "atari_dqn.export", "run", "--episodes", "2"], place, timeout=600)
    assert (exporting.returncode, exporting.stderr) == (0, "")
    assert "policy.onnx" in exporting.stdout
    assert "600 saved" not in exporting.stdout
    return place / "run"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    (directory,) = (trained / "export").iterdir()
    return directory


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def blocks(markdown: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", markdown, re.DOTALL)


# ---------------------------------------------------------------------- what is written


def test_the_files_hold_the_newest_checkpoint(trained: Path, exported: Path) -> None:
    newest = load_policy(trained)
    assert exported.name == f"CartPole-v1-{newest.env_step}"
    assert sorted(path.name for path in exported.iterdir()) == sorted([export.CARD, ONNX, SAFETENSORS, CHECKSUMS])
    checked = subprocess.run(
        ["sha256sum", "--check", CHECKSUMS], cwd=exported, capture_output=True, text=True, check=True
    )
    assert checked.stdout == f"{SAFETENSORS}: OK\n{ONNX}: OK\n"
    for name in (ONNX, SAFETENSORS):
        header = read_exported(exported / name).header
        assert (header.env_step, header.env_id, header.spec) == (newest.env_step, "CartPole-v1", newest.spec)
        assert header.config == newest.config.replace(run_dir=None)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with torch.inference_mode():
        q = newest.network(torch.from_numpy(observations)[:, None]).numpy()
    np.testing.assert_array_equal(Policy.load(exported / SAFETENSORS).q_values(observations), q)
    np.testing.assert_allclose(Policy.load(exported / ONNX).q_values(observations), q, atol=1e-4)


def test_the_card_has_the_scores_of_this_network_only(trained: Path, exported: Path) -> None:
    card = (exported / export.CARD).read_text()
    rows = read_rows(trained / "evaluations.jsonl")
    assert len(rows) > 1
    assert len({row["epsilon"] for row in rows}) == len(rows)
    for row in rows:
        low, high = row["ci95"]
        assert f"| epsilon {row['epsilon']:g} | 2 | {row['mean']:,.2f} ({low:,.2f} to {high:,.2f}) |" in card
    (model,) = front_matter(card)["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["name"] == "CartPole-v1"
    assert len(result["metrics"]) == len(rows)
    assert result["metrics"][0]["type"] == "mean_reward"
    assert result["metrics"][0]["value"].startswith(f"{rows[0]['mean']:,.2f} (")
    settings = json.loads(blocks(card, "json")[0])
    assert settings == {name: settings[name] for name in load_policy(trained).config.to_dict() if name != "run_dir"}
    assert "| `batch_size` | 16 |" in card
    assert "`gamma` |" not in card, "only what differs from the defaults is in the table"
    system = json.loads((trained / "system.json").read_text())
    assert f"| torch | {system['packages']['torch']} |" in card
    assert f"| atari_dqn, training | {atari_dqn.__version__}, revision {system['git_revision']} |" in card
    assert "Protocol" not in card, "CartPole has none"


def test_the_cards_examples_run_as_they_stand(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "export")
    ours, theirs = blocks((exported / export.CARD).read_text(), "python")
    program = f"import os, sys; os.chdir({str(tmp_path / 'export')!r}); sys.modules['torch'] = None\n"
    result = python("-c", program + ours)
    assert result.stderr == ""
    assert result.stdout.startswith("score ")
    alone = program + "sys.modules['atari_dqn'] = None\n" + theirs + "print(actions)"
    assert python("-c", alone).stdout in ("[0]\n", "[1]\n")


def test_breakout_is_checked_on_frames_of_real_play(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(2)
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5", protocol="machado")
    row = {"protocol": "machado", "epsilon": 0.0, "mean": 1.0, "ci95": [1, 1], "episodes": 1, "median": 1}
    (run_dir / "evaluations.jsonl").write_text(json.dumps({"env_step": 4999, **row}) + "\n")  # another network's
    out = tmp_path / "deep" / "out"
    assert export.main([str(run_dir), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    card = (out / export.CARD).read_text()
    assert "no game was evaluated at env step 5,000, so the card has no score" in shown
    assert "Not evaluated" in card
    assert front_matter(card)["model-index"] == []
    assert {"ALE/Breakout-v5", "atari", "dqn"} <= set(front_matter(card)["tags"])
    assert "`machado`: sticky actions (0.25), no no-ops, all 18 actions" in card
    comparison = re.search(r"on 256 observations of real play.* by at most ([0-9.e-]+) \(tolerance 1.0e-04\)", card)
    assert comparison is not None
    assert float(comparison[1]) < 1e-5
    assert "the same in 256 of them" in card
    seen = real_play(Policy.load(out, seed=0), 60)
    assert (seen.shape, seen.dtype) == ((60, 4, 84, 84), np.uint8)
    assert len(np.unique(seen[:, 3], axis=0)) > 30, "the game continues"
    before = (out / ONNX).stat().st_mtime_ns
    assert export.main([str(run_dir), "--out", str(out)]) == 0, "over a former export"
    assert (out / ONNX).stat().st_mtime_ns > before


def test_the_card_says_under_what_conditions_a_score_was_made() -> None:
    _, header = make("nature")
    row = {"epsilon": 0.05, "episodes": 30, "mean": 39.1, "ci95": [33.3, 45.3], "median": 36.5}
    rows = [
        {**row, "protocol": "nature", "full_action_space": False, "human_normalized": 1.2986},
        {**row, "protocol": "machado", "full_action_space": False, "iqm": 38.0, "iqm_ci95": [33.0, 44.0]},
    ]
    card = model_card(header, rows, {}, "")
    assert "| nature, epsilon 0.05 | 30 | 39.10 (33.30 to 45.30) |  | 36.5 | 1.299 |" in card
    assert "| machado with 4 actions, epsilon 0.05 | 30 | 39.10 (33.30 to 45.30) | 38.00 (33.00 to 44.00) |" in card
    metrics = front_matter(card)["model-index"][0]["results"][0]["metrics"]
    assert [metric["name"] for metric in metrics] == [
        "mean score, nature, epsilon 0.05",
        "mean score, machado with 4 actions, epsilon 0.05",
    ]


def test_a_file_with_other_q_values_is_not_exported(trained: Path) -> None:
    right = Policy.load(trained, seed=0)

    def shifted(by: float) -> Policy:
        return Policy(right.header, lambda observations: right.q_values(observations) + np.float32(by))

    assert "differ from the network's by at most" in compare(right, right, shifted(1e-5))
    for wrong in (shifted(0.01), shifted(float("nan"))):
        with pytest.raises(CommandFailed, match=r"policy\.onnx differs from the network by"):
            compare(right, right, wrong)
    with pytest.raises(CommandFailed, match=r"policy\.safetensors does not reproduce"):
        compare(right, shifted(1e-6), right)


# ---------------------------------------------------------------------- played and evaluated


def test_evaluate_plays_the_same_games_from_either_file(exported: Path, trained: Path, tmp_path: Path) -> None:
    flags = ["--episodes", "2", "--num-workers", "1", "--epsilon", "0.3", "--seed", "3"]
    assert evaluate.main([str(trained), *flags]) == 0
    (*_, expected) = read_rows(trained / "evaluations.jsonl")
    shutil.copytree(exported, tmp_path / "export")
    for path in (SAFETENSORS, ONNX, ""):
        assert evaluate.main([str(tmp_path / "export" / path), *flags]) == 0
    rows = read_rows(tmp_path / "export" / "evaluations.jsonl")
    assert [(row["env_step"], row["returns"]) for row in rows] == [(expected["env_step"], expected["returns"])] * 3


@pytest.mark.parametrize("name", [SAFETENSORS, ONNX])
def test_play_films_either_file(name: str, exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / name, tmp_path)
    assert play.main([str(tmp_path / name), "--seed", "1"]) == 0
    (film,) = (tmp_path / "videos").iterdir()
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 8


# ---------------------------------------------------------------------- wrong input


def test_a_mistake_is_one_line_before_torch_is_imported(trained: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")
    (tmp_path / "truncated.onnx").write_bytes((exported / ONNX).read_bytes()[:5000])
    elsewhere = make_run(tmp_path / "elsewhere", "tests.stubs:Catch-v0")
    assert export.main([str(elsewhere), "--out", str(tmp_path / "catch")]) == 0
    mistakes = [
        ["export", str(tmp_path / "full")],
        ["export", str(trained), "--episodes", "-1"],
        ["export", str(trained), "--out", str(tmp_path / "full")],
        ["export", str(trained), "--out", str(tmp_path / "truncated.onnx")],
        ["export", str(trained), "--out", "/proc/nope"],
        ["evaluate", str(tmp_path / "truncated.onnx")],
        ["play", str(tmp_path / "truncated.onnx")],
        ["evaluate", str(exported), "--checkpoint", "best"],
        ["evaluate", str(tmp_path / "catch")],
    ]
    said = refusals(mistakes, without={"torch", "labml", "tests.stubs"})
    assert [line.replace(str(tmp_path), "").replace(str(exported), "") for line in said] == [
        "/full is not a run directory: it has no config.json",
        "--episodes is -1; it must be from 0 to 100000",
        "--out /full is not empty and not an export; try a new directory",
        "--out /truncated.onnx is not empty and not an export; try a new directory",
        "--out /proc/nope: No such file or directory",
        "/truncated.onnx is not a valid exported policy: not an ONNX file of atari_dqn (InvalidProtobuf)",
        "/truncated.onnx is not a valid exported policy: not an ONNX file of atari_dqn (InvalidProtobuf)",
        "--checkpoint best: /policy.safetensors holds one network; only a run has several",
        "/catch/policy.safetensors: trained with tests.stubs:Catch-v0, and a file is not trusted to name a module; try"
        " the run that it was exported from or, in a program, import tests.stubs first",
        "[]",
    ]
    assert (tmp_path / "full" / "README.md").read_text() == "mine"


def test_a_missing_checkpoint_is_named(trained: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint '7'"):
        export.main([str(trained), "--checkpoint", "7"])


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "safetensors"])
def test_a_missing_extra_is_one_line(package: str, trained: Path) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from atari_dqn.cli.command import CommandFailed, run_command\n"
        "from atari_dqn.export import main\n"
        f"run_command(lambda: main([{str(trained)!r}]))"
    )
    result = python("-c", program)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert 'pip install "atari_dqn[export]"' in result.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_actions", 18), ("first_action", 1), ("env_id", "ALE/Nonesuch-v5"), ("env_id", "Breakout-v4")],
)
def test_a_file_that_misstates_its_env_is_not_played(field: str, value: Any, tmp_path: Path) -> None:
    """An action out of range hangs an Atari env for good."""
    network, header = make("nature")
    plain = network.reference()
    if field == "num_actions":
        plain.advantage = torch.nn.Linear(256, 18)
    header = dataclasses.replace(header, **{field: value})
    (tmp_path / SAFETENSORS).write_bytes(to_safetensors(header, plain))
    for command in (evaluate, play):
        with pytest.raises(ConfigError) as refused:
            command.main([str(tmp_path)])
        assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- the recipe


def test_the_recipes_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the directory of a run; its game is cut short, as an untrained network may never end one."""
    (example,) = [block for block in blocks(RECIPES.read_text(), "python") if "Policy" in block]
    torch.manual_seed(2)
    make_run(tmp_path / "runs" / "breakout", "ALE/Breakout-v5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gym, "make", functools.partial(gym.make, max_num_frames_per_episode=400))
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    assert namespace["over"]
    assert namespace["score"] >= 0
    assert isinstance(namespace["policy"], Policy)


def test_an_evaluation_that_was_edited_is_named_before_anything_is_written(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    (run_dir / "evaluations.jsonl").write_text('{"env_step": 5000, "me\n{}\n')
    with pytest.raises(ConfigError, match=r"evaluations\.jsonl, line 1, is not a row"):
        export.main([str(run_dir)])
    assert not (run_dir / "export").exists()


# ---------------------------------------------------------------------- every network


@pytest.mark.parametrize("network", ["small", pytest.param("impala", marks=pytest.mark.long)])
def test_a_network_is_trained_resumed_exported_and_played(network: str, tmp_path: Path) -> None:
    flags = ["--env-id", "tests.stubs:Catch-v0", "--network", network, "--run-dir", "run", "--batch-size", "4"]
    flags += ["--num-workers", "1", "--envs-per-worker", "2", "--learning-starts", "40", "--replay-capacity", "256"]
    training = [sys.executable, "-m", "atari_dqn.train", *flags, "--torch-threads", "1", "--total-env-steps"]
    root = Path(__file__).parents[1]
    for env_steps in ("80", "120"):
        result = run([*training, env_steps, "--run-dir", str(tmp_path / "run")], root, timeout=300)
        assert result.returncode == 0, result.stderr
    resumed = load_policy(tmp_path / "run")
    assert (resumed.env_step, resumed.config.network.network) == (120, network)
    other = run([*training, "120", "--run-dir", str(tmp_path / "run"), "--network", "nature"], root)
    assert other.returncode == 2
    assert f"--network {network}" in other.stderr
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    for file in (SAFETENSORS, ONNX):
        policy = Policy.load(tmp_path / "out" / file)
        env = policy.make_env()
        observation, _ = env.reset(seed=1)
        expected = resumed.q(np.asarray(observation)[None])[0]
        np.testing.assert_allclose(policy.q_values(observation), expected, atol=0 if file == SAFETENSORS else 1e-4)
        over, score = False, 0.0
        while not over:
            observation, reward, over, *_ = env.step(policy.act(observation))
            score += float(reward)
        assert score in (-1, 1)
