"""Whether a run met its claim, measured on handmade run directories; and the command, on short real runs."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from atari_dqn.cli.command import INTERRUPTED, CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.lock import is_training
from experiments.__main__ import all_experiments
from experiments.claims import report
from experiments.claims.__main__ import main
from experiments.claims.measure import CLAIMS, GAMES, Claim, Moment, Outcome, finished, measure
from experiments.claims.report import factors, table, write

ROOT = Path(__file__).parents[2]


def made(run_dir: Path, name: str, scores: list[float], *, seed: int = 1, seconds: float = 0.0, after: float = 0.0,
         evaluated: dict[int, float] | None = None) -> Path:  # fmt: skip
    """Write a finished run of experiment `name`: a game of `scores[i]` ends every 100 env steps, 1 s apart; `evaluated`
    holds means during training by env step; the evaluation afterwards has a mean of `after`."""
    config = all_experiments()[name].CONFIG.replace(seed=seed)
    run_dir.mkdir(parents=True)
    games = [
        {"env_step": 100 * i, "episode": i, "env": 0, "return": score, "length": 9, "time": float(i)}
        for i, score in enumerate(scores, start=1)
    ]
    steps = sorted({*(evaluated or {}), 100 * len(scores)})
    metrics = [{"env_step": step, "update": step // 10, "time": seconds or step / 100} for step in steps]
    evaluations = [evaluation(step, mean, 5) for step, mean in (evaluated or {}).items()]
    evaluations.append(evaluation(steps[-1], after, GAMES))
    (run_dir / "config.json").write_text(json.dumps(config.to_dict()))
    for file, rows in (("episodes", games), ("metrics", metrics), ("evaluations", evaluations)):
        (run_dir / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def evaluation(env_step: int, mean: float, games: int) -> dict[str, Any]:
    return {"env_step": env_step, "mean": mean, "ci95": [mean - 1, mean + 1], "returns": [mean] * games, "time": 9.9}


def test_a_game_of_training_meets_a_claim_of_episodes(tmp_path: Path) -> None:
    run_dir = made(tmp_path / "run", "cartpole_pytorch_tutorial", [9.0, 499.0, 500.0, 500.0], seed=7, after=120.0)
    outcome = measure(run_dir, CLAIMS["cartpole_pytorch_tutorial"])
    assert outcome.event == Moment(env_step=300, episode=3, update=299 - 128, seconds=3.0)
    assert (outcome.met, outcome.seed, outcome.highest) == (True, 7, 500.0)
    assert outcome.end == Moment(400, 4, 40, 4.0)
    assert outcome.last_games == (9 + 499 + 500 + 500) / 4
    assert outcome.afterwards == (120.0, 119.0, 121.0)


def test_a_claim_met_too_late_is_not_met_and_its_means_stop_at_the_limit(tmp_path: Path) -> None:
    scores = [10.0] * 550 + [20.0] * 50 + [500.0] * 100
    outcome = measure(made(tmp_path / "run", "cartpole_pytorch_tutorial", scores), CLAIMS["cartpole_pytorch_tutorial"])
    assert outcome.event is not None
    assert (outcome.event.episode, outcome.met) == (601, False)
    assert outcome.last_games == 15.0
    assert outcome.highest == 500.0


def test_updates_are_counted_from_where_learning_starts(tmp_path: Path) -> None:
    """The article counts training steps: not the 1,000 that fill its replay, nor the last one of the game."""
    claim = CLAIMS["cartpole_lightning"]
    for steps, met in ((25, True), (26, False)):
        outcome = measure(made(tmp_path / str(steps), "cartpole_lightning", [9.0] * (steps - 1) + [200.0]), claim)
        assert outcome.event is not None
        assert (outcome.event.update, outcome.met) == (100 * steps - 1 - 1_000, met)


def test_a_score_that_is_never_reached_is_not_met(tmp_path: Path) -> None:
    outcome = measure(made(tmp_path / "run", "cartpole_lightning", [199.0]), CLAIMS["cartpole_lightning"])
    assert (outcome.event, outcome.met, outcome.highest) == (None, False, 199.0)


def test_lunarlanders_claim_is_met_by_five_games_and_not_by_the_hundred_afterwards(
    tmp_path: Path,
) -> None:
    claim = CLAIMS["lunarlander_di_engine"]
    run_dir = made(
        tmp_path / "run", "lunarlander_di_engine", [-90.0] * 6, evaluated={200: 199.0, 400: 201.0}, after=150.0
    )
    outcome = measure(run_dir, claim)
    assert outcome.event == Moment(env_step=400, episode=4, update=(400 - 8 - 64) * 10 // 64, seconds=4.0)
    assert outcome.met
    assert outcome.afterwards[0] == 150.0
    never = made(tmp_path / "never", "lunarlander_di_engine", [-90.0] * 6, evaluated={200: 199.0}, after=250.0)
    assert measure(never, claim).event is None


def test_our_own_claim_is_met_by_the_evaluation_afterwards(tmp_path: Path) -> None:
    claim = CLAIMS["cartpole"]
    assert measure(made(tmp_path / "a", "cartpole", [9.0], after=475.0), claim).met
    assert not measure(made(tmp_path / "b", "cartpole", [500.0], after=474.9), claim).met


def test_a_claim_in_seconds_is_met_by_the_end_of_the_run(tmp_path: Path) -> None:
    for seconds, met in ((15.0, True), (15.1, False)):
        run_dir = made(tmp_path / str(seconds), "cartpole_replay", [9.0], seconds=seconds)
        assert measure(run_dir, CLAIMS["cartpole_replay"]).met == met


def test_a_run_is_finished_when_its_evaluation_of_a_hundred_games_is_there(tmp_path: Path) -> None:
    run_dir = made(tmp_path / "run", "lunarlander_di_engine", [9.0], evaluated={100: 1.0})
    assert finished(run_dir)
    (run_dir / "evaluations.jsonl").write_text(json.dumps(evaluation(100, 1.0, 5)) + "\n")
    assert not finished(run_dir)
    assert not finished(tmp_path / "absent")


def test_the_results_list_every_run_including_failures(tmp_path: Path) -> None:
    runs, claim = tmp_path / "runs", CLAIMS["cartpole_lightning"]
    nothing: dict[str, list[Outcome]] = {name: [] for name in CLAIMS}
    outcomes = nothing | {
        "cartpole_lightning": [
            measure(made(runs / f"cartpole_lightning-{seed}", "cartpole_lightning", scores, seed=seed), claim)
            for seed, scores in ((1, [9.0] * 20 + [200.0] * 9), (2, [9.0] * 40), (3, [9.0] * 40 + [210.0]))
        ],
        "cartpole_no_replay": [measure(made(runs / "cartpole_no_replay-1", "cartpole_no_replay", [9.0], seconds=240.0),
                                       CLAIMS["cartpole_no_replay"])],
        "cartpole_replay": [measure(made(runs / "cartpole_replay-1", "cartpole_replay", [9.0], seconds=60.0),
                                    CLAIMS["cartpole_replay"])],
    }  # fmt: skip
    (tmp_path / "out").mkdir()
    files = write(outcomes, runs, tmp_path / "out")
    assert [file.name for file in files] == ["claims.json", "claims.md", "claims.png"]
    lines = (tmp_path / "out" / "claims.md").read_text().splitlines()
    assert any(line.startswith("| cartpole_lightning |") and "| 1 of 3 |" in line for line in lines)
    assert "| 3,100 (2,100 to 4,100) |" in "\n".join(lines)
    for seed, met in ((1, "yes"), (2, "no"), (3, "late")):
        assert any(line.startswith(f"| cartpole_lightning | {seed} | {met} |") for line in lines)
    assert "takes 4 times as long" in "\n".join(lines)
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert set(found["experiments"]) == {"cartpole_lightning", "cartpole_no_replay", "cartpole_replay"}
    assert found["factors"] == {"run": 4.0}
    assert found["processor"]
    assert (tmp_path / "out" / "claims.png").read_bytes().startswith(b"\x89PNG")


def test_every_seed_is_drawn_however_many(tmp_path: Path) -> None:
    name, axes = "cartpole_lightning", Figure().subplots()
    runs = [made(tmp_path / f"{name}-{seed}", name, [9.0] * 20, seed=seed) for seed in range(1, 12)]
    report._draw_panel(axes, name, [measure(run_dir, CLAIMS[name]) for run_dir in runs], tmp_path)
    assert axes.get_legend_handles_labels()[1] == [f"seed {seed}" for seed in range(1, 12)]


def test_no_more_games_are_drawn_than_can_be_told_apart(tmp_path: Path) -> None:
    name, axes = "cartpole_lightning", Figure().subplots()
    for seed, games in ((1, report.DRAWN), (2, report.DRAWN + 1), (3, 19)):
        made(tmp_path / f"{name}-{seed}", name, [9.0] * games, seed=seed)
    found = [measure(tmp_path / f"{name}-{seed}", CLAIMS[name]) for seed in (1, 2, 3)]
    report._draw_panel(axes, name, found, tmp_path)
    dots = [len(np.asarray(line.get_xdata())) for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [report.DRAWN, (report.DRAWN + 2) // 2, 19]


def test_there_is_no_factor_without_runs_of_both_kinds() -> None:
    assert factors({}) == {}
    assert "times as long" not in table({})


def test_a_game_is_mastered_when_twenty_games_in_a_row_have_the_mark_as_their_mean(tmp_path: Path) -> None:
    """The 20 games up to game 45, 11 of 450 and 9 of 500, have a mean of 472.5; one more of 500 makes it 475."""
    scores = [100.0] * 25 + [450.0] * 11 + [500.0] * 20
    found = measure(made(tmp_path / "a", "cartpole_replay", scores), CLAIMS["cartpole_replay"])
    assert found.mastered is not None
    assert (found.mastered.episode, found.mastered.seconds) == (46, 46.0)
    almost = measure(made(tmp_path / "b", "cartpole_replay", scores[:45]), CLAIMS["cartpole_replay"])
    assert almost.mastered is None
    exactly = [493.0] * 18 + [313.0] * 2  # twentieths of these add up to less than 475
    assert measure(made(tmp_path / "d", "cartpole_replay", exactly), CLAIMS["cartpole_replay"]).mastered is not None
    other = made(tmp_path / "c", "lunarlander_di_engine", scores)
    assert measure(other, CLAIMS["lunarlander_di_engine"]).mastered is None


def test_the_factor_of_mastery_is_of_the_seeds_that_mastered_it(tmp_path: Path) -> None:
    good, bad = [500.0] * 20, [9.0] * 20
    outcomes = {
        name: [
            measure(made(tmp_path / f"{name}-{seed}", name, scores, seed=seed), CLAIMS[name])
            for seed, scores in enumerate(games, start=1)
        ]
        for name, games in {"cartpole_no_replay": [[9.0] * 40 + good, bad], "cartpole_replay": [good, good]}.items()
    }
    # At game 59 one of the twenty is still of 9, and their mean 475.45.
    assert factors(outcomes)["mastered"] == 59 / 20
    assert "it takes 2.95 times as long (cartpole_no_replay: 59 s, in 1 of 2 seeds and" in table(outcomes)


def test_every_claim_is_of_an_experiment_and_every_small_experiment_has_one() -> None:
    small = {
        name
        for name, module in all_experiments().items()
        if not module.CONFIG.env.env_id.startswith("ALE/")
    }  # fmt: skip
    assert set(CLAIMS) == small
    assert all(isinstance(claim, Claim) and claim.says for claim in CLAIMS.values())


SHORT = ("--total-env-steps", "400", "--learning-starts", "150", "--log-interval", "100")


def test_the_command_runs_what_is_not_finished_and_only_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--only", "cartpole_lightning", "--seeds", "3"]
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    (tmp_path / "runs" / "cartpole_lightning-copy2").mkdir(parents=True)  # not a run of this command
    assert main([*arguments, *places], SHORT) == 0
    log = tmp_path / "runs" / "cartpole_lightning-3.log"
    assert "done: 400 env steps" in log.read_text()
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    (outcome,) = found["experiments"]["cartpole_lightning"]["outcomes"]
    assert (outcome["seed"], outcome["end"]["env_step"], outcome["met"]) == (3, 400, False)
    with pytest.raises(ConfigError, match="cartpole_lightning-3 is a run with --log-interval 100, but"):
        main([*arguments, *places], SHORT[:4])
    before = log.read_text()
    (tmp_path / "out" / "claims.md").unlink()
    assert main([*arguments, *places], SHORT) == 0
    assert log.read_text() == before
    assert (tmp_path / "out" / "claims.md").exists()


@pytest.mark.long
def test_runs_with_claims_in_seconds_run_alone(tmp_path: Path) -> None:
    """They come first, each up to the end of its evaluation, although three could run at once."""
    runs, names = tmp_path / "runs", ("cartpole_lightning", "cartpole_replay", "cartpole_no_replay")
    places = ["--runs", str(runs), "--out", str(tmp_path / "out"), "--at-once", "3"]
    assert main(["--only", *names, "--seeds", "3", *places], SHORT) == 0
    other, *alone = (runs / f"{name}-3" for name in names)
    for before, after in itertools.pairwise((*alone, other)):
        began = (after / "config.json").stat().st_mtime_ns
        assert (before / "evaluations.jsonl").stat().st_mtime_ns < began


def test_a_log_that_cannot_be_written_fails_its_run(tmp_path: Path) -> None:
    (tmp_path / "runs" / "cartpole_replay-1.log").mkdir(parents=True)
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(CommandFailed, match=r"cartpole_replay with seed 1 cannot start: .*Is a directory"):
        main(["--only", "cartpole_replay", "--seeds", "1", *places], SHORT)


def test_a_run_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(CommandFailed, match=r"cartpole_replay with seed 1 ended with exit code 2: see .*\.log"):
        main(["--only", "cartpole_replay", "--seeds", "1", *places], ("--learning-rate", "-1"))
    assert not list((tmp_path / "out").iterdir())


def test_a_mistake_gets_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.claims", "--only", "pong"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no experiment with a claim" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises(ConfigError, match="--seeds is -1"):
        main(["--seeds", "-1"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file/out: Not a directory"):
        main(["--runs", str(tmp_path), "--out", str(tmp_path / "file" / "out")])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_run_outlives_the_command_and_each_saves_its_state(
    number: signal.Signals, tmp_path: Path, popen: Callable[..., subprocess.Popen[str]]
) -> None:
    command = [sys.executable, "-m", "experiments.claims", "--only", "cartpole_no_replay", "--seeds", "1"]
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    claims = popen([*command, *places], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = tmp_path / "runs" / "cartpole_no_replay-1" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert claims.poll() is None
        time.sleep(0.1)
    claims.send_signal(number)
    _, said = claims.communicate(timeout=300)
    ended = (-number, "") if number == signal.SIGKILL else (INTERRUPTED, "interrupted\n")
    assert (claims.returncode, said) == ended
    deadline = time.monotonic() + 300
    while is_training(metrics.parent):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "state saved" in metrics.parent.with_suffix(".log").read_text()
    assert not (tmp_path / "out" / "claims.md").exists()
