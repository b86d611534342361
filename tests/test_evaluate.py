"""`atari-dqn evaluate` on run directories made by hand."""

from __future__ import annotations

import dataclasses
import os
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from atari_dqn import Policy, evaluate, play
from atari_dqn.agent.network import make_network
from atari_dqn.cli import output as status
from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import PROTOCOLS, protocol_for
from atari_dqn.evaluation.evaluation import evaluate as play_games
from atari_dqn.evaluation.intervals import interval, iqm, mean
from atari_dqn.policy.source import playable_source
from atari_dqn.policy.trained import TrainedNetwork, load_policy
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.records import read_rows
from tests.run_dirs import make_run, make_settings


def test_one_condition_is_one_row_of_the_card_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    flags = ["--episodes", "5", "--num-workers", "2", "--seed", "4", "--epsilon", "0.01"]
    assert evaluate.main([str(run_dir), *flags]) == 0
    (row,) = read_rows(run_dir / "evaluations.jsonl")
    assert (row["env_step"], row["episodes"], row["seed"], row["epsilon"]) == (5000, 5, 4, 0.01)
    trained = load_policy(run_dir)
    same = play_games(
        trained.network, trained.spec, PROTOCOLS["nature"], episodes=5, num_envs=2, epsilon=0.01, seed=4,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert row["returns"] == row["lengths"] == same.returns.tolist(), "CartPole pays 1 a step"
    assert row["mean"] == np.mean(row["returns"])
    assert row["iqm"] == pytest.approx(np.mean(sorted(row["returns"])[1:-1]))
    returns = np.array(row["returns"])
    for statistic, key in ((mean, "ci95"), (iqm, "iqm_ci95")):
        width = row[key][1] - row[key][0]
        assert row[key] == pytest.approx(np.array(interval(statistic, returns)), abs=0.15 * width + 0.2)
    assert row["ci95"] != row["iqm_ci95"]
    assert row["human_normalized"] is None
    shown = capsys.readouterr().out
    for score in (row["mean"], row["iqm"], row["median"]):
        assert f"{score:,.2f}" in shown
    for low, high in (row["ci95"], row["iqm_ci95"], (min(row["returns"]), max(row["returns"]))):
        assert f"{low:,.2f} to {high:,.2f}" in shown
    assert "nature" not in shown, "a protocol means nothing to CartPole"


def test_the_card_of_a_game_is_both_protocols_with_each_epsilon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_dir = make_run(tmp_path / "run", "ALE/Pong-v5")
    short = {name: dataclasses.replace(protocol, max_episode_frames=200) for name, protocol in PROTOCOLS.items()}
    for name, protocol in short.items():
        monkeypatch.setitem(PROTOCOLS, name, protocol)
    assert evaluate.EvaluateCommand(run=run_dir).epsilon == (0.0, 0.01, 0.05)
    assert evaluate.main([str(run_dir), "--episodes", "2", "--num-workers", "1", "--epsilon", "0", "0.05"]) == 0
    rows = read_rows(run_dir / "evaluations.jsonl")
    conditions = [(row["protocol"], row["epsilon"]) for row in rows]
    assert conditions == [(name, epsilon) for name in ("nature", "machado") for epsilon in (0.0, 0.05)]
    assert all(row["truncated"] == 2 and row["lengths"] == [50, 50] for row in rows)
    assert not any(row["full_action_space"] for row in rows)
    shown = capsys.readouterr().out
    card = shown[shown.index("2 games a row") :]
    assert [line.split()[0] for line in card.splitlines() if "0.00" in line and "to" not in line] == [
        "0", "0.05", "0", "0.05",
    ]  # fmt: skip
    assert card.count("2 cut") == 4
    assert f"{20.7 / 35.3:.2f}" in card, "human-normalised"
    notes = " ".join(card.split())
    assert "minimal set of 6 actions under the other protocol" in notes
    assert "limit of 200 frames" in notes


def test_what_cannot_be_written_is_told_before_the_first_game_and_a_lost_score_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    flags = [str(run_dir), "--episodes", "1", "--num-workers", "1", "--epsilon", "0"]
    file = run_dir / "evaluations.jsonl"
    file.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot write \S+evaluations.jsonl: Is a directory; try [^\n]+$"):
        evaluate.main(flags)
    assert capsys.readouterr().out == ""
    file.rmdir()
    file.symlink_to("/dev/full")  # which can be opened
    with pytest.raises(CommandFailed, match=r"^cannot write \S+evaluations.jsonl: [^\n]+$"):
        evaluate.main(flags)
    assert "1 games a row" in capsys.readouterr().out


def test_without_a_path_the_newest_run_is_played_and_a_folders_runs_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--episodes", "1", "--num-workers", "1", "--epsilon", "0"]
    with pytest.raises(ConfigError, match=r"^no run with a checkpoint in runs; name a run directory$"):
        evaluate.main(flags)
    runs = [Path("runs") / name for name in ("9", "several/seed-2", "10", "started")]
    for age, run_dir in enumerate(runs):
        make_settings(run_dir, "CartPole-v1") if run_dir.name == "started" else make_run(run_dir, "CartPole-v1")
        os.utime(run_dir / "config.json", (age, age))
    assert evaluate.main(flags) == 0
    assert "the newest run: runs/10" in capsys.readouterr().out, "neither the last by name nor one without a checkpoint"
    os.utime(runs[1] / "config.json")
    assert play.main([]) == 0
    assert "the newest run: runs/several/seed-2" in capsys.readouterr().out
    listed = "the newest runs in it: runs/several/seed-2, runs/started, runs/10, runs/9"
    for command in (evaluate, play):
        with pytest.raises(ConfigError, match=f"^runs is not a run directory: .*{listed}$"):
            command.main(["runs"])


def test_every_reader_loads_the_checkpoint_that_is_asked_for_and_the_newest_by_number(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1", env_step=900)
    first = load_policy(run_dir)
    last = make_network(first.spec, first.config.network)
    weights = {"online": last.state_dict(), "target": first.network.state_dict()}
    CheckpointStore(run_dir).save(1_000, Snapshot({}, weights, {}, torch.zeros(1, 1)), score=None)
    seen = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    for which, step, network in (("latest", 1_000, last), ("1000", 1_000, last), ("900", 900, first.network)):
        expected = TrainedNetwork(first.config, first.spec, network, step).q(seen)
        np.testing.assert_array_equal(Policy.load(run_dir, checkpoint=which).q_values(seen), expected)
        quick = ["--episodes", "1", "--num-workers", "1", "--epsilon", "0", "--checkpoint", which]
        assert evaluate.main([str(run_dir), *quick]) == play.main([str(run_dir), "--checkpoint", which]) == 0
        assert read_rows(run_dir / "evaluations.jsonl")[-1]["env_step"] == step
        assert (run_dir / "videos" / f"{step}-seed0.mp4").exists()


@pytest.mark.parametrize("inside", ["config.json", "checkpoints", "checkpoints/5000", "checkpoints/best"])
def test_a_part_of_a_run_stands_for_it(inside: str, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    source = playable_source(run_dir / inside)
    assert (source.path, source.home) == (run_dir, run_dir)
    assert source.checkpoint == (inside.rpartition("/")[2] if "/" in inside else "latest")


def test_an_env_other_than_atari_has_a_row_for_each_epsilon(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    flags = ["--episodes", "1", "--num-workers", "1", "--epsilon", "0.5", "0", "0.5"]
    assert evaluate.main([str(run_dir), *flags]) == 0
    assert [row["epsilon"] for row in read_rows(run_dir / "evaluations.jsonl")] == [0.5, 0.0]


def test_the_newest_valid_checkpoint_is_evaluated_and_a_corrupt_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    whole = run_dir / "checkpoints/5000"
    shutil.copytree(whole, run_dir / "checkpoints/6000")
    (run_dir / "checkpoints/6000/learner.safetensors").write_bytes(b"torn")
    assert evaluate.main([str(run_dir), "--episodes", "1", "--num-workers", "1", "--epsilon", "0"]) == 0
    assert read_rows(run_dir / "evaluations.jsonl")[0]["env_step"] == 5000
    assert "checkpoints/6000 skipped: learner.safetensors does not match" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(ConfigError, match="6000 is corrupt: learner"):
        evaluate.main([str(run_dir), "--checkpoint", "6000"])


@pytest.mark.parametrize(("trained", "played", "full"), [("nature", "machado", False), ("machado", "nature", True)])
def test_a_network_keeps_its_actions_under_another_protocol(
    trained: str, played: str, full: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5", protocol=trained)
    flags = ["--protocol", played, "--episodes", "1", "--num-workers", "1", "--epsilon", "1"]
    assert evaluate.main([str(run_dir), *flags]) == 0
    (row,) = read_rows(run_dir / "evaluations.jsonl")
    assert (row["protocol"], row["full_action_space"]) == (played, full)
    assert row["lengths"][0] > 100
    protocol = protocol_for(played, trained)
    assert protocol.repeat_action_probability == PROTOCOLS[played].repeat_action_probability
    assert protocol.noop_max == PROTOCOLS[played].noop_max
    kept = "all 18 actions" if full else "the game's minimal set of 4 actions"
    assert f"the network keeps {kept} under the other" in " ".join(capsys.readouterr().out.split())


def test_progress_is_shown_soon_where_the_output_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status.FIRST_LINE_SECONDS < 10
    console = Console(file=StringIO())
    assert not console.is_terminal
    monkeypatch.setattr(status, "FIRST_LINE_SECONDS", 0.0)
    with status.StatusLine(console, "starting") as line:
        line.update("1 of 2 games")
        line.update("2 of 2 games")
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == "1 of 2 games\n"
