"""Test double of a labml server, whole or broken, on a real socket. It keeps all requests.

`python -m tests.labml_stand_in BEHAVIOUR PORT` serves from a process of its own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BEHAVIOURS = ("labml", "html", "invalid_json", "errors", "status_500", "redirect", "gigabyte", "slow", "silent")
DEADLINE = 300.0
"""Seconds after which a test gives up waiting."""
GIGABYTE = 10**9


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: str
    body: bytes

    @property
    def packets(self) -> list[dict[str, Any]]:
        return json.loads(self.body) if "/track?" in self.path else []


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    stand_in: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client may close the connection at any time


class StandIn:
    """Serves on 127.0.0.1 until `stop`; `behaviour` may change meanwhile.

    `labml` is the real server's protocol without its 3 s of waiting. The others: `html`, `invalid_json`, `errors`,
    `status_500`, `redirect` (to `elsewhere`), `gigabyte`, and until `release` `slow` (30 s a reply) and
    `silent`.
    """

    def __init__(self, behaviour: str = "labml", port: int = 0, elsewhere: str = "") -> None:
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"behaviour {behaviour!r} is not one of {', '.join(BEHAVIOURS)}")
        self.behaviour, self.elsewhere = behaviour, elsewhere
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.release = threading.Event()
        self.asked: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.stand_in = self
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def edit(self, asked: dict[str, Any]) -> None:
        """Make edits as a user does on the page."""
        with self._changed:
            self.asked |= asked
            self._pending |= asked
            self._changed.notify_all()

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """The first true value of `what()`, called at every request. Fails after `DEADLINE`."""
        with self._changed:
            found = self._changed.wait_for(what, DEADLINE)
        assert found, f"none of {len(self.requests)} requests made it true"
        return found

    def packets(self) -> list[dict[str, Any]]:
        return [packet for request in list(self.requests) for packet in request.packets]

    def points(self, name: str) -> list[tuple[float, float]]:
        """All points of a metric in the order of arrival: (environment step, value)."""
        series = [packet["track"][name] for packet in self.packets() if name in packet.get("track", {})]
        return [pair for one in series for pair in zip(one["step"], one["value"], strict=True)]

    def came(self, method: str, path: str) -> list[Request]:
        return [request for request in list(self.requests) if request.method == method and path in request.path]

    def keep(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def answer(self, request: Request) -> dict[str, Any]:
        """The honest server's reply."""
        if "hyper_params" in request.path:
            if request.method == "POST":
                self.edit(json.loads(request.body))
                return {"errors": []}
            with self._changed:
                return {"series": [{"name": key, "sub": {"value": [value]}} for key, value in self.asked.items()]}
        if "/track" not in request.path:
            return {"errors": []}
        with self._changed:
            edits, self._pending = self._pending, {}
        return {"errors": [], "url": f"{self.url}/run", "dynamic": edits}


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def _serve(self) -> None:
        stand_in = self.server.stand_in
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, str(self.headers), body)
        behaviour = stand_in.behaviour
        if behaviour == "labml":
            reply = json.dumps(stand_in.answer(request)).encode()
            stand_in.keep(request)
            return self._send(reply)
        stand_in.keep(request)
        if behaviour == "html":
            return self._send(b"<html><body>welcome to the hotel</body></html>", kind="text/html")
        if behaviour == "invalid_json":
            return self._send(b'{"errors": [')
        if behaviour == "errors":
            return self._send(json.dumps({"errors": [{"error": "blocked_run_uuid", "message": "\x1b[2J no"}]}).encode())
        if behaviour == "status_500":
            return self._send(b"oh", status=500)
        if behaviour == "redirect":
            return self._send(b"", status=307, location=f"{stand_in.elsewhere}{self.path}")
        if behaviour == "silent":
            stand_in.release.wait(10 * DEADLINE)
        if behaviour == "slow":
            stand_in.release.wait(30)
            return self._send(b'{"errors": []}')
        if behaviour == "gigabyte":
            self._head(200, GIGABYTE)
            for _ in range(GIGABYTE // 2**16):
                self.wfile.write(b" " * 2**16)
                stand_in.bytes_sent += 2**16
        return None

    do_GET = do_POST = do_PUT = _serve

    def _send(self, reply: bytes, status: int = 200, kind: str = "application/json", location: str = "") -> None:
        self._head(status, len(reply), kind, location)
        self.wfile.write(reply)

    def _head(self, status: int, length: int, kind: str = "application/json", location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    StandIn(sys.argv[1], int(sys.argv[2]))
    while True:
        time.sleep(3600)
