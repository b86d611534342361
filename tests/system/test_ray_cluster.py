"""Connecting to a Ray cluster that is not there."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.system.ray_cluster import SETTINGS, connect, no_answer


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "is not an address; give HOST:PORT"),
        ("localhost:99999", "is not an address"),
        ("host.invalid:6379", r"no Ray cluster at host.invalid:6379 \(.*\); start its head as docs/cluster.md says"),
        ("auto", r"no Ray cluster on this machine \(no node of Ray's runs here\)"),
        ("127.0.0.1:{closed}", "no Ray cluster at .*Connection refused"),
    ],
)
def test_an_address_without_a_cluster_gets_one_line_at_once(address: str, words: str) -> None:
    """Ray itself would wait for 80 seconds and then end the process."""
    with socket.socket() as bound:  # without `listen` it refuses
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match=words) as caught:
            connect(address.format(closed=bound.getsockname()[1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 400 Bad Request", r"no Ray cluster at .*not Ray"),
        (b"", r"no Ray cluster at .*timed out"),
        # Ray itself would abort the process with fifty lines of its own.
        (SETTINGS, "this machine is no node of that cluster; run ray start --address 127.0.0.1:"),
    ],
)
def test_what_listens_but_cannot_be_joined_gets_one_line(
    said: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atari_dqn.system.ray_cluster.ANSWER_SECONDS", 1.0)

    def serve(server: socket.socket) -> None:
        with server.accept()[0] as accepted, contextlib.suppress(ConnectionResetError):
            accepted.sendall(said)
            while accepted.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        with pytest.raises(ConfigError, match=words):
            connect(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "atari_dqn\[cluster\]"'):
        connect("local")


def test_a_server_that_hangs_is_not_taken_for_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accepts a connection for a stopped `gcs_server`, and Ray's calls would then wait for ever."""
    monkeypatch.setattr("atari_dqn.system.ray_cluster.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        assert no_answer(*stopped.getsockname()) == "timed out"
