"""Requests to a labml server that may be slow, broken or hostile: JSON goes out, JSON or a `Trouble` comes back.

Everything is bounded: the time of a reply, its size, and where it may come from (no redirect is followed, no proxy
asked). `check_url` is what a command does to the user's URL before anything starts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 60.0
"""A server that takes 30 s over each reply is slow, and still served."""
MOST_BYTES = 2**20
"""of a reply; a real one has a few hundred."""
API = "/api/v1"
URL = re.compile(r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./~-]*)?", re.ASCII | re.IGNORECASE)


def check_url(url: str) -> str:
    """The address of the server's API for a URL as users give it: `http://127.0.0.1:5005` -> `.../api/v1`.

    Raises `ValueError`, one line which never repeats a password, for anything but a plain http or https address.
    """
    right = "it must be like http://127.0.0.1:5005"
    if "@" in url:
        raise ValueError(f"the labml URL holds a user name or password, which would be sent about; {right}")
    whole = URL.fullmatch(url)
    if whole is None:
        raise ValueError(f"the labml URL is {url!a:.100}; {right}")
    if whole[2] and not 0 < int(whole[2][1:]) < 65536:
        raise ValueError(f"the labml URL is {url!a:.100}: there is no port {whole[2][1:]}; {right}")
    path = (whole[3] or "").rstrip("/")
    return url[: whole.end(2) if whole[2] else whole.end(1)] + (path or API)


class Trouble(Exception):
    """The server did not do as asked: the message is one short line. `answered`: it was there, and replied."""

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(plain(message))
        self.answered = answered


class Server:
    """One labml server, by the address that `check_url` gave."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connect = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self.name = parts.netloc

    def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        query: Mapping[str, Any] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that the server replies. Raises `Trouble`, after `REPLY_SECONDS` and a bit at the latest.

        `sent` is called when the request has gone out.
        """
        address = f"{self._path}/{path}" + (f"?{urlencode(query)}" if query else "")
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        connection = self._connect(self._host, self._port, timeout=CONNECT_SECONDS)
        deadline: threading.Timer | None = None
        heard, late = False, threading.Event()
        try:
            connection.connect()
            # A timeout of the socket's own would begin anew with every byte that drips in.
            connection.sock.settimeout(None)
            deadline = threading.Timer(REPLY_SECONDS, _hang_up, (connection.sock, late))
            deadline.daemon = True
            deadline.start()
            connection.request(method, address, body, headers)
            if sent is not None:
                sent()
            reply = connection.getresponse()
            heard = True
            text = reply.read(MOST_BYTES + 1)
            if late.is_set():
                raise TimeoutError
        except Exception as error:  # a hostile server finds more ways than http.client declares
            silent, absent = f"has not answered for {REPLY_SECONDS:g} s", f"cannot be reached ({_reason(error)})"
            raise Trouble(f"the labml server {self.name} {silent if late.is_set() else absent}", heard) from None
        finally:
            if deadline is not None:
                deadline.cancel()
            connection.close()
        return self._understood(reply.status, text)

    def _understood(self, status: int, text: bytes) -> dict[str, Any]:
        def wrong(what: str) -> Trouble:
            return Trouble(f"the labml server {self.name} answers {what}", answered=True)

        if 300 <= status < 400:
            raise wrong("with a redirect, which is not followed")
        if status != 200:
            raise wrong(f"with status {status}")
        if len(text) > MOST_BYTES:
            raise wrong(f"with more than {MOST_BYTES:,} bytes")
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise wrong("with something that is not JSON: is it a labml server?") from None
        if not isinstance(reply, dict):
            raise wrong("with JSON of another kind: is it a labml server?")
        errors = reply.get("errors") or []
        errors = [error for error in errors if not (isinstance(error, dict) and "warning" in error)]
        if errors:
            raise wrong(f"with an error: {json.dumps(errors[0])}")
        return reply


def plain(text: str) -> str:
    """Fit for a line on a terminal: short, and nothing in it that a terminal would obey."""
    return re.sub(r"[^ -~]+", " ", text)[:200]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # it may just have ended by itself
        sock.shutdown(socket.SHUT_RDWR)
