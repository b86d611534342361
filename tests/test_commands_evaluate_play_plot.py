"""`atari-dqn evaluate`, `play` and `plot` as a user meets them, on run directories made by hand."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from atari_dqn import evaluate, play, plot, status
from atari_dqn.__main__ import COMMANDS, run
from atari_dqn.checkpoint import CheckpointStore, Policy, Snapshot
from atari_dqn.config import ConfigError, TrainConfig
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.make import PROTOCOLS, env_spec
from atari_dqn.network import make_network
from atari_dqn.runs import read_rows


def make_run(run_dir: Path, env_id: str, env_step: int = 5000, **settings: Any) -> Path:
    """A run directory with one checkpoint of an untrained network."""
    config = TrainConfig().replace(env_id=env_id, **settings)
    spec = env_spec(env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(config.to_dict()))
    learner = {"online": make_network(spec, config.network).state_dict()}
    CheckpointStore(run_dir).save(env_step, Snapshot({}, learner, {}, torch.zeros(1, 1)), score=None)
    return run_dir


def log(
    run_dir: Path, scores: dict[int, float], evaluations: dict[int, tuple[float, float, float]] | None = None
) -> None:
    rows = [{"env_step": 0, "update": 0}] + [{"env_step": s, plot.SCORE: score} for s, score in scores.items()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = [
        {"env_step": step, "protocol": "nature", "mean": mean, "ci95": [low, high]}
        for step, (low, mean, high) in (evaluations or {}).items()
    ]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


# ---------------------------------------------------------------------- the one command


def test_help_lists_every_command_and_each_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run([name, "--help"])
    assert ending.value.code == 0
    assert f"atari-dqn {name}" in capsys.readouterr().out


def test_an_unknown_command_is_one_line_with_a_suggestion_and_exit_code_2() -> None:
    result = python("-m", "atari_dqn", "evalaute", "runs/x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: unknown command 'evalaute'; did you mean evaluate?\n"


def test_no_command_is_one_line() -> None:
    with pytest.raises(ConfigError, match="one of train, tune, evaluate, play, plot, dashboard, bench"):
        run([])


# ---------------------------------------------------------------------- wrong input


def test_a_mistake_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "CartPole-v1")
    mistakes = [
        ["evaluate", str(tmp_path)],
        ["evaluate", str(tmp_path / "run"), "--episodes", "0"],
        ["evaluate", str(tmp_path / "run"), "--epsilon", "1.5"],
        ["play", str(tmp_path / "nowhere")],
        ["play", str(tmp_path / "run"), "--epsilon", "-1"],
        ["plot", str(tmp_path)],
        ["plot", str(tmp_path / "run")],
        ["plot"],
    ]
    probe = (
        "import sys\n"
        "from atari_dqn.__main__ import run\n"
        "from atari_dqn.config import ConfigError\n"
        f"for argv in {mistakes!r}:\n"
        "    try:\n"
        "        run(argv)\n"
        "    except ConfigError as error:\n"
        "        assert '\\n' not in str(error)\n"
        "        print(error)\n"
        "print(sorted({'torch', 'gymnasium', 'labml'} & set(sys.modules)))\n"
    )
    result = python("-c", probe)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{tmp_path} is not a run directory: it has no config.json",
        "--episodes is 0; it must be from 1 to 100000",
        "--epsilon is 1.5; it must be from 0 to 1",
        f"{tmp_path / 'nowhere'} is not a run directory: it has no config.json",
        "--epsilon is -1; it must be from 0 to 1",
        f"{tmp_path} is not a run directory: it has no config.json",
        f"{tmp_path / 'run'} has no score to draw yet: no game of it is finished",
        "name at least one run directory, such as runs/Breakout-1-...",
        "[]",
    ]


@pytest.mark.parametrize("command", [evaluate, play])
def test_a_missing_checkpoint_is_named(command: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint '7'"):
        command.main([str(make_run(tmp_path / "run", "CartPole-v1")), "--checkpoint", "7"])


def test_importing_a_command_does_not_import_torch_which_every_worker_would_pay_for() -> None:
    probe = "import sys, atari_dqn.evaluate, atari_dqn.play; sys.exit('torch' in sys.modules)"
    assert python("-c", probe).returncode == 0


# ---------------------------------------------------------------------- evaluate


def test_evaluate_prints_a_table_and_adds_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    assert evaluate.main([str(run_dir), "--episodes", "5", "--num-workers", "2", "--seed", "4"]) == 0
    assert evaluate.main([str(run_dir), "--episodes", "2", "--num-workers", "1", "--epsilon", "0.5"]) == 0
    first, second = read_rows(run_dir / "evaluations.jsonl")
    assert (first["env_step"], first["episodes"], first["seed"], first["epsilon"]) == (5000, 5, 4, 0.01)
    assert first["returns"] == first["lengths"], "CartPole pays 1 a step"
    assert first["mean"] == np.mean(first["returns"])
    assert first["ci95"][0] <= first["mean"] <= first["ci95"][1]
    assert first["human_normalized"] is None
    assert (second["episodes"], second["epsilon"]) == (2, 0.5)
    shown = capsys.readouterr().out
    assert f"{first['mean']:,.2f}" in shown
    assert f"{first['ci95'][0]:,.2f} to {first['ci95'][1]:,.2f}" in shown


def test_the_newest_whole_network_is_evaluated_and_a_damaged_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    whole = run_dir / "checkpoints/5000"
    shutil.copytree(whole, run_dir / "checkpoints/6000")
    (run_dir / "checkpoints/6000/learner.pt").write_bytes(b"torn")
    assert evaluate.main([str(run_dir), "--episodes", "1", "--num-workers", "1"]) == 0
    assert read_rows(run_dir / "evaluations.jsonl")[0]["env_step"] == 5000
    assert "checkpoints/6000 skipped: learner.pt has 4 bytes" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(ConfigError, match="6000 is damaged: learner"):
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
    protocol = evaluate.protocol_for(played, trained)
    assert protocol.repeat_action_probability == PROTOCOLS[played].repeat_action_probability
    assert protocol.noop_max == PROTOCOLS[played].noop_max
    assert "as in training" in capsys.readouterr().out


def test_progress_is_shown_soon_where_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status.FIRST_LINE_SECONDS < 10
    console = Console(file=StringIO())
    assert not console.is_terminal
    monkeypatch.setattr(status, "FIRST_LINE_SECONDS", 0.0)
    with status.StatusLine(console, "starting") as line:
        line.update("1 of 2 games")
        line.update("2 of 2 games")
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == "1 of 2 games\n"


# ---------------------------------------------------------------------- play


def frames_of(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_play_films_a_whole_game_of_breakout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5")
    assert play.main([str(run_dir), "--epsilon", "1", "--seed", "3"]) == 0
    (file,) = (run_dir / "videos").iterdir()
    assert file.name == "5000-nature-seed3.mp4"
    ending, film = capsys.readouterr().out.splitlines()[-2:]
    env_steps = int(ending.split()[-3].replace(",", ""))
    # One picture of the reset, up to 29 of no-ops, 4 a step, and fewer in the last one.
    assert 4 * env_steps - 2 <= frames_of(file) <= 4 * env_steps + 30
    assert film.startswith(f"{file}: {frames_of(file) / 60:.1f} s")


def test_play_films_cartpole(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    assert play.main([str(run_dir)]) == 0
    assert frames_of(run_dir / "videos" / "5000-nature-seed0.mp4") > 8


def test_one_thread_looks_at_one_observation(tmp_path: Path) -> None:
    """Two of them halved the pace on cores that other programs used."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        play.main([str(make_run(tmp_path / "run", "CartPole-v1"))])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_network_sees_stacked_frames_oldest_first_and_the_score_is_raw() -> None:
    seen: list[torch.Tensor] = []

    class Fires(torch.nn.Linear):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            seen.append(observations.clone())
            return torch.eye(4)[[1]]

    config = TrainConfig().replace(env_id="ALE/Breakout-v5")
    spec = env_spec("ALE/Breakout-v5", PROTOCOLS["nature"], 4)
    env = FilmedEnv(spec, evaluate.protocol_for("machado", "nature"), lambda picture: None)
    steps = list(play.play(Policy(config, spec, Fires(1, 1), 0, []), env, epsilon=0.0, seed=0))
    env.close()
    assert [env_step for _, env_step in steps] == list(range(1, len(steps) + 1))
    assert [score for score, _ in steps] == sorted(score for score, _ in steps)
    assert len(seen) == len(steps)
    first, *_ = seen
    assert (first == first[:, :1]).all(), "a game's first frame is repeated"
    for before, after in itertools.pairwise(seen):
        assert torch.equal(after[:, :3], before[:, 1:])


