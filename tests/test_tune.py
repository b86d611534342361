"""`tune` beside a training in another process: it lists, edits, refuses, undoes, and never waits for ever."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atari_dqn import tune
from atari_dqn.cli.command import INTERRUPTED, CommandFailed
from atari_dqn.config.live import Edit
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.edits import INBOX, RECORD, read_edits
from atari_dqn.runs.lock import is_training, locked
from tests.test_train import SHORT, rows


def tuned(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "atari_dqn.tune", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directory of a training that runs for as long as the tests need it."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    command = [*SHORT, "--run-dir", str(run_dir), "--total-env-steps", "100000000", "--log-interval", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not (run_dir / "metrics.jsonl").exists() or not rows(run_dir):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield run_dir
    finally:
        process.terminate()
        process.communicate()


def next_row(run_dir: Path, after: Edit) -> dict[str, float]:
    """The first row of metrics after an edit."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for row in rows(run_dir):
            if row["env_step"] > after.env_step:
                found: dict[str, float] = row
                return found
        time.sleep(0.01)
    pytest.fail("no row after the edit")


def test_an_edit_reaches_the_running_optimizer_and_is_recorded(training: Path) -> None:
    asked_at = time.time()
    result = tuned(str(training), "--learning-rate=5e-4", "epsilon=0.25")
    assert result.returncode == 0, result.stderr
    assert re.search(r"env step [\d,]+: learning_rate \S+ → 0.0005 \(tune\)\n", result.stdout)
    *_, rate, epsilon = read_edits(training)
    assert (rate.name, rate.new, rate.taken, rate.source) == ("learning_rate", 5e-4, True, "tune")
    assert (epsilon.name, epsilon.new) == ("epsilon", 0.25)
    assert asked_at <= rate.time <= epsilon.time <= time.time()
    assert next_row(training, rate)["settings/learning_rate"] == 5e-4, "the rate in the optimizer's own tensor"
    assert next_row(training, epsilon)["settings/epsilon"] == 0.25
    assert not any((training / INBOX).iterdir())


def test_of_several_edits_all_are_made_or_none(training: Path) -> None:
    before = read_edits(training)
    for bad in (["learning_rat=3e-4"], ["learning-rate=1e9", "target_update_interval=3.7", "n_step=3"]):
        result = tuned(str(training), "beta=0.5", *bad)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
    for words in ("learning_rate is 1e+09; it must be above 0 to 1", "must be a whole number", "n_step cannot be"):
        assert words in line
    assert read_edits(training) == before
    assert tuned(str(training), "target-update-interval=1500", "replay-ratio=0.5").returncode == 0
    assert [(edit.name, edit.new) for edit in read_edits(training)[len(before) :]] == [
        ("target_update_interval", 1500), ("replay_ratio", 0.5),
    ]  # fmt: skip


