"""`python -m atari_dqn.dashboard` as a process: refused requests, its data, its start and its end."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from atari_dqn import dashboard
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml.launch import DashboardProcess, running, start
from tests.dashboard_fixtures import DEADLINE, NOBODY, call, dashboard_server, wait_until  # noqa: F401

CHUNKED = {"Transfer-Encoding": "chunked"}
UUID = "0123456789abcdef"
COMMAND = [sys.executable, "-m", "atari_dqn.dashboard"]


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No npm registry, and an empty home: these tests need neither."""
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", NOBODY)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def report(api_url: str, step: int = 100, rate: float = 1e-4) -> Any:
    """Send one report of a run in labml's format; the server answers it after a pause of 3 s."""
    live = {"type": "DynamicSchedule", "default": 1e-4, "range": [0.0, 1e-3], "dynamic_type": "float"}
    packet = {
        "name": "made up",
        "computer": "0123456789abcdef",
        "time": 0.0,
        "track": {"hp.learning_rate": {"step": [step], "value": [rate]}},
    }
    if step == 100:
        packet["configs"] = {"learning_rate": {"name": "learning_rate", "computed": live}}
    status, reply = call("POST", f"{api_url}/track?run_uuid={UUID}&labml_version=0.5.3", [packet])
    assert status == 200
    return reply


