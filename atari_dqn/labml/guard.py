"""The door of the dashboard: every request passes here before labml's server sees it, and every reply on its way out.

The server knows no login, so whoever reaches it may read and edit. Refused are requests for another host or
from another site's page (403), paths that climb out of the page's folder (403), bodies beyond `MOST_BYTES` (413), and
hyperparameter values that are no finite numbers (400): one NaN would make the run's page unreadable for good.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = 32 * 2**20
"""Of a request's body. A client that was cut off for an hour sends some hundred kilobytes."""

HYPER_PARAMS = re.compile(r"/api/v1/hyper_params/[^/]+/?")


class Refused(Exception):
    """The request is answered with `status` and a line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Guard:
    """An ASGI app around `app`, which is served at `port`; `policy` is the page's Content-Security-Policy."""

    def __init__(self, app: App, port: int, policy: str) -> None:
        self._app = app
        names = ("127.0.0.1", "localhost")
        self._hosts = {f"{name}:{port}" for name in names} | ({*names} if port == 80 else set())
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-cache"),  # or a browser would keep the page of before the packages were there
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            self._check_head(scope)
            body = await _body(scope, receive)
            if scope["method"] == "POST" and HYPER_PARAMS.fullmatch(scope["path"]):
                check_values(body)
        except Refused as refused:
            await _answer(refused, send_guarded)
            return
        await self._app(scope, _replay(body, receive), send_guarded)

    def _check_head(self, scope: Message) -> None:
        values: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in scope["headers"]:
            if name in values:
                values[name].append(value.decode("latin-1").lower())
        if len(values[b"host"]) != 1 or values[b"host"][0] not in self._hosts:
            raise Refused(403, "this server answers only for 127.0.0.1 and localhost")
        if not set(values[b"origin"]) <= {f"http://{host}" for host in self._hosts}:
            raise Refused(403, "this server answers only its own pages")
        if ".." in re.split(r"[/\\]", scope["path"]):
            raise Refused(403, "no such path")


async def _body(scope: Message, receive: Receive) -> bytes:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    body = bytearray()
    more = True
    while more:
        if len(body) > MOST_BYTES or int(declared) > MOST_BYTES:
            raise Refused(413, f"a request's body may have {MOST_BYTES:,} bytes")
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


def check_values(body: bytes) -> None:
    """Raise `Refused` unless `body` is a JSON object of finite numbers."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body must be JSON") from None
    if not isinstance(values, dict):
        raise Refused(400, "the body must be a JSON object of names and numbers")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise Refused(400, f"{name[:100]} must be a finite number")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


async def _answer(refused: Refused, send: Send) -> None:
    content = json.dumps({"error": str(refused)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # what is left of the request's body is not waited for
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
