"""`atari-dqn` and what its commands have in common: names, help, and mistakes that are answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atari_dqn import evaluate, play
from atari_dqn.__main__ import COMMANDS, run
from atari_dqn.config.setting import ConfigError
from tests.run_dirs import log, make_run, python, refusals


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
    with pytest.raises(ConfigError, match=f"one of {', '.join(COMMANDS)}, or --help"):
        run([])


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
        f"{tmp_path / 'nowhere'} is not a run directory: it has no config.json",
        "--epsilon is -1; it must be from 0 to 1",
        f"{tmp_path / 'nowhere'} is not a run directory: neither it nor a directory in it has a config.json",
        f"{tmp_path / 'run'} has no score yet: no game of it is finished",
        "--threshold is nan; it must be finite",
        f"--out {tmp_path} is a directory; name a PNG in it",
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
