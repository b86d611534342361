"""The race: CPU seconds over resumes, the plan, the report, and a short race that is killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atari_dqn.system.files import exclusive
from benchmarks.race.__main__ import BadInput, main, parse
from benchmarks.race.budget import HOUR, Ledger, append_line, family_seconds, read_lines
from benchmarks.race.contestants import CONTESTANTS, epsilon, flags
from benchmarks.race.entry import Entry, EntryFailed, Racer, marks
from benchmarks.race.report import write_report


def burn(seconds: float) -> subprocess.Popen[str]:
    """A process whose child uses `seconds` of CPU time and ends; the process then waits for a line."""
    child = f"import time\nwhile time.process_time() < {seconds}: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print(flush=True); input()"
    return subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# ---------------------------------------------------------------------- the budget


def test_the_seconds_of_children_that_have_ended_count() -> None:
    with burn(0.5) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.4 < family_seconds(process.pid) < 3  # the kernel rounds each count down to its tick
        process.communicate("\n")
    assert family_seconds(process.pid) == 0


def test_a_ledger_sums_its_sessions_and_survives_a_kill_in_mid_write(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    ledger.open()
    ledger.charge(100.0)  # the first charge of a session is written at once
    ledger.charge(107.0)  # too soon after it: only in memory
    assert ledger.cpu == 107
    with file.open("a") as out:
        out.write('{"session": 1, "cpu": 1')  # the race is killed here
    resumed = Ledger(file)
    assert resumed.cpu == 100
    resumed.open()
    resumed.charge(20.0)
    resumed.charge(5.0)  # processes of the family have ended: their seconds are not given back
    assert resumed.cpu == 120
    resumed.charge(21.5, last=True)
    resumed.open()
    resumed.charge(1.0, last=True)
    assert resumed.cpu == Ledger(file).cpu == 122.5
    assert {line["session"] for line in read_lines(file)} == {1, 2, 3}


def test_a_line_after_a_torn_one_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text('{"a": 1}\n{"a"')
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]


# ---------------------------------------------------------------------- the plan


def test_every_mark_up_to_the_budget_is_evaluated_and_the_budget_itself() -> None:
    assert marks(0.25) == [0.125, 0.25]
    assert marks(2.5) == [0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5]
    assert marks(0.01) == [0.01]


def test_settings_become_flags() -> None:
    assert flags({"n_step": 3, "double_q": False, "dueling": True, "beta_at": (0.0, 1.0)}) == [
        *("--n-step", "3", "--no-double-q", "--dueling", "--beta-at", "0.0", "1.0"),
    ]
    assert epsilon(1000, (0, 1.0), (250, 0.1)) == {
        "total_env_steps": 1000,
        "epsilon_values": (1.0, 0.1),
        "epsilon_at": (0.0, 0.25),
    }


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_is_one_that_the_trainer_takes(name: str) -> None:
    import atari_dqn.config.schema as config

    settings = CONTESTANTS[name].settings
    config.TrainConfig().replace(**settings).validate()


def test_a_plan_is_read_from_the_command_line() -> None:
    arguments = parse(["--one", "breakout-cpu", "pong", "3", "1.5", "--one", "small", "breakout", "1", "2"])
    assert [(entry.name, hours) for entry, hours in arguments.entries] == [
        ("breakout-cpu-pong-3", 1.5),
        ("small-breakout-1", 2.0),
    ]
    assert parse([]).entries


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--one", "nobody", "pong", "1", "1"], "unknown contestant 'nobody'"),
        (["--one", "breakout-cpu", "pong", "one", "1"], "must be numbers"),
        (["--one", "breakout-cpu", "pong", "1", "0"], "core-hours 0 above 0"),
        (["--one", "breakout-cpu", "pong", "1", "nan"], "core-hours nan above 0"),
        (["--one", "breakout-cpu", "no/game", "1", "1"], "game 'no/game'"),
        (["--cpu", "4096"], "--cpu 4096"),
        (["--nice", "-1"], "--nice is -1"),
        (["--episodes", "0"], "--episodes is 0"),
        (["--report", "--dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv: list[str], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as refused:
        main(argv)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- the report


def leave(directory: Path, contestant: str, game: str, seed: int, scores: dict[float, float]) -> None:
    """What an entry leaves: a point for each of `scores`, by core-hours."""
    place = directory / f"{contestant}-{game}-{seed}"
    place.mkdir(parents=True)
    entry = {"contestant": contestant, "game": game, "seed": seed, "processor": "Made-up 9000", "cores": 2}
    (place / "entry.json").write_text(json.dumps(entry))
    for hours, mean in scores.items():
        point: dict[str, Any] = {"mark": hours, "cpu": hours * HOUR, "wall": hours * HOUR * 1.1, "done": False}
        point |= {"env_step": round(hours * 1e6), "update": round(hours * 1e5), "episodes": 30, "mean": mean}
        append_line(place / "points.jsonl", point | {"ci95": [mean - 1, mean + 1], "median": mean})


def test_the_report_has_every_point_and_a_picture_of_each_game(tmp_path: Path) -> None:
    leave(tmp_path, "small", "breakout", 1, {0.5: 7.25, 0.25: 3.0})
    leave(tmp_path, "breakout-cpu", "breakout", 1, {0.5: 5.0})
    leave(tmp_path, "small", "pong", 2, {0.5: -20.0})
    (tmp_path / "logs").mkdir()  # not an entry
    table, *pictures = write_report(tmp_path)
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1:6] for row in rows] == [
        [" breakout ", " breakout-cpu ", " 1 ", " 0.50 ", " 5.0 (4.0 to 6.0) "],
        [" breakout ", " small ", " 1 ", " 0.25 ", " 3.0 (2.0 to 4.0) "],
        [" breakout ", " small ", " 1 ", " 0.50 ", " 7.2 (6.2 to 8.2) "],
        [" pong ", " small ", " 2 ", " 0.50 ", " -20.0 (-21.0 to -19.0) "],
    ]
    assert " 500,000 " in rows[0]
    assert " 50,000 " in rows[0]
    assert "Made-up 9000" in table.read_text()
    assert [picture.name for picture in pictures] == ["breakout.png", "pong.png"]
    assert all(picture.stat().st_size > 10_000 for picture in pictures)


def test_curves_of_two_points_are_in_the_table_only_where_others_are_longer(tmp_path: Path) -> None:
    leave(tmp_path, "small", "breakout", 1, {0.25: 3.0, 0.5: 7.25, 0.75: 9.0})
    _, picture = write_report(tmp_path)
    of_one = picture.read_bytes()
    leave(tmp_path, "breakout-cpu", "breakout", 1, {0.25: 2.0, 0.5: 5.0})
    table, picture = write_report(tmp_path)
    assert " breakout-cpu " in table.read_text()
    assert picture.read_bytes() == of_one
    leave(tmp_path, "small-256", "breakout", 1, {0.25: 2.0, 0.5: 5.0, 0.75: 6.0})
    write_report(tmp_path)
    assert picture.read_bytes() != of_one


# ---------------------------------------------------------------------- a race


@pytest.mark.long
def test_a_race_that_is_killed_resumes_and_counts_what_was_spent(tmp_path: Path) -> None:
    race = [sys.executable, "-m", "benchmarks.race", "--dir", str(tmp_path), "--episodes", "2", "--nice", "0"]
    race += ["--one", "cartpole", "CartPole-v1", "1", "0.01"]
    place = tmp_path / "cartpole-CartPole-v1-1"

    def ledger() -> Ledger:
        return Ledger(place / "ledger.jsonl")

    with subprocess.Popen(race, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        deadline = time.monotonic() + 300
        while not (ledger().cpu and any(row["env_step"] for row in read_lines(place / "run" / "metrics.jsonl"))):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first.kill()
    pid = int((place / "pid").read_text().split()[0])
    assert 0 < ledger().cpu < 0.01 * HOUR
    result = subprocess.run(race, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    with pytest.raises(ProcessLookupError):  # the trainer of the killed race is gone
        os.kill(pid, signal.SIGCONT)
    assert {line["session"] for line in read_lines(place / "ledger.jsonl")} == {1, 2}
    (point,) = read_lines(place / "points.jsonl")
    assert point["cpu"] >= 0.01 * HOUR
    assert point["env_step"] > 0
    assert point["episodes"] == 2
    again = subprocess.run(race, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0
    assert len(read_lines(place / "points.jsonl")) == 1  # nothing left to do


def test_a_race_in_the_background_of_a_shell_is_stopped_by_sigterm(tmp_path: Path) -> None:
    """A shell starts a background job with SIGINT ignored."""
    race = [sys.executable, "-m", "benchmarks.race", "--dir", str(tmp_path), "--nice", "0"]
    race += ["--one", "cartpole", "CartPole-v1", "1", "1"]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(race, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert "the same command resumes" in process.stdout.read()
    assert process.returncode == 3


def test_two_races_do_not_share_an_entry(tmp_path: Path) -> None:
    racer = Racer(Entry("cartpole", "CartPole-v1", 1), tmp_path, print)
    with exclusive(racer.directory / "lock"), pytest.raises(EntryFailed, match="another race"):
        racer.race(1e-6)  # without the lock it would train, and fail otherwise
