"""`atari-dqn` and what its commands have in common: names, help, and mistakes that are answered at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atari_dqn import __version__, evaluate, play
from atari_dqn.__main__ import COMMANDS, run
from atari_dqn.cli.command import parse_flags, typed
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from tests.run_dirs import log, make_run, make_settings, python, refusals


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


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [([], "usage: atari-dqn <command>"), (["--version"], f"atari_dqn {__version__}\n"), (["-V"], __version__)],
)
def test_without_a_command_there_is_the_usage_or_the_version(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run([name, "--version"])
    assert (ending.value.code, capsys.readouterr().out) == (0, f"atari_dqn {__version__}\n")


@pytest.mark.parametrize("arguments", [["train", "--help"], ["tune", "--help"], ["--help"], []])
def test_a_reader_that_has_left_is_no_error(arguments: list[str]) -> None:
    """`--help | head`: here the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "atari_dqn", *arguments]
    for unbuffered in ("", "1"):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
    os.close(writer)


@pytest.mark.parametrize(("arguments", "code"), [(["train", "--help"], 0), (["--help"], 0), (["evalaute"], 2)])
def test_a_closed_output_is_no_error(arguments: list[str], code: int) -> None:
    """`>&-`, as some schedulers start their jobs."""
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "atari_dqn", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_an_output_cannot_show_is_replaced(encoding: str, tmp_path: Path) -> None:
    run_dir = os.fsdecode(os.fsencode(tmp_path / "→") + b"\xff")  # no text in any of these encodings
    make_settings(Path(run_dir), "CartPole-v1")
    command = [sys.executable, "-m", "atari_dqn", "tune", run_dir]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"?:" in result.stdout


@pytest.mark.parametrize("safe", [False, True])
def test_the_script_finds_a_module_in_the_working_directory(safe: bool, tmp_path: Path) -> None:
    """As `python -m atari_dqn` does, which a script's own folder would otherwise keep it from."""
    (tmp_path / "mygames.py").write_text("import gymnasium")
    (script := tmp_path / "bin" / "atari-dqn").parent.mkdir()
    script.write_text("from atari_dqn.__main__ import main; main()")
    flags = ["train", "--env-id", "mygames:Missing-v0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])} | (
        {"PYTHONSAFEPATH": "1"} if safe else {}
    )
    command = [sys.executable, str(script), *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ("unknown environment", "cannot import mygames")[safe] in result.stderr


@pytest.mark.parametrize(("written", "number"), [("2e5", 200_000), ("2.5E3", 2_500), ("1_000", 1_000), ("7", 7)])
def test_a_whole_number_may_be_written_with_an_exponent(written: str, number: int) -> None:
    flags = ["--total-env-steps", written, "--mlp-hidden", written, "8"]
    command = parse_flags(TrainConfig, flags, prog="train")
    assert (command.run.total_env_steps, command.network.mlp_hidden) == (number, (number, 8))
    assert type(command.run.total_env_steps) is int


@pytest.mark.parametrize("written", ["1.5", "1e-3", "nan", "inf", "1e999", "e5", ""])
def test_what_is_no_whole_number_is_refused(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse_flags(TrainConfig, ["--total-env-steps", written], prog="train")
    assert ending.value.code == 2
    assert "Error parsing --total-env-steps" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_wrapped_and_names_no_default_twice(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run([name, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[1:])) <= 80, "but for the usage"
    words = " ".join(text.replace("│", " ").split())
    assert "(default: )" not in words
    assert "(default: None)" not in words


# ---------------------------------------------------------------------- wrong input


def test_a_mistake_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "CartPole-v1")
    log(make_run(tmp_path / "scored", "CartPole-v1"), {500: 20.0})
    mistakes = [
        ["evaluate", str(tmp_path)],
        ["evaluate", str(tmp_path / "run"), "--episodes", "0"],
        ["evaluate", str(tmp_path / "run"), "--epsilon", "0", "1.5"],
        ["evaluate", str(tmp_path / "run"), "--protocol"],
        ["play", str(tmp_path / "nowhere")],
        ["play", str(tmp_path / "run"), "--epsilon", "-1"],
        ["compare", str(tmp_path / "nowhere")],
        ["compare", str(tmp_path / "run")],
        ["compare", str(tmp_path / "run"), "--threshold", "nan"],
        ["compare", str(tmp_path / "scored"), "--out", str(tmp_path)],
        ["compare", str(tmp_path / "scored"), "--out", str(tmp_path / "it.md")],
    ]
    said = refusals(mistakes, without={"torch", "gymnasium", "labml"})
    assert said == [
        f"{tmp_path} is not a run directory: it has no config.json; the newest runs in it: {tmp_path / 'scored'},"
        f" {tmp_path / 'run'}",
        "--episodes is 0; it must be from 1 to 100000",
        "--epsilon is 1.5; it must be from 0 to 1",
        "--protocol is empty; omit it for the default",
        f"{tmp_path / 'nowhere'} does not exist",
        "--epsilon is -1; it must be from 0 to 1",
        f"{tmp_path / 'nowhere'} does not exist",
        f"{tmp_path / 'run'} has no score yet: no game of it is finished",
        "--threshold is nan; it must be finite",
        f"--out {tmp_path} is not a regular file; name a PNG to write",
        f"--out {tmp_path / 'it.md'} names the tables; name the picture, such as {tmp_path / 'it.png'}",
        "[]",
    ]


@pytest.mark.parametrize("command", [evaluate, play])
def test_a_missing_checkpoint_is_named(command: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint '7'"):
        command.main([str(make_run(tmp_path / "run", "CartPole-v1")), "--checkpoint", "7"])


def test_importing_a_command_does_not_import_torch_which_every_worker_would_pay_for() -> None:
    probe = "import sys, atari_dqn.evaluate, atari_dqn.play; sys.exit('torch' in sys.modules)"
    assert python("-c", probe).returncode == 0


def test_what_is_to_be_typed_next_is_found_by_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian has no `python`, and the environment that `make train` makes is not activated."""
    folder = tmp_path / "my code/.venv/bin"
    folder.mkdir(parents=True)
    for name in ("python", "tensorboard"):
        (folder / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "my code")
    assert (typed(), typed("tensorboard")) == (".venv/bin/python", ".venv/bin/tensorboard")
    monkeypatch.chdir(tmp_path)
    assert typed() == "'my code/.venv/bin/python'"
    monkeypatch.setenv("PATH", str(folder))
    assert (typed(), typed("tensorboard")) == ("python", "tensorboard")
    assert typed("elsewhere") == "elsewhere"
