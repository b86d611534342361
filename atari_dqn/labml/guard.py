"""Middleware in front of labml's server, which has no login: whoever reaches it may read and edit.

Starlette's own middleware refuses requests for another host (400) and bodies above `MAX_BODY_BYTES` (413). Ours refuses
requests from another site's page and paths outside the page's folder (403), and hyperparameter values that are not
finite numbers (400): one NaN would make the run's page unreadable for good.
"""

import json
import re
import sys

from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 32 * 2**20
"""Largest body of a request. A client that was cut off for an hour sends some hundred kilobytes."""
HOSTS = ("127.0.0.1", "localhost")
HYPER_PARAMS = re.compile(r"/api/v1/hyper_params/[^/]+/?")


def guarded(app: ASGIApp, port: int, content_security_policy: str) -> ASGIApp:
    """Return `app` behind all guards, to be served at `port` of this machine's loopback address."""
    limited = RequestBodyLimitMiddleware(ValueGuard(app), MAX_BODY_BYTES)
    return TrustedHostMiddleware(PageGuard(limited, port, content_security_policy), HOSTS, www_redirect=False)


class PageGuard:
    """Refuses requests by their origin and path, and adds security headers to each reply."""

    def __init__(self, app: ASGIApp, port: int, content_security_policy: str) -> None:
        self._app = app
        self._origins = {f"http://{host}:{port}" for host in HOSTS}
        if port == 80:
            self._origins |= {f"http://{host}" for host in HOSTS}
        self._headers = [
            (b"content-security-policy", content_security_policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-cache"),  # or a browser would keep the page made before its packages were there
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                close = [(b"connection", b"close")] if message["status"] == 413 else []  # do not read the rest
                message["headers"] = [*message.get("headers", ()), *self._headers, *close]
            await send(message)

        app = self._app
        if not set(Headers(scope=scope).getlist("origin")) <= self._origins:
            app = JSONResponse({"error": "this server answers only its own pages"}, 403)
        elif ".." in re.split(r"[/\\]", scope["path"]):  # labml's server would follow it
            app = JSONResponse({"error": "the path leaves the page's folder"}, 403)
        await app(scope, receive, send_with_headers)


class ValueGuard:
    """Refuses edits of hyperparameters to anything but finite numbers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["method"] == "POST" and HYPER_PARAMS.fullmatch(scope["path"]):
            body = await Request(scope, receive).body()
            receive = _replay(body, receive)
            try:
                check_values(body)
            except ValueError as error:
                app = JSONResponse({"error": str(error)}, 400)
        await app(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` for the app behind, of a request whose body has been read."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def check_values(body: bytes) -> None:
    """Raise `ValueError` unless `body` is a JSON object of finite numbers."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    if not isinstance(values, dict):
        raise ValueError("the body must be a JSON object of names and numbers")
    for name, value in values.items():
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # not: NaN compares false
            raise ValueError(f"{name[:100]} must be a finite number")