def test_another_host_or_origin_is_refused(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    port = urllib.parse.urlsplit(dashboard_server.url).port
    url = f"{dashboard_server.api_url}/auth/is_logged"
    for host in (f"localhost:{port}", f"127.0.0.1:{port}"):
        assert call("GET", url, headers={"Host": host})[0] == 200
        assert call("GET", url, headers={"Host": host, "Origin": f"http://{host}"})[0] == 200
    for host in ("attacker.example", f"attacker.example:{port}", f"127.0.0.1.attacker.example:{port}", "", "["):
        assert call("GET", url, headers={"Host": host})[0] == 400
    for origin in ("http://attacker.example", "null", "https://app.labml.ai", "http://127.0.0.1:1", "http://localhost"):
        assert call("POST", f"{dashboard_server.api_url}/user", {"user": {}}, {"Origin": origin})[0] == 403


def test_it_listens_on_loopback_only(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    listening = [c for c in psutil.Process(dashboard_server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


def test_no_path_leaves_the_pages_folder(dashboard_server: DashboardProcess, tmp_path: Path) -> None:  # noqa: F811
    assert (tmp_path / "dashboard" / "data" / "ProjectIndex.yaml").is_file()
    for up in ("..", "%2e%2e", "%2E."):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(dashboard_server.url).netloc)
        connection.request("GET", f"/{up}/data/ProjectIndex.yaml")
        assert connection.getresponse().status == 403
        connection.close()


def test_a_body_without_end_is_refused(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 2**20

    host = urllib.parse.urlsplit(dashboard_server.url).netloc
    connection = http.client.HTTPConnection(host, timeout=300)
    with pytest.raises(ConnectionError):  # the server closes the connection in the middle
        connection.request(
            "POST",
            f"/api/v1/track?run_uuid={UUID}&labml_version=0.5.3",
            endless(),
            encode_chunked=True,
            headers=CHUNKED,
        )
    assert running(dashboard_server.url)
    connection = http.client.HTTPConnection(host, timeout=300)
    connection.putrequest("POST", "/api/v1/track")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_values_that_would_break_the_page_are_refused(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    api = dashboard_server.api_url
    report(api)
    assert call("PUT", f"{api}/run/{UUID}/claim")[0] == 200
    for body in (
        *(b'{"learning_rate": NaN}', b'{"learning_rate": Infinity}', b'{"learning_rate": 1e999}'),
        *(b'{"learning_rate": "nan"}', b'{"learning_rate": null}', b'{"learning_rate": true}'),
        *(b'{"learning_rate": [1]}', b'{"learning_rate": 1' + b"0" * 400 + b"}", b"[1]", b"hello", b"[" * 100_000),
    ):
        for path in (f"hyper_params/{UUID}", f"hyper_params/{UUID}/"):
            assert call("POST", f"{api}/{path}", body)[0] == 400, body[:40]
    assert call("POST", f"{api}/hyper_params/{UUID}", {"learning_rate": 3e-4}) == (200, {"errors": []})
    status, page = call("GET", f"{api}/hyper_params/{UUID}")
    assert status == 200
    assert page["series"][0]["sub"]["value"][-1] == 3e-4
    assert report(api, 200)["dynamic"] == {"learning_rate": 3e-4}


def test_data_are_kept_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    server = start(0, Path("kept"))
    report(server.api_url)
    server.close()
    assert not running(server.url)
    assert [path.name for path in work.iterdir()] == ["kept"]
    assert stat.S_IMODE((work / "kept").stat().st_mode) == 0o700
    assert not (tmp_path / "home").exists()
    again = start(0, Path("kept"))
    assert call("GET", f"{again.api_url}/run/{UUID}")[1]["name"] == "made up"
    again.close()
    default = start(0)
    assert (tmp_path / "xdg_data_home" / "atari_dqn" / "dashboard" / "data").is_dir()
    default.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_reply_under_way(tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, "--port", "0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        api = next(line for line in process.stdout if "--labml-url" in line).split()[-1]
        replies: list[Any] = []
        reporter = threading.Thread(target=lambda: replies.append(report(api)))
        reporter.start()
        wait_until(lambda: call("GET", f"{api}/run/{UUID}")[0] == 200, "the report has arrived")
        process.send_signal(number)
        out, errors = process.communicate(timeout=DEADLINE)
        reporter.join(DEADLINE)
    assert (process.returncode, out, errors) == (0, "", "")
    assert replies[0]["errors"] == []


def test_a_port_or_directory_in_use_is_reported_in_one_line(dashboard_server: DashboardProcess, tmp_path: Path) -> None:  # noqa: F811
    taken = str(urllib.parse.urlsplit(dashboard_server.url).port)
    held = ["--port", "0", "--data-dir", str(tmp_path / "dashboard")]
    a_file = tmp_path / "file"
    a_file.touch()
    for arguments, word in (
        (["--port", taken, "--data-dir", str(tmp_path / "other")], f"--port {taken}"),
        (held, "another dashboard"),
        (["--port", "0", "--data-dir", str(a_file)], "--data-dir"),
        (["--port", "70000"], "from 0 to 65535"),
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 2
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(ConfigError, match=f"--port {taken}"):
        start(int(taken), tmp_path / "other")


@pytest.mark.parametrize("instead", [None, "0.5.14"])
def test_without_the_right_labml_app_the_pip_command_is_printed(tmp_path: Path, instead: str | None) -> None:
    import labml

    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(labml.__file__).parent.parent.iterdir():
        if not entry.name.startswith("labml_app"):
            (packages / entry.name).symlink_to(entry)
    if instead:
        metadata = packages / f"labml_app-{instead}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: labml-app\nVersion: {instead}\n")
    root = Path(dashboard.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", *COMMAND[1:]],  # -S: without the installed packages
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 2, done.stderr
    assert 'python -m pip install "labml-app==0.0.102" requests' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from atari_dqn.labml import launch\n"
        "server = launch.start(0, Path(sys.argv[1])); print(server.pid, server.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        assert running(url)
        child = psutil.Process(int(pid))
        parent.kill()
    assert child.wait(DEADLINE) in (0, None)  # None if another process has reaped it


def test_running_recognises_a_labml_server(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    assert running(dashboard_server.url)
    assert running(dashboard_server.api_url)

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>" + b" " * 10_000)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert not running(f"http://127.0.0.1:{other.server_address[1]}/api/v1")
        other.shutdown()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not running(f"http://127.0.0.1:{silent.getsockname()[1]}/api/v1", seconds=0.2)
    for url in ("", "hello", "file:///etc/passwd", "http://[", f"{NOBODY}/api/v1"):
        assert not running(url)


def test_without_packages_the_page_keeps_its_links_and_loses_the_reporters(dashboard_server: DashboardProcess) -> None:  # noqa: F811
    assert any("needs the internet" in line for line in dashboard_server.said)
    with urllib.request.urlopen(dashboard_server.url) as reply:
        policy, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert policy.startswith("default-src 'self'; script-src 'self' https://d3js.org ")
    assert "https://d3js.org/d3.v6.min.js" in page
    assert "sentry" not in page
    assert "mixpanel" not in page
