"""`python -m benchmarks.peers`: only turns are counted, failures are reported, goals are met or missed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from benchmarks.peers import __main__ as peers
from benchmarks.peers.contestants.cleanrl import Replay
from benchmarks.peers.goals import goals, standing
from benchmarks.peers.memory import Memory, family_memory
from benchmarks.peers.seats import ContestantFailed, Seat, Turn
from benchmarks.peers.work import CONTESTANTS, Contestant, Work

WORK = Work(replay_capacity=1024, learning_starts=64, warm_up_updates=3, batch_size=4)
STUB = [sys.executable, "-m", "tests.peer_stub"]


def unwatched(_: dict[str, Any]) -> None:
    pass


# ---------------------------------------------------------------------- goals


def standings(**rates: list[float]) -> dict[str, dict[str, Any]]:
    """Standings with these env steps/s in each round; peak memory is 1 GB, and half of it for ours."""
    versions = {who.package: "1" for who in CONTESTANTS.values()}
    return {
        name: standing(
            name,
            [Turn(int(60 * rate), int(15 * rate), 60.0) for rate in of_rounds],
            Memory(10**9 // (2 if name == "ours" else 1), 2 * 10**9),
            versions,
        )
        for name, of_rounds in rates.items()
    }


def goal(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    [one] = [one for one in found if one["goal"] == name]
    return one


def test_rates_are_medians_over_the_rounds() -> None:
    of = standings(sb3=[100.0, 400.0, 120.0])["sb3"]
    assert (of["env_steps_per_second"], of["updates_per_second"], of["env_steps_per_update"]) == (120, 30, 4)
    assert (of["peak_memory_bytes"], of["peak_resident_bytes"]) == (10**9, 2 * 10**9)
    assert of["turns"][0] == {"env_steps": 6000, "updates": 1500, "wall": 60.0}


def test_a_ratio_is_formed_within_each_round() -> None:
    # A disturbance that lasts a round slows all alike: the ratio of the medians would be 300 / 120.
    found = goals(standings(ours=[100, 300, 360], sb3=[40, 150, 120]), WORK)
    assert goal(found, "env steps/s, ours / sb3")["figure"] == pytest.approx(2.5)
    found = goals(standings(ours=[300, 100, 360], sb3=[40, 150, 120]), WORK)
    assert goal(found, "env steps/s, ours / sb3")["figure"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("name", "least"), [("tianshou", 2.5), ("pfrl", 2.5), ("labml", 2.5), ("sb3", 2), ("cleanrl", 2)]
)
def test_each_peer_has_the_goal_of_its_algorithm(name: str, least: float) -> None:
    assert CONTESTANTS[name].prioritized == CONTESTANTS[name].double == (least == 2.5)
    for rate, holds in ((100 * least, True), (100 * least - 1, False)):
        found = goals(standings(**{"ours": [rate], name: [100.0]}), WORK)
        assert goal(found, f"env steps/s, ours / {name}")["holds"] is holds


def test_the_ratio_at_the_peers_precision_is_reported_without_a_bound() -> None:
    name = "env steps/s, ours-fp32 / sb3"
    found = goals(standings(**{"ours": [300.0], "ours-fp32": [150.0], "sb3": [100.0]}), WORK)
    told = goal(found, name)
    assert (told["figure"], told["at_least"], told["at_most"]) == (pytest.approx(1.5), None, None)
    assert told["holds"]
    assert name not in [one["goal"] for one in goals(standings(ours=[300], sb3=[100]), WORK)]


@pytest.mark.parametrize(("peer", "is_plain"), [("sb3", True), ("cleanrl", True), ("pfrl", False), ("labml", False)])
def test_the_ratio_of_plain_dqn_to_plain_dqn_is_reported_without_a_bound(peer: str, is_plain: bool) -> None:
    found = goals(standings(**{"ours": [300.0], "ours-plain": [450.0], peer: [100.0]}), WORK)
    told = [one for one in found if one["goal"] == f"env steps/s, ours-plain / {peer}"]
    assert [(one["figure"], one["at_least"], one["at_most"], one["holds"]) for one in told] == [
        (pytest.approx(4.5), None, None, True)
    ] * is_plain


def test_our_contestants_have_the_algorithm_of_their_settings() -> None:
    for name, who in CONTESTANTS.items():
        if who.is_ours:
            config = TrainConfig().replace(**json.loads(who.arguments[0]))
            has = (config.replay.replay == "prioritized", config.learner.double_q, config.network.dueling)
            assert has == (who.prioritized, who.double, who.dueling), name


def test_memory_is_compared_with_each_page_counted_once() -> None:
    of = standings(ours=[300], sb3=[100])
    assert goal(goals(of, WORK), "memory, ours / sb3")["figure"] == pytest.approx(0.5)
    of["ours"]["peak_memory_bytes"] = 10**9 + 1
    assert not goal(goals(of, WORK), "memory, ours / sb3")["holds"]


def test_a_peer_with_another_update_ratio_fails_its_goal() -> None:
    of = standings(ours=[300], sb3=[100])
    assert goal(goals(of, WORK), "sb3 does the work")["holds"]
    of["sb3"]["env_steps_per_update"] = 4.3
    assert not goal(goals(of, WORK), "sb3 does the work")["holds"]


def test_without_ours_there_is_nothing_to_compare_with() -> None:
    assert [one["goal"] for one in goals(standings(sb3=[100]), WORK)] == ["sb3 does the work"]


# ---------------------------------------------------------------------- environments


def test_every_peer_is_pinned_with_torch() -> None:
    for name, who in CONTESTANTS.items():
        if who.is_ours:
            continue
        lines = [
            line.split("#")[0].strip()
            for line in (Path(peers.__file__).parent / "requirements" / f"{name}.txt").read_text().splitlines()
        ]
        assert "torch==2.13.0" in lines, name
        assert any(line.startswith(f"{who.package}==") for line in lines), name
        assert all(line.count("==") == 1 for line in lines), name


# ---------------------------------------------------------------------- turns


def test_a_contestant_trains_in_its_turns_and_at_no_other_time(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    with Seat(STUB, WORK, tmp_path / "log", ("count", str(counter))) as seat:
        seat.prepare(unwatched)
        assert seat.versions.keys() >= {"torch", "python", "atari-dqn"}
        # The stub is through with learning_starts after 16 iterations and 16 updates.
        done = [int(counter.read_text())]
        assert done == [64]
        for _ in range(3):
            turn = seat.turn(0.05, unwatched)
            assert turn.wall >= 0.05
            assert turn.env_steps == 4 * turn.updates > 0
            done.append(int(counter.read_text()))
            assert done[-1] - done[-2] == turn.env_steps
        assert seat.peak.resident >= seat.peak.each_page_once > 0


def test_what_a_library_prints_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    with Seat(STUB, WORK, tmp_path / "log", ("noise",)) as seat:
        seat.prepare(unwatched)
        assert seat.turn(0.01, unwatched).updates > 0
    assert '{"ready": "no"}' in (tmp_path / "log").read_text()


def workers_of(seat: Seat) -> list[psutil.Process]:
    return psutil.Process(seat._process.pid).children(recursive=True)


def test_a_failure_has_the_last_lines_of_the_log_and_leaves_no_process(tmp_path: Path) -> None:
    with Seat(STUB, WORK, tmp_path / "log", ("break",)) as seat:
        seat.prepare(unwatched)
        workers = workers_of(seat)
        assert workers
        with pytest.raises(ContestantFailed, match=r"exit code 1(.|\n)*ValueError: the stub is broken"):
            seat.turn(60, unwatched)
        assert psutil.wait_procs(workers, timeout=60)[1] == []
        with pytest.raises(ContestantFailed, match="the stub is broken"):
            seat.turn(60, unwatched)


def test_leaving_the_seat_kills_a_contestant_and_its_workers_during_a_turn(tmp_path: Path) -> None:
    def give_up(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Seat(STUB, WORK, tmp_path / "log", ("steady",)) as seat:  # noqa: PT012
        seat.prepare(unwatched)
        family = [psutil.Process(seat._process.pid), *workers_of(seat)]
        assert len(family) == 2
        seat.turn(60, give_up)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_workers_do_not_outlive_a_learner_that_was_killed(tmp_path: Path) -> None:
    with Seat(STUB, WORK, tmp_path / "log", ("steady",)) as seat:
        seat.prepare(unwatched)
        workers = workers_of(seat)
        seat._process.kill()
        with pytest.raises(ContestantFailed):
            seat.turn(60, unwatched)
        assert [worker.is_running() for worker in workers] == [True]
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_a_contestant_ends_when_the_benchmark_has_ended(tmp_path: Path) -> None:
    with Seat(STUB, WORK, tmp_path / "log", ("steady",)) as seat:
        seat.prepare(unwatched)
        family = [psutil.Process(seat._process.pid), *workers_of(seat)]
        assert seat._process.stdin is not None
        seat._process.stdin.close()  # as the kernel does for one that was killed
        assert psutil.wait_procs(family, timeout=60)[1] == []


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell of shared pages")
def test_pages_shared_after_a_fork_count_once(tmp_path: Path) -> None:
    held = 64 * 2**20
    code = "import os, sys; held = b'x' * int(sys.argv[1]); os.fork(); os.fork(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(held)], stdin=-1, stdout=-1) as family:
        assert family.stdout is not None
        for _ in range(4):
            family.stdout.readline()
        memory = family_memory(family.pid)
        family.kill()
    assert held < memory.each_page_once < 2 * held
    assert memory.resident > 4 * held


# ---------------------------------------------------------------------- contestants that need no peer installed


@pytest.mark.parametrize("name", ["cleanrl", "ours", "ours-plain"])
def test_a_contestant_of_our_own_trains(name: str, tmp_path: Path) -> None:
    who = CONTESTANTS[name]
    with Seat([sys.executable, "-m", who.module], WORK, tmp_path / "log", who.arguments) as seat:
        seat.prepare(unwatched)
        env_steps = updates = 0
        while updates < 20:  # however slow the machine is
            turn = seat.turn(0.2, unwatched)
            env_steps, updates = env_steps + turn.env_steps, updates + turn.updates
    assert env_steps == pytest.approx(4 * updates, abs=8)


def test_the_single_env_replay_pairs_an_observation_with_the_next() -> None:
    replay = Replay(8, (1,), np.random.default_rng(1))
    for step in range(21):
        replay.add(np.array([step]), step, float(step), np.array([step + 1]), step % 5 == 4)
        obs, actions, rewards, next_obs, terminal = replay.sample(64)
        assert (obs[:, 0] == actions).all()
        assert (rewards == actions).all()
        assert (next_obs[:, 0] == actions + 1).all()
        assert (terminal == (actions % 5 == 4)).all()
        newest, kept = set(actions.tolist()), range(max(0, step - 6), step + 1)
        assert newest <= set(kept)
        assert len(newest) >= len(kept) - 1


# ---------------------------------------------------------------------- the command


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """A function that runs the command with stubs as contestants."""
    for name, manner in (("steady", "steady"), ("broken", "break")):
        stub = Contestant(name, "atari-dqn", "tests.peer_stub", True, True, True, arguments=(manner,))
        monkeypatch.setitem(CONTESTANTS, name, stub)
    return lambda *flags: peers.main([*flags, "--rounds", "2", "--seconds", "0.1", "--out", str(tmp_path / "p.json")])


def test_the_report_has_every_turn_and_the_machine(stubs: Callable[..., int], tmp_path: Path) -> None:
    assert stubs("--only", "steady") == 0
    report = json.loads((tmp_path / "p.json").read_text())
    assert len(report["standings"]["steady"]["turns"]) == 2
    assert report["work"]["replay_capacity"] == report["work"]["learning_starts"] == 2**14
    assert {"processor", "cores", "git_revision"} <= report["system"].keys()
    assert report["command"].startswith("python -m benchmarks.peers --only steady")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_failure_is_reported_and_the_others_continue(
    stubs: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stubs("--only", "broken,steady") == 1
    report = json.loads((tmp_path / "p.json").read_text())
    assert list(report["standings"]) == ["steady"]
    assert "ValueError: the stub is broken" in report["failed"]["broken"]
    assert "broken failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "dopamine"], "unknown contestant --only dopamine; choose from ours,"),
        (["--rounds", "0"], "--rounds is 0; it must be from 1"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--torch-threads", "0"], "--torch-threads is 0"),
        (["--replay-capacity", "10000"], "a power of two"),
        (["--out", "nowhere/peers.json"], "an existing directory"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        peers.main(flags)