# ---------------------------------------------------------------------- plot


def test_plot_draws_what_was_logged(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", "ALE/Breakout-v5")
    second = make_run(tmp_path / "second", "ALE/Breakout-v5")
    third = make_run(tmp_path / "third", "CartPole-v1")
    log(first, {1000: 1.0, 2000: 12.5, 3000: 33.0}, {3000: (28.0, 31.0, 37.0)})
    log(second, {1000: 2.0, 2500: 8.0})
    log(third, {500: 20.0, 900: 200.0})
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"env_step": 99')  # a run that is still writing
    figure = plot.draw([plot.read_run(path) for path in (first, second, third)])
    breakout, cartpole = figure.axes
    lines = {str(line.get_label()): line for line in breakout.lines}
    np.testing.assert_array_equal(lines["first"].get_xydata(), [[1000, 1], [2000, 12.5], [3000, 33]])
    np.testing.assert_array_equal(lines["second"].get_xydata(), [[1000, 2], [2500, 8]])
    assert lines["first"].get_color() != lines["second"].get_color()
    (point,) = breakout.containers
    data, _, (bars,) = point
    np.testing.assert_array_equal(data.get_xydata(), [[3000, 31]])
    np.testing.assert_array_equal(bars.get_segments(), [[[3000, 28], [3000, 37]]])
    assert breakout.get_title(loc="left") == "ALE/Breakout-v5"
    assert {text.get_text() for text in breakout.texts} == {"random 1.7", "human 30.5"}
    (frames,) = breakout.child_axes
    figure.draw_without_rendering()
    assert frames.get_xlim()[1] == pytest.approx(4 * breakout.get_xlim()[1])
    assert not cartpole.child_axes, "CartPole has no frames"
    assert "100 games" in figure.get_supxlabel()
    assert "not smoothed" in figure.get_supxlabel()


def test_plot_marks_the_edits_that_were_taken(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    log(run_dir, {500: 20.0, 900: 200.0})
    edit = {"time": 0, "update": 9, "name": "learning_rate", "old": 1e-4, "source": "tune"}
    lines = [
        {**edit, "env_step": 600, "new": 5e-5, "taken": True},
        {**edit, "env_step": 700, "new": -1, "taken": False},
    ]
    (run_dir / "hparam_edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = plot.draw([plot.read_run(run_dir)]).axes
    (mark,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(np.asarray(mark.get_xdata())) == [600, 600]
    assert [text.get_text() for text in axes.texts] == ["learning_rate 0.0001 → 5e-05"]


def test_plot_writes_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5")
    log(run_dir, {}, {3000: (28.0, 31.0, 37.0)})
    assert plot.main([str(run_dir)]) == 0
    assert imread(run_dir / "plots" / "return.png").shape == (720, 1200, 4)
    assert capsys.readouterr().out.strip() == str(run_dir / "plots" / "return.png")
    assert plot.main([str(run_dir), "--out", str(tmp_path / "deep" / "curve.png")]) == 0
    assert (tmp_path / "deep" / "curve.png").is_file()
    with pytest.raises(ConfigError, match="cannot be written"):
        plot.main([str(run_dir), "--out", str(tmp_path / "curve.xyz")])


def test_a_broken_line_in_the_middle_of_a_log_is_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    (run_dir / "metrics.jsonl").write_text('{"env_step": 1}\n{"env_\n{"env_step": 3}\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 2, is not JSON"):
        plot.main([str(run_dir)])
