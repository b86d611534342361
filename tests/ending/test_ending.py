"""The end of a run: score, curve, film and next commands; whatever fails there costs a line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from atari_dqn.cli.command import DONE, typed
from atari_dqn.ending import ending
from atari_dqn.render import clips
from atari_dqn.train import main

TRAIN = [
    *(sys.executable, "-m", "atari_dqn.train", "--env-id", "CartPole-v1", "--num-workers", "1", "--batch-size", "16"),
    *("--replay-capacity", "4096", "--learning-starts", "200", "--log-interval", "100", "--precision", "fp32"),
    *("--torch-threads", "1", "--eval-interval", "500", "--eval-episodes", "2"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was trained with its result shown, and what it printed."""
    run_dir, out = tmp_path_factory.mktemp("runs") / "a run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("ATARI_DQN_SHOW_RESULT", "1")
        patch.setattr(clips, "SECONDS", 1)
        assert main([*TRAIN[3:], "--run-dir", str(run_dir), "--total-env-steps", "1000"]) == DONE
    return run_dir, out.getvalue()


def test_a_finished_run_has_its_score_curve_and_film_and_names_the_next_commands(finished: tuple[Path, str]) -> None:
    run_dir, out = finished
    after = out[out.index("done: ") :]
    made = [line for line in after.splitlines()[1:] if not line.startswith("filming 12 seconds")]  # on a slow machine
    lines = dict(line.split(maxsplit=1) for line in made)
    assert [*lines] == ["score", "evaluation", "curve", "film", "play", "evaluate", "continue"]
    assert "mean of the last 100 games of training" in lines["score"]
    assert "2 games at env step 1,0" in lines["evaluation"]
    with Image.open(lines["curve"]) as curve:
        assert curve.format == "PNG"
    assert Path(lines["film"]).stat().st_size > 1_000
    assert lines["continue"] == f"{typed()} -m atari_dqn.train --run-dir '{run_dir}' --total-env-steps 2000"


def test_a_run_that_reached_its_score_names_a_command_that_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATARI_DQN_SHOW_RESULT", "1")
    monkeypatch.setattr(ending, "_pictures", lambda *_: ())
    flags = ["--run-dir", str(tmp_path / "run"), "--total-env-steps", "1000", "--stop-score", "1"]
    assert main([*TRAIN[3:], *flags]) == DONE
    (command,) = re.findall("^continue +(.*)$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("ATARI_DQN_SHOW_RESULT", "0")
    assert main(shlex.split(command)[3:]) == DONE
    assert "done: 1,00" in capsys.readouterr().out


def concluded(run_dir: Path, skip: Callable[[], bool] = lambda: False) -> str:
    console = Console(file=io.StringIO(), width=300)
    ending.conclude(run_dir, console, True, skip)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_fails_at_the_end_is_named_and_nothing_is_raised(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    shutil.rmtree(run_dir / "videos")
    (run_dir / "videos").write_text("a file in its place")
    shutil.rmtree(run_dir / "plots")
    (run_dir / "plots").write_text("a file in its place")
    out = concluded(run_dir)
    assert "no curve" in out
    assert "no film" in out
    assert f"{typed()} -m atari_dqn.play" in out
    monkeypatch.setattr(ending, "_scores", lambda *_: 1 / 0)
    assert concluded(run_dir) == f"no summary of {run_dir}: ZeroDivisionError: division by zero\n"
    assert concluded(tmp_path) == "", "nothing was trained"


def test_ctrl_c_skips_the_film(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    shutil.rmtree(run_dir / "videos")
    killed: list[bool] = []
    asked: list[bool] = []

    class Filming:
        env_step = 1000

        def __init__(self, *_: object) -> None: ...
        def begin(self, *_: object) -> str:
            return ""

        def shorten_deadline(self) -> None: ...
        def poll(self, seconds: float) -> None:
            asked.append(True)

        def close(self) -> None:
            killed.append(True)

    monkeypatch.setattr(clips, "Recorder", Filming)
    out = concluded(run_dir, lambda: bool(asked))
    assert "curve       " in out
    assert "skipped" in out
    assert f"{typed()} -m atari_dqn.evaluate" in out
    assert killed == [True]
    out = concluded(run_dir, lambda: True)
    assert "curve" not in out
    assert "skipped" in out


@pytest.mark.parametrize(("number", "shown"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ctrl_c_shows_the_result_which_another_one_skips_and_a_termination_shows_none(
    number: signal.Signals, shown: bool, tmp_path: Path, popen: Callable[..., subprocess.Popen[str]]
) -> None:
    environment = os.environ | {"ATARI_DQN_SHOW_RESULT": "1"}
    command = [*TRAIN, "--run-dir", "run", "--total-env-steps", "1000000"]
    process = popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)

    def wait_for(file: Path) -> None:
        deadline = time.monotonic() + 300
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(number)
    if shown:
        wait_for(tmp_path / "run" / "plots" / "curve.png")
        process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "state saved" in out
    assert bool(re.search(r"\nskipped     what else there was to draw and film\nplay        \S+ -m ", out)) == shown


def test_the_demo_checks_the_machine_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from atari_dqn import demo
    from atari_dqn.diagnostics import checks

    started: list[list[str]] = []

    def become(program: str, words: list[str]) -> None:
        started.append(words)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    good, bad = (lambda level=level: iter([checks.Finding(level, "it is", "do that")]) for level in ("ok", "error"))
    monkeypatch.setattr(checks, "CHECKS", {"cores": good})
    with pytest.raises(SystemExit):
        demo.main(["--run-dir", "here"])
    assert started[0][-2:] == ["--run-dir", "here"]
    monkeypatch.setattr(checks, "CHECKS", {"cores": good, "memory": bad})
    assert demo.main([]) == 1
    assert len(started) == 1, "nothing is started on a machine that is not ready"
    assert "error    memory         it is\n" in capsys.readouterr().out
