"""The dashboard in a browser: it shows a run, changes its learning rate, and calls no other server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from atari_dqn.labml.launch import DashboardProcess
from tests.dashboard_fixtures import (  # noqa: F401
    LabmlRun,
    browser,
    call,
    dashboard_server,
    labml_run,
    page_packages,
    requested_hosts,
    wait_until,
)

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page_packages")]


def shot(driver: Chrome, name: str) -> None:
    """Save a screenshot if the environment variable DASHBOARD_SHOTS names a directory."""
    directory = os.environ.get("DASHBOARD_SHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(directory) / f"{name}.png"))


def wait_for(driver: Chrome, css: str, enough: Callable[[WebElement], bool] = lambda element: True) -> WebElement:
    """The first displayed element that matches `css` and is `enough`."""
    from selenium.common.exceptions import StaleElementReferenceException

    def found() -> WebElement | None:
        try:
            return next((e for e in driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed() and enough(e)), None)
        except StaleElementReferenceException:  # the page was redrawn
            return None

    element: WebElement = wait_until(found, f"the page shows {css}")
    return element


def test_the_learning_rate_is_changed_in_the_page(
    dashboard_server: DashboardProcess,  # noqa: F811
    labml_run: LabmlRun,  # noqa: F811
    browser: Chrome,  # noqa: F811
) -> None:
    api, uuid = dashboard_server.api_url, labml_run.uuid
    assert labml_run.next("learning_rate ") == "0.0001"
    wait_until(lambda: len((call("GET", f"{api}/metrics/{uuid}")[1]["series"] or [{"step": []}])[0]["step"]) > 20, "")

    browser.get(f"{dashboard_server.url}/run/{uuid}")
    wait_for(browser, ".labml-card svg path", lambda path: len(path.get_attribute("d") or "") > 200)
    shot(browser, "run")

    browser.get(f"{dashboard_server.url}/run/{uuid}/metrics")
    wait_for(browser, "svg path", lambda path: len(path.get_attribute("d") or "") > 200)
    shot(browser, "metrics")

    browser.get(f"{dashboard_server.url}/run/{uuid}/hyper_params")
    field = wait_for(browser, ".input-content input")
    assert float(field.get_attribute("value") or "") == 1e-4
    shot(browser, "hyper_params")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("0.0007")
    wait_for(browser, "nav.nav-link", lambda button: button.text == "save").click()
    assert labml_run.next("learning_rate ") == "0.0007"
    browser.refresh()
    field = wait_for(browser, ".input-content input", lambda field: field.get_attribute("value") == "7.0000e-4")
    shot(browser, "hyper_params_saved")

    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("hello")
    wait_for(browser, "nav.nav-link", lambda button: button.text == "save").click()
    assert "not a number" in browser.switch_to.alert.text
    browser.switch_to.alert.accept()
    assert field.get_attribute("value") == "7.0000e-4"

    # These show the user's picture, which labml's page loads from another server.
    for view, css in (("runs", ".list-group-item"), ("settings", "img")):
        browser.get(f"{dashboard_server.url}/{view}")
        wait_for(browser, css)
        shot(browser, view)

    assert requested_hosts(browser) == {dashboard_server.url.removeprefix("http://")}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