def test_undo_and_the_list(training: Path) -> None:
    for value in ("6", "5"):
        assert tuned(str(training), f"max_grad_norm={value}").returncode == 0
    listed = tuned(str(training)).stdout
    assert re.search(r"max_grad_norm\s+5\s+above 0 to 1e\+09", listed)
    assert "max_grad_norm 6 → 5 (tune)" in listed
    assert "max_grad_norm 5 → 6 (tune)" in tuned(str(training), "--undo").stdout
    assert "max_grad_norm 6 → 10 (tune)" in tuned(str(training), "--undo").stdout
    assert re.search(r"max_grad_norm\s+10\s", tuned(str(training)).stdout)
    assert tuned(str(training), "beta=0.5").returncode == 0
    assert "beta 0.5 → schedule" in tuned(str(training), "--undo").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learning_rate"], "cannot read the edit 'learning_rate'; write name=value, such as learning_rate=5e-5"),
        (["=1e-4"], "cannot read the edit '=1e-4'"),
        (["learning_rate="], "cannot read the edit 'learning_rate='"),
        (["learning_rate=1e-4", "--undo"], "cannot undo and edit at once"),
        (["--undo"], "nothing to undo"),
        (["learning_rate=1e-4"], "no process is training there"),
        (["lr=1e-4"], "lr cannot be changed during a run; did you mean learning_rate?"),
        (["learning-rat=1e-4"], "did you mean learning_rate?"),
        (["--eps=0.1"], "did you mean epsilon?"),
        (["grad_norm=1"], "did you mean max_grad_norm?"),
        (["TUI=1000"], "did you mean target_update_interval?"),
        (["gamma=0.9"], "gamma cannot be changed during a run; beta, learning_rate"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = tuned(str(tmp_path), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / RECORD).exists()


def test_a_directory_without_a_run_is_refused_and_names_the_runs_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.json$"):
        tune.main([str(tmp_path), "beta=1"])
    for seconds, name in enumerate(("old", "many/seed-2", "new")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (seconds, seconds))
    newest = ", ".join(f"{tmp_path / name}" for name in ("new", "many/seed-2", "old"))
    with pytest.raises(ConfigError, match=f"; the newest runs in it: {newest}$"):
        tune.main([str(tmp_path), "beta=1"])


@pytest.mark.parametrize("edit", [[], ["epsilon=0.1"], ["--epsilon=0.1"]])
def test_the_newest_run_is_meant_where_none_is_named(
    tmp_path: Path, edit: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "d" / "config.json").mkdir(parents=True)  # is not a run
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "config.json").write_text("{")  # torn, and the newest
    with pytest.raises(ConfigError, match="no run in runs; name a run directory"):
        tune.main(edit)
    for seconds, name in enumerate("ba"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
        os.utime(tmp_path / "runs" / name / "config.json", (seconds, seconds))
    with pytest.raises(ConfigError, match="cannot tune runs/a: no process") if edit else contextlib.nullcontext():
        tune.main(edit)
    assert "run: runs/a\n" in capsys.readouterr().out


def test_an_empty_variable_is_not_taken_for_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "newest").mkdir(parents=True)
    (tmp_path / "runs" / "newest" / "config.json").write_text("{}")
    for words in (["", "epsilon=0.1"], [""], ["--epsilon", "0.1", ""]):
        with pytest.raises(ConfigError, match=r"^\. is not a run directory"):
            tune.main(words)


def test_a_run_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(tune, "PATIENCE_SECONDS", 0.2)
    with locked(tmp_path):
        assert is_training(tmp_path)
        with pytest.raises(CommandFailed, match=r"no answer within 0\.2 s"):
            tune.main([str(tmp_path), "beta=1"])
        (left,) = (tmp_path / INBOX).iterdir()
        assert json.loads(left.read_text())["name"] == "beta", "the run will answer it later"
    assert not is_training(tmp_path)


def test_a_run_directory_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INBOX).write_text("in the way, as missing rights would be for anybody but root")
    with locked(tmp_path):
        result = tuned(str(tmp_path), "beta=1")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "cannot write to" in line


def test_ctrl_c_withdraws_the_edit(tmp_path: Path, popen: Callable[..., subprocess.Popen[str]]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with locked(tmp_path):
        # A process started in a shell's background ignores SIGINT, and so do its children.
        obey = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-m", "atari_dqn.tune", str(tmp_path), "beta=1"]
        asking = popen(command, preexec_fn=obey)
        deadline = time.monotonic() + 300
        while not list((tmp_path / INBOX).glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        asking.send_signal(signal.SIGINT)
        assert asking.wait() == INTERRUPTED
    assert not any((tmp_path / INBOX).iterdir())


def test_a_run_that_ends_meanwhile_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    answers = iter([True, False])
    monkeypatch.setattr(tune, "is_training", lambda run_dir: next(answers))
    with pytest.raises(CommandFailed, match=r"cannot change beta: the training in .* ended before it answered"):
        tune.main([str(tmp_path), "beta=1"])
    assert not any((tmp_path / INBOX).iterdir())


def test_tune_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    probe = "import sys; from atari_dqn import tune; tune.main(sys.argv[1:]); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("no edits yet; change a value with NAME=VALUE\nFalse\n")


def test_an_edit_made_while_a_run_resumes_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*SHORT, "--run-dir", str(tmp_path / "run"), "--checkpoint-interval", "100000000", "--total-env-steps"]
    subprocess.run([*command, "400"], check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setattr(tune, "PATIENCE_SECONDS", 300.0)
    again = subprocess.Popen([*command, "100000000"], stdout=subprocess.DEVNULL)
    try:
        while not is_training(tmp_path / "run"):
            assert again.poll() is None
            time.sleep(0.01)
        assert tune.main([str(tmp_path / "run"), "beta=0.5"]) == 0
    finally:
        again.terminate()
        again.wait()
