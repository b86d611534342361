"""HTTP client for a labml server that may be down, slow or broken. It follows neither redirects nor proxies."""

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
"""Longest silence of the server. One that needs 30 s for each reply is slow, and still usable."""
MAX_REPLY_BYTES = 2**20
"""What is read of a reply; a real one has a few hundred bytes."""
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


class LabmlServer:
    """The labml server at `api_url`, an address returned by `check_url`."""

    def __init__(self, api_url: str, seconds: float = REPLY_SECONDS) -> None:
        self._name = urlsplit(api_url).netloc
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
        """Send `content` as JSON to a path below the API's address, and return the JSON object in its reply.

        `on_sent` is called when the request has been sent, before the reply is awaited. Raises `RequestFailed` unless
        there is a valid reply; `seconds` of silence are too long.
        """
        import httpx  # 0.1 s, which a training that reports to no server does not need

        def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_body.complete" and on_sent is not None:
                on_sent()

        extensions = {"trace": trace}
        try:
            with (
                httpx.Client(
                    trust_env=False,  # no proxies, and no credentials from ~/.netrc
                    verify=self._ssl,
                    timeout=httpx.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds)),
                    headers={"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"},
                ) as client,
                client.stream(
                    method, f"{self._api_url}/{path}", json=content, params=query, extensions=extensions
                ) as reply,
            ):
                text = next(reply.iter_raw(MAX_REPLY_BYTES), b"")  # the rest is not read
        except httpx.TimeoutException:
            raise self._failed(f"has not answered for {self._seconds:g} s") from None
        except Exception as error:  # a broken server finds more ways to fail than httpx documents
            raise self._failed(f"cannot be reached ({error or type(error).__name__})") from None
        return self._parse(reply.status_code, text)

    def _parse(self, status: int, text: bytes) -> dict[str, Any]:
        if 300 <= status < 400:
            raise self._failed("answers with a redirect, which is not followed")
        if status != 200:
            raise self._failed(f"answers with status {status}")
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._failed("answers with something that is not a JSON object: is it a labml server?")
        errors = reply.get("errors") or []
        if not isinstance(errors, list) or not all(isinstance(error, dict) and "warning" in error for error in errors):
            raise self._failed(f"answers with an error: {json.dumps(errors)}")
        return reply

    def _failed(self, what: str) -> RequestFailed:
        # Without anything that a terminal would obey.
        return RequestFailed(re.sub(r"[^ -~]+", " ", f"the labml server {self._name} {what}")[:200])
