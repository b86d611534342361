"""Fixtures for tests of the dashboard: a real server, a real browser.

Import them into the test's file. `dashboard_server` does not use the npm registry unless the test also requests
`page_packages`; without those the page is served, but a browser shows nothing.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atari_dqn.labml import launch, server
from atari_dqn.labml.page import PageError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
NOBODY = "http://127.0.0.1:9"
"""An address where nothing listens, as the npm registry."""
DEADLINE = 300.0
"""Seconds after which a test gives up waiting."""

Reply = tuple[int, Any]


def wait_until(met: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The first true value of `met()`, which is called again and again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = met()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def call(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
    """Status and JSON (or text) of a request; `body` is sent as JSON, bytes as they are."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as reply:
            status, content = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode(errors="replace")


@pytest.fixture
def page_packages() -> None:
    """Download the page's packages into the user's cache, as a first start does."""
    packages = server.page_packages()
    try:
        packages.download()
    except PageError as error:
        pytest.skip(f"cannot download the page's npm packages: {error}")


@pytest.fixture
def dashboard_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[launch.DashboardProcess]:
    """A dashboard on a free port, with its data in `tmp_path / "dashboard"`."""
    with pytest.MonkeyPatch.context() as patch:
        if "page_packages" not in request.fixturenames:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            patch.setenv("NPM_CONFIG_REGISTRY", NOBODY)
        dashboard = launch.start(0, tmp_path / "dashboard")
    yield dashboard
    dashboard.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """A headless Chromium with an empty profile, which records every request it makes."""
    for program in (CHROMIUM, CHROMEDRIVER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing; on Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        *("window-size=1200,1400", f"user-data-dir={tmp_path / 'chromium'}"),
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    driver.set_page_load_timeout(DEADLINE)
    yield driver
    driver.quit()


def requested_hosts(driver: Chrome) -> set[str]:
    """Every `host:port` to which the browser has sent, or tried to send, a request since the last call."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urllib.parse.urlsplit(message["params"]["request"]["url"])
            if url.scheme not in ("data", "blob", "chrome"):  # the last is the browser's own first page
                hosts.add(url.netloc)
    return hosts
