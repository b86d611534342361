"""HTTP client for a labml server that may be down, slow or hostile.

A request has one deadline for all of it, a reply has a size limit, and neither redirects nor proxies are followed.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from atari_dqn.config.setting import ConfigError

CONNECT_SECONDS = 10.0
"""Longest time to open a connection."""
REPLY_SECONDS = 60.0
"""Longest time for a request and its reply. A server that needs 30 s for each reply is slow, and still usable."""
MAX_REPLY_BYTES = 2**20
"""Largest reply accepted; a real one has a few hundred bytes."""
API = "/api/v1"
URL = re.compile(r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./~-]*)?", re.ASCII | re.IGNORECASE)


def check_url(url: str) -> str:
    """Return the address of the labml API for a URL as users give it: `http://127.0.0.1:5005` -> `.../api/v1`.

    Raises:
        ConfigError: `url` is not a plain http or https address. The message never repeats a password.
    """
    example = "it must be like http://127.0.0.1:5005"
    if "@" in url:
        raise ConfigError(f"the labml URL contains a user name or password, which is not supported; {example}")
    match = URL.fullmatch(url)
    if match is None:
        raise ConfigError(f"the labml URL is {url!a:.100}; {example}")
    port, path = match[2], match[3]
    if port and not 0 < int(port[1:]) < 65536:
        raise ConfigError(f"the labml URL is {url!a:.100}, whose port {port[1:]} does not exist; {example}")
    return url[: match.end(2) if port else match.end(1)] + ((path or "").rstrip("/") or API)


class RequestFailed(Exception):
    """The server could not be reached or gave a wrong reply; the message is one short printable line."""

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(printable(message))
        self.answered = answered
        """Whether the server sent a reply, if only its beginning."""


class LabmlServer:
    """The labml server at `api_url`, an address returned by `check_url`."""

    def __init__(self, api_url: str, seconds: float = REPLY_SECONDS) -> None:
        self.name = urlsplit(api_url).netloc
        self._api_url, self._seconds = api_url, seconds
        self._ssl = ssl.create_default_context()  # the system's certificates, as a browser has them

    def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        query: Mapping[str, Any] | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the JSON object in its reply.

        Args:
            method: An HTTP method.
            path: The path below the API's address.
            content: What to send as JSON.
            query: The query parameters.
            on_sent: Called when the request has been sent, before the reply is awaited.

        Raises:
            RequestFailed: There was no valid reply within the time given to the constructor.
        """
        answered = False

        async def trace(event: str, _: Any) -> None:
            nonlocal answered
            if event == "http11.send_request_body.complete" and on_sent is not None:
                on_sent()
            answered = answered or event == "http11.receive_response_headers.complete"

        request = {"json": content, "params": query, "extensions": {"trace": trace}}
        try:
            # In asyncio, since httpx's own timeouts start again with every byte.
            status, text = asyncio.run(self._exchange(method, f"{self._api_url}/{path}", request))
        except TimeoutError:
            raise self._failed(f"has not answered for {self._seconds:g} s", answered) from None
        except Exception as error:  # a hostile server finds more ways to fail than httpx documents
            raise self._failed(f"cannot be reached ({error or type(error).__name__})", answered) from None
        return self._parse(status, text)

    async def _exchange(self, method: str, url: str, request: dict[str, Any]) -> tuple[int, bytes]:
        import httpx  # 0.1 s, which a training that reports to no server does not need

        async with (
            asyncio.timeout(self._seconds),
            httpx.AsyncClient(
                trust_env=False,  # no proxies, and no credentials from ~/.netrc
                verify=self._ssl,
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"},
            ) as client,
            client.stream(method, url, **request) as reply,
        ):
            text = bytearray()
            async for part in reply.aiter_raw():
                text += part
                if len(text) > MAX_REPLY_BYTES:
                    break
            return reply.status_code, bytes(text)

    def _parse(self, status: int, text: bytes) -> dict[str, Any]:
        if 300 <= status < 400:
            raise self._failed("answers with a redirect, which is not followed")
        if status != 200:
            raise self._failed(f"answers with status {status}")
        if len(text) > MAX_REPLY_BYTES:
            raise self._failed(f"answers with more than {MAX_REPLY_BYTES:,} bytes")
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise self._failed("answers with something that is not JSON: is it a labml server?") from None
        if not isinstance(reply, dict):
            raise self._failed("answers with JSON that is not an object: is it a labml server?")
        for error in reply.get("errors") or []:
            if not (isinstance(error, dict) and "warning" in error):
                raise self._failed(f"answers with an error: {json.dumps(error)}")
        return reply

    def _failed(self, what: str, answered: bool = True) -> RequestFailed:
        return RequestFailed(f"the labml server {self.name} {what}", answered)


def printable(text: str) -> str:
    """`text` shortened to 200 characters, without anything that a terminal would obey."""
    return re.sub(r"[^ -~]+", " ", text)[:200]
