"""What a path given to a command stands for: a run, a checkpoint of it, an exported policy, or what to give instead."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from atari_dqn import compare, evaluate, export, play, tune
from atari_dqn.bench import BenchCommand
from atari_dqn.cli.command import CommandFailed, parse_flags
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.dashboard import DashboardCommand
from atari_dqn.policy.source import playable_source
from atari_dqn.runs.directory import check_run_dir
from atari_dqn.runs.edits import RECORD, recorded_edits
from atari_dqn.sweeps.members import check_known_elsewhere
from atari_dqn.system.signals import StopRequest
from atari_dqn.train import TrainCommand, main
from atari_dqn.training.beginning import parse_training
from tests.run_dirs import log, make_run, make_settings, refusals
from tests.stubs import Numbered

INSIDE = {
    "": "latest",
    "config.json": "latest",
    "checkpoints": "latest",
    "checkpoints/latest": "latest",
    "checkpoints/best": "best",
    "checkpoints/900": "900",
    "checkpoints/900/learner.safetensors": "900",
    "checkpoints/best/learner.safetensors": "best",
}
"""Paths in a run that stand for it, and the checkpoint that they name."""
FLAGS = ["--env-id", "CartPole-v1", "--num-workers", "1", "--replay-capacity", "1024", "--total-env-steps", "50"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two runs, `one` with scores and checkpoint 900, the newer `two` with nothing; beside it a policy."""
    monkeypatch.chdir(tmp_path)
    log(make_run(Path("runs/one"), "CartPole-v1", env_step=900, gamma=0.5), {500: 20.0})
    Path("runs/one", RECORD).touch()
    make_settings(Path("runs/two"), "CartPole-v1")
    os.utime("runs/one/config.json", (1, 1))
    for file in ("policy/policy.safetensors", "policy/policy.onnx", "weights/learner.safetensors"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    return Path("runs")


@pytest.mark.parametrize(("inside", "checkpoint"), INSIDE.items())
def test_a_part_of_a_run_stands_for_it_with_every_command(
    inside: str, checkpoint: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(runs / "one" / inside)
    source = playable_source(Path(path))
    assert (source.path, source.checkpoint, source.exported) == (runs / "one", checkpoint, None)
    assert playable_source(Path(path).absolute()).path == (runs / "one").absolute()
    assert tune.main([path]) == compare.main([path]) == 0
    assert "runs/one/plots/compare.png\n" in capsys.readouterr().out
    config = parse_training(TrainCommand, ["--config", path, "--seed", "7"], "train", TrainConfig()).settings()
    assert (config.replay.gamma, config.run.seed, config.run.run_dir) == (0.5, 7, None)
    assert recorded_edits(Path(path)) == []


def test_from_within_a_run_its_parts_stand_for_it_too(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "one" / "checkpoints")
    for path in (".", "..", "900", "best", "../config.json", "900/../best"):
        assert playable_source(Path(path)).config.replay.gamma == 0.5
    monkeypatch.chdir("900")
    assert playable_source(Path("learner.safetensors")).checkpoint == "900"


def test_export_takes_a_checkpoint_for_the_run_or_the_newest_run_with_one(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/one/checkpoints/900", "runs/one/checkpoints/1000")
    assert export.main(["runs/one/checkpoints/900/learner.safetensors"]) == 0
    assert Path("runs/one/export/CartPole-v1-900/policy.onnx").is_file()
    with pytest.raises(ConfigError, match="--out runs is not empty"):
        export.main(["--out", "runs"])
    assert "the newest run: runs/one" in capsys.readouterr().out


def test_a_path_that_is_no_run_is_one_line_before_torch_is_imported(runs: Path) -> None:
    folder = "is not a run directory: it has no config.json; the newest runs in it: runs/two, runs/one"
    policy = "policy/policy.safetensors is an exported policy; give the run that it was exported from"
    missing = "no checkpoint '7' in runs/one/checkpoints; choose latest, best or one of 900"
    none = "no checkpoint in runs/two/checkpoints; train writes one every --checkpoint-interval"
    alone = "is a checkpoint outside of its run, or a corrupt one; give the run"
    readers = ("play", "evaluate", "export", "tune", "compare")
    Path("empty").mkdir()
    Path("link").symlink_to("runs/one/checkpoints/900")
    expected = [
        *((f"{command} runs", f"runs {folder}") for command in ("play", "evaluate", "export", "tune")),
        *((f"{command} policy", policy) for command in ("export", "tune", "compare")),
        *((f"{command} nowhere", "nowhere does not exist") for command in ("play", "export", "tune", "compare")),
        *((f"{command} runs/one/checkpoints/7", missing) for command in ("play", "evaluate", "export")),
        *((f"{command} runs/one --checkpoint 7", missing) for command in ("play", "evaluate", "export")),
        *((f"{command} runs/two", none) for command in ("play", "evaluate", "export")),
        ("play runs/one/checkpoints/900 --checkpoint best", "--checkpoint best: runs/one/checkpoints/900 names ano"),
        ("train --config runs", f"--config runs {folder}"),
        ("train --config policy", f"--config {policy}"),
        ("train --config nowhere.json", "--config nowhere.json does not exist"),
        ("train --init-from runs", f"--init-from runs {folder}"),
        ("train --init-from policy", f"--init-from {policy}"),
        ("train --init-from policy/policy.onnx", "--init-from policy/policy.onnx is an exported policy; give the run"),
        ("train --init-from runs/two", none),
        ("train --init-from runs/one/checkpoints/7", missing),
        ("train --init-from empty", "--init-from empty is not a run directory: it has no config.json"),
        ("train --init-from runs --seeds 2", f"--init-from runs {folder}"),
        ("train --run-dir runs/one/checkpoints", "--run-dir runs/one/checkpoints is part of a run; give runs/one"),
        ("train --run-dir runs/one/config.json", "--run-dir runs/one/config.json is part of a run; give runs/one"),
        ("train --replay-edits runs", f"--replay-edits runs {folder}"),
        ("train --replay-edits weights", f"--replay-edits weights {alone}"),
        ("train --replay-edits runs/one/metrics.jsonl", "--replay-edits runs/one/metrics.jsonl, line 1, is not an ed"),
        ("train --config runs/one/checkpoints/typo", "--config runs/one/checkpoints/typo does not exist"),
        ("train --config weights", f"--config weights {alone}"),
        ("train --init-from runs/one/checkpoints/9OO", "--init-from runs/one/checkpoints/9OO does not exist"),
        *((f"{command} runs/one/checkpoints/x/y", "runs/one/checkpoints/x/y does not exist") for command in readers),
        *((f"{command} runs/one/checkpoints/../videos", "runs/one/checkpoints/../videos do") for command in readers),
        *((f"{command} link", f"link {alone}") for command in readers),
        ("evaluate weights/learner.safetensors", f"weights/learner.safetensors {alone}"),
        ("train --run-dir new/" + 300 * "x" + "/run", "cannot lock --run-dir new/xxx"),
    ]  # fmt: skip
    before = sorted(Path().rglob("*"))
    mistakes = [[*line.split(), *(FLAGS if line.startswith("train") else [])] for line, _ in expected]
    *said, loaded = refusals(mistakes, without={"torch"})
    assert loaded == "[]"
    for (line, words), shown in zip(expected, said, strict=True):
        assert shown.startswith(words), line
    assert sorted(Path().rglob("*")) == before, "no directory of a run is left behind"


@pytest.mark.parametrize("content", ['{"model": 1}', "{}"])
@pytest.mark.parametrize("place", ["checkpoints/pong", "checkpoints"])
def test_a_config_of_another_program_does_not_make_a_folder_a_run(content: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    run_dir = tmp_path / place
    config = parse_training(TrainCommand, ["--run-dir", str(run_dir)], "train", TrainConfig()).settings()
    assert check_run_dir(config, run_dir) == []


def test_a_run_directory_that_cannot_be_made_is_told_before_the_summary(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--seeds", "2"]):
        with pytest.raises(ConfigError, match=r"^cannot lock --run-dir new/x+/run: File name too long$"):
            main([*FLAGS, *flags, "--run-dir", f"new/{300 * 'x'}/run"])
    assert capsys.readouterr().out == ""
    assert not Path("new").exists()


def test_weights_that_cannot_be_used_leave_no_run_behind(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only torch can read them, so that the summary is printed before."""
    before = sorted(path for path in Path().rglob("*"))
    for place in ("weights", "weights/learner.safetensors"):
        with pytest.raises(ConfigError, match=r"^no weights in weights"):
            main([*FLAGS, "--init-from", place, "--replay-edits", "runs/one"])
        assert "--replay-edits runs/one has no edit to repeat\n" in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


def test_a_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = tmp_path / "there"
    commands: list[tuple[type, str]] = [
        *((command, "--out") for command in (compare.CompareCommand, export.ExportCommand, BenchCommand)),
        *((command, "") for command in (play.PlayCommand, evaluate.EvaluateCommand, tune.TuneCommand)),
        *((TrainCommand, flag) for flag in ("--config", "--init-from", "--replay-edits")),
        (DashboardCommand, "--data-dir"),
    ]
    for command, flag in commands:
        parsed = vars(parse_flags(command, [*flag.split(), "~/there"], prog="it"))
        assert there in parsed.values(), (command, flag)
    make_settings(there, "CartPole-v1", gamma=0.5)
    assert parse_flags(compare.CompareCommand, ["~/a", "~"], prog="it").runs == (tmp_path / "a", tmp_path)
    for flag in ("--config", "--run-dir"):
        config = parse_training(TrainCommand, [f"{flag}=~/there"], "it", TrainConfig()).settings()
        assert (config.replay.gamma, config.run.run_dir) == (0.5, there if flag == "--run-dir" else None)


@pytest.mark.parametrize(
    "words",
    [
        "runs/one --epsilon 0.1 --learning-rate=1e9",
        "--epsilon 0.1 runs/one --learning-rate 1e9",
        "epsilon=0.1 --learning_rate 1e9 runs/one",
        "--learning-rate 1e9 epsilon=0.1 runs/one",
    ],
)
def test_an_edit_may_be_written_as_a_flag_and_its_value(words: str, runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"^learning_rate is 1e\+09; it must be above 0 to 1$"):
        tune.main(words.split())
    with pytest.raises(ConfigError, match=r"^cannot tune runs/one: no process"):
        tune.main(words.replace("1e9", "1e-4").split())


@pytest.fixture(params=["Own-v0", "Pong-v5"])
def own_env(request: pytest.FixtureRequest) -> Iterator[str]:
    """An environment registered in this program alone; another program takes the second name for a game's."""
    gym.register(request.param, Numbered)  # type: ignore[arg-type]
    yield request.param
    del gym.registry[request.param]


def test_seeds_that_do_not_know_the_environment_are_not_started(
    own_env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"^--seeds: each is a program of its own, .* {own_env}; .* module:{own_env}$"
    ):
        main(["--env-id", own_env, "--seeds", "2", "--total-env-steps", "50"])
    assert list(tmp_path.iterdir()) == []


def test_seeds_whose_program_fails_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text("import gymnasium; gymnasium.register('Mine-v0', lambda: None)")
    monkeypatch.syspath_prepend(tmp_path)  # of this program alone
    words = "^--seeds: .* fails to start: ModuleNotFoundError: No module named 'elsewhere'$"
    for asked, ending in ((False, pytest.raises(CommandFailed, match=words)), (True, pytest.raises(KeyboardInterrupt))):
        with StopRequest() as stop, ending:
            if asked:
                os.kill(os.getpid(), signal.SIGINT)
            check_known_elsewhere(["elsewhere:Mine-v0"], stop, "--seeds")


def test_a_run_of_an_environment_that_this_program_does_not_know_says_the_way_out(own_env: str, runs: Path) -> None:
    path = make_run(runs / "own", own_env, env_step=900)
    assert playable_source(path).path == path
    mistakes = [[command, str(path)] for command in ("play", "evaluate", "export")]
    *said, loaded = refusals(mistakes, without={"torch"})
    assert loaded == "[]"
    for line in said:
        assert line.startswith(f"{path}: --env-id {own_env}: unknown environment; ")
        assert line.endswith(f"; for one of your own use module:{own_env}")
