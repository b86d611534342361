"""Reports to a labml server: whatever it does, nothing blocks, raises, grows or reveals a secret."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atari_dqn.config.live import live_settings
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml import link as link_module
from atari_dqn.labml.http import LabmlServer, RequestFailed, check_url
from atari_dqn.labml.link import LabmlLink
from tests.labml_stand_in import DEADLINE, StandIn

EXIT = 5.0 + 5.0
"""Seconds that `close` may take: the promised time, and a margin for a busy machine."""


RATE = live_settings()["learning_rate"]
INTERVAL = live_settings()["target_update_interval"]
LIVE = {RATE: 1e-4, INTERVAL: 2_000.0}


@pytest.fixture
def make_link(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LabmlLink]]:
    links = []
    monkeypatch.setattr(link_module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(link_module, "MAX_PAUSE_SECONDS", 0.2)

    def make(url: str, **changes: Any) -> LabmlLink:
        settings: dict[str, Any] = {"name": "a run", "config": {"env_id": "pong"}}
        links.append(LabmlLink(url, live=LIVE, **settings | changes))
        return links[-1]

    yield make
    for link in links:
        link._last_sent.set()  # the tests of `close` call it themselves
        link.close()


def row(step: int) -> dict[str, float]:
    return {"env_step": step, "update": step // 4, "time": 1.5, "charts/episodic_return": step / 10, "losses/q": 0.5}


def steps(server: StandIn) -> set[float]:
    return {step for step, _ in server.points("charts/episodic_return")}


def until(what: Callable[[], Any]) -> Any:
    """The first true value of `what()`, which is called again and again."""
    end = time.monotonic() + DEADLINE
    while not (found := what()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# ---------------------------------------------------------------------- an honest server


def test_rows_configuration_and_sliders_arrive_and_the_run_is_claimed(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url, config={"env_id": "pong", "learning_rate": 1e-4})
        server.wait_for(
            lambda: server.points("hp.learning_rate") == [(0, 1e-4)]
        )  # without a value the page has no slider
        for step in (500, 1_000, 1_500):
            link.write(row(step))
        server.wait_for(lambda: len(steps(server)) == 3 and server.came("PUT", f"/api/v1/run/{link.uuid}/claim"))
        assert server.points("charts/episodic_return") == [(500, 50), (1_000, 100), (1_500, 150)]
        configs = next(packet["configs"] for packet in server.packets() if "configs" in packet)
        assert configs["env_id"]["value"] == "pong"
        slider = {"type": "DynamicSchedule", "default": 1e-4, "range": [0.0, 1e-3], "dynamic_type": "float"}
        slider["bounds"] = "above 0 to 1"
        assert configs["learning_rate"]["computed"] == slider
        assert configs["target_update_interval"]["computed"]["dynamic_type"] == "int"
        assert next(packet["name"] for packet in server.packets() if "name" in packet) == "a run"
        assert not any({"stdout", "stderr", "logger"} & set(packet) for packet in server.packets())
        names = {name for packet in server.packets() for name in packet.get("track", {})}
        assert names == {"charts/episodic_return", "losses/q", "hp.learning_rate", "hp.target_update_interval"}
        link.close()
        assert server.packets()[-1]["status"]["status"] == "completed"
        assert (link.dropped, link.problem()) == (0, None)


def test_a_resumed_run_begins_at_its_env_step(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        make_link(server.url, env_step=7_000)
        server.wait_for(lambda: server.points("hp.target_update_interval") == [(7_000, 2_000)])


def test_the_page_opens_with_the_score(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        link.write({"env_step": 100, "charts/beta": 0.5, "charts/z": 1.0})
        server.wait_for(lambda: server.points("charts/beta"))
        link.write(row(500))
        (asked,) = server.wait_for(lambda: server.came("POST", f"metrics/preferences/{link.uuid}"))
        assert json.loads(asked.body) == {"series_preferences": [-1, 1]}


def test_a_row_written_just_before_the_end_arrives(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        server.wait_for(lambda: server.came("PUT", "claim"))
        link.write(row(500))
        link.close()
        assert steps(server) == {500}
        assert link.dropped == 0


def test_values_that_are_not_numbers_are_omitted(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url, config={"rate": math.inf})
        link.write(row(500) | {"losses/q": math.nan})
        link.write(row(1_000) | {"losses/q": math.inf})
        link.write(row(1_500) | {"losses/text": "nine", "settings/learning_rate": 7e-5})  # type: ignore[arg-type]
        server.wait_for(lambda: 1_500 in steps(server))
        assert server.points("losses/text") == []
        assert server.points("hp.learning_rate")[-1] == (1_500, 7e-5)  # the row's own value
        assert [step for step, _ in server.points("losses/q")] == [1_500]


@pytest.mark.parametrize("value", [99, -math.inf, math.nan, -2, "9" * 500_000])
def test_numbers_for_live_values_arrive_unchanged(value: Any, make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        server.edit({"unknown": 1.0, "learning_rate": value, "target_update_interval": 3.7})
        numbers = {} if isinstance(value, str) else {"learning_rate": value}
        assert json.dumps(dict(until(link.poll))) == json.dumps({**numbers, "target_update_interval": 3.7})


def test_the_page_keeps_what_was_typed_until_the_run_answers(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        server.edit({"learning_rate": 99, "target_update_interval": 500})
        until(lambda: len(link._edits) == 2)
        before = len(server.requests)
        server.wait_for(lambda: len(server.requests) > before + 3)
        assert not server.came("POST", "hyper_params")
        assert dict(link.poll()) == {"learning_rate": 99, "target_update_interval": 500}
        link.answer("learning_rate", "refused")
        link.answer("target_update_interval", "taken")
        link.answer("unknown", "refused")
        before = len(server.requests)
        server.wait_for(lambda: len(server.requests) > before + 3)
        assert not server.came("PUT", "answers"), "before the values that go with them"
        link.show({"learning_rate": 1e-4, "target_update_interval": 500})
        (answers,) = server.wait_for(lambda: server.came("PUT", f"answers/{link.uuid}"))
        assert json.loads(answers.body) == {"learning_rate": "refused", "target_update_interval": "taken"}
        (correction,) = server.came("POST", "hyper_params")
        assert json.loads(correction.body) == {"learning_rate": 1e-4}
        assert server.requests.index(correction) < server.requests.index(answers)


def test_the_page_keeps_an_edit_that_waits_while_another_value_is_edited_elsewhere(
    make_link: Callable[..., LabmlLink],
) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        server.edit({"learning_rate": 3e-4})
        until(lambda: link._edits)  # and the run has not asked for it
        link.show({"learning_rate": 1e-4, "target_update_interval": 500})  # `tune` changed the other
        (correction,) = server.wait_for(lambda: server.came("POST", "hyper_params"))
        assert json.loads(correction.body) == {"target_update_interval": 500}
        assert link.poll() == [("learning_rate", 3e-4)]
        link.show({"learning_rate": 2e-4})
        server.wait_for(lambda: server.asked["learning_rate"] == 2e-4)


class Hasty(StandIn):
    """A server on whose page another edit is made just before the page is corrected."""

    def answer(self, request: Any) -> dict[str, Any]:
        if request.method == "GET" and "hyper_params" in request.path and self.asked["learning_rate"] == 99:
            self.edit({"learning_rate": 3e-4})
        return super().answer(request)


def test_an_edit_made_during_a_correction_is_not_overwritten(make_link: Callable[..., LabmlLink]) -> None:
    with Hasty() as server:
        link = make_link(server.url)
        server.edit({"learning_rate": 99})
        assert until(link.poll) == [("learning_rate", 99)]
        link.show({"learning_rate": 1e-4})
        assert until(link.poll) == [("learning_rate", 3e-4)]
        assert not server.came("POST", "hyper_params")


def test_after_a_refusal_the_page_shows_the_old_value_again(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        for _ in range(2):  # the same wrong value arrives again
            server.edit({"learning_rate": 99})
            assert until(link.poll) == [("learning_rate", 99)]
            link.show({"learning_rate": 1e-4})
            server.wait_for(lambda: server.asked["learning_rate"] == 1e-4)
        link.show({"learning_rate": 5e-5})  # edited elsewhere
        server.wait_for(lambda: server.asked["learning_rate"] == 5e-5)
        link.write(row(500))
        server.wait_for(lambda: (500, 5e-5) in server.points("hp.learning_rate"))
        count = len(server.requests)
        server.wait_for(lambda: len(server.requests) > count + 1)
        assert link.poll() == []  # our own corrections are not edits
        server.edit({"learning_rate": 3e-4})
        assert until(link.poll) == [("learning_rate", 3e-4)]


# ---------------------------------------------------------------------- a server that comes and goes


def test_a_server_that_is_down_at_the_start_gets_everything_later(make_link: Callable[..., LabmlLink]) -> None:
    port = free_port()
    link = make_link(f"http://127.0.0.1:{port}")
    link.write(row(500))
    assert "cannot be reached" in until(link.problem)
    link.write(row(1_000))
    with StandIn(port=port) as server:
        server.wait_for(lambda: steps(server) == {500, 1_000} and server.came("PUT", "claim"))
        assert any("configs" in packet for packet in server.packets())
    assert link.dropped == 0


def test_a_server_that_goes_down_and_comes_back_misses_nothing(make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as first:
        link = make_link(first.url)
        link.write(row(500))
        first.wait_for(lambda: 500 in steps(first) and "PUT" in [request.method for request in first.requests[:-1]])
        port = first.port  # by now the run is introduced
    link.write(row(1_000))
    assert "cannot be reached" in until(link.problem)
    link.write(row(1_500))
    link.show({"learning_rate": 5e-5})
    with StandIn(port=port) as second:
        second.wait_for(lambda: {1_000, 1_500} <= steps(second))
        # It may be another server, so the run is introduced again, with its present values.
        configs = next(packet["configs"] for packet in second.packets() if "configs" in packet)
        assert configs["learning_rate"]["value"]["default"] == 5e-5
        second.edit({"learning_rate": 2e-4})
        assert until(link.poll) == [("learning_rate", 2e-4)]


@pytest.mark.parametrize("keeps", [True, False], ids=["the same server", "an empty one"])
def test_a_server_that_was_away_shows_what_was_changed_meanwhile(
    keeps: bool, make_link: Callable[..., LabmlLink]
) -> None:
    with StandIn() as server:
        link = make_link(server.url)
        server.edit({"learning_rate": 3e-4})
        assert until(link.poll) == [("learning_rate", 3e-4)]
        link.show({"learning_rate": 3e-4})
        server.behaviour = "status_500"
        until(link.problem)
        link.show({"learning_rate": 5e-5})
        if not keeps:
            server.asked.clear()
        server.behaviour = "labml"
        server.wait_for(lambda: server.asked.get("learning_rate") == 5e-5)


def test_the_oldest_points_are_dropped_and_counted(make_link: Callable[..., LabmlLink]) -> None:
    total = link_module.ROWS_KEPT + 3_000
    with StandIn("silent") as server:
        link = make_link(server.url)
        server.wait_for(lambda: server.requests)
        for step in range(1, total + 1):
            link.write(row(step))
        assert link.dropped == 3_000
        server.behaviour = "labml"
        server.release.set()
        server.wait_for(lambda: total in steps(server))
        assert steps(server) == set(range(3_001, total + 1))


def test_the_last_report_has_all_rows_that_wait(make_link: Callable[..., LabmlLink]) -> None:
    port = free_port()
    link = make_link(f"http://127.0.0.1:{port}")
    until(link.problem)
    for step in range(1, 2 * link_module.ROWS_PER_REPORT + 100):
        link.write(row(step))
    with StandIn(port=port) as server:
        link.close()
        assert len(steps(server)) == 2 * link_module.ROWS_PER_REPORT + 99
    assert link.dropped == 0


# ---------------------------------------------------------------------- a broken server


BROKEN = {
    "html": "not a JSON",
    "invalid_json": "not a JSON",
    "errors": "blocked_run_uuid",
    "status_500": "status 500",
    "gigabyte": "not a JSON",
    "redirect": "redirect",
}


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_broken_answer_costs_points_and_one_line(behaviour: str, make_link: Callable[..., LabmlLink]) -> None:
    with StandIn() as elsewhere, StandIn(behaviour, elsewhere=elsewhere.url) as server:
        link = make_link(server.url)
        link.write(row(500))
        line = until(link.problem)
        assert BROKEN[behaviour] in line
        assert len(line) <= 200
        assert line.isprintable()
        server.wait_for(lambda: len(server.requests) >= 3)
        assert link.problem() is None  # reported once
        assert link.poll() == []
        assert server.bytes_sent < 10**8  # the rest of the gigabyte is not read
        server.behaviour = "labml"
        link.write(row(1_000))
        server.wait_for(lambda: {500, 1_000} <= steps(server))
        assert elsewhere.requests == []
        start = time.monotonic()
        link.close()
        assert time.monotonic() - start < EXIT


@pytest.mark.parametrize("behaviour", ["silent", "slow", "refusing"])
def test_closing_takes_five_seconds_at_most(behaviour: str, make_link: Callable[..., LabmlLink]) -> None:
    with StandIn("labml" if behaviour == "refusing" else behaviour) as server:
        link = make_link(server.url if behaviour != "refusing" else f"http://127.0.0.1:{free_port()}")
        link.write(row(500))
        until(lambda: server.requests or link.problem())
        link.write(row(1_000))
        start = time.monotonic()
        link.close()
        assert time.monotonic() - start < EXIT
        assert link.dropped == 2
        start = time.monotonic()
        link.close()
        link.write(row(1_500))
        link.show({"learning_rate": 1e-3})
        assert link.poll() == []
        assert time.monotonic() - start < EXIT


def test_silence_has_a_deadline() -> None:
    with StandIn("silent") as server, pytest.raises(RequestFailed, match=r"has not answered for 0\.5 s"):
        LabmlServer(check_url(server.url), seconds=0.5).ask("POST", "track", [])


# ---------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    [
        *("", "labml", "localhost:5005", "file:///etc/passwd", "ftp://host/x", "http://", "http:///api", "//host"),
        *("http://host:0", "http://host:99999", "http://host:port", "http://ho st", "http://host/a b", "http://host\n"),
        *("http://host/?x=1", "http://host/#x", "javascript:alert(1)", "http://host\r\nX: y", "http://h\x00st"),
        *("http://user:secret@host", "https://secret@host/x"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_url(url)
    assert "must be like http" in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:5005", "http://127.0.0.1:5005/api/v1"),
        ("https://labml.example/", "https://labml.example/api/v1"),
        ("http://[::1]:5005/api/v1/", "http://[::1]:5005/api/v1"),
        ("HTTP://host/somewhere/else", "HTTP://host/somewhere/else"),
    ],
)
def test_a_plain_url_is_completed(url: str, address: str) -> None:
    assert check_url(url) == address


def test_a_link_imports_nothing_heavy_and_a_process_ends_without_waiting_for_it() -> None:
    code = (
        "import sys; from atari_dqn.labml.link import LabmlLink; LabmlLink(sys.argv[1], name='', config={}, live={})\n"
        "print(sorted({'torch', 'labml', 'gymnasium', 'numpy'} & set(sys.modules)))"
    )
    with StandIn("silent") as server:
        done = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=DEADLINE
        )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


# ---------------------------------------------------------------------- the real server


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip(["labml_app", "handlers"][0], reason="needs the extra `dashboard`")
    port = free_port()
    environment = os.environ | {
        "HOME": str(tmp_path),
        "LABML_APP_SERVER_IP": "127.0.0.1",
        "LABML_APP_SERVER_PORT": str(port),
    }
    code = f"import uvicorn, labml_app.flask_app as f; uvicorn.run(f.app, host='127.0.0.1', port={port})"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def ask(url: str, content: Any = None) -> dict[str, Any]:
    data = None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=DEADLINE) as reply:
            answer: dict[str, Any] = json.loads(reply.read())
            return answer
    except OSError:
        return {}


def test_the_real_server_shows_the_run_and_its_edits_arrive(
    real_server: str, make_link: Callable[..., LabmlLink]
) -> None:
    link = make_link(real_server)
    link.write(row(500) | {"charts/SPS": 1.0})
    link.write(row(1_000))
    api = f"{real_server}/api/v1"

    def series(kind: str) -> dict[str, Any]:
        return {line["name"]: line for line in ask(f"{api}/{kind}/{link.uuid}").get("series", [])}

    until(lambda: "charts/episodic_return" in series("metrics"))
    assert series("metrics")["charts/episodic_return"]["value"] == [50, 100]
    until(lambda: ask(f"{api}/metrics/preferences/{link.uuid}").get("series_preferences") == [-1, 1])
    assert [line["name"] for line in ask(f"{api}/metrics/{link.uuid}")["series"]][1] == "charts/episodic_return"
    run = until(lambda: (found := ask(f"{api}/run/{link.uuid}")).get("is_project_run") and found)
    assert run["name"] == "a run"
    slider = series("hyper_params")["learning_rate"]
    assert (slider["is_editable"], slider["range"], slider["value"][-1]) == (True, [0.0, 1e-3], 1e-4)

    assert ask(f"{api}/hyper_params/{link.uuid}", {"learning_rate": 99}) == {"errors": []}
    assert until(link.poll) == [("learning_rate", 99)]
    link.show({"learning_rate": 1e-4})
    until(lambda: series("hyper_params")["learning_rate"]["sub"]["value"][-1] == 1e-4)
    ask(f"{api}/hyper_params/{link.uuid}", {"learning_rate": 2e-4})
    assert until(link.poll) == [("learning_rate", 2e-4)]
    link.show({"learning_rate": 2e-4})
    link.write(row(1_500))
    until(lambda: series("hyper_params")["learning_rate"]["value"][-1] == 2e-4)
    link.close()
    assert link.dropped == 0
    assert ask(f"{api}/run/status/{link.uuid}")["run_status"]["status"] == "completed"
