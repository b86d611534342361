"""End to end: a training, the real labml server, and a browser in which the training is watched and tuned."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from atari_dqn.config.live import Edit
from atari_dqn.labml.launch import DashboardProcess
from atari_dqn.runs.edits import read_edits
from tests.dashboard_fixtures import (  # noqa: F401
    browser,
    call,
    dashboard_server,
    page_packages,
    requested_hosts,
    wait_until,
)
from tests.test_train import SHORT, rows

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page_packages")]


@pytest.fixture
def training(dashboard_server: DashboardProcess, tmp_path: Path) -> Iterator[tuple[Path, str]]:  # noqa: F811
    """Directory of a training that runs until the test is over, and the address of its page."""
    run_dir = tmp_path / "run"
    command = [*SHORT, "--run-dir", str(run_dir), "--total-env-steps", "100000000", "--log-interval", "200"]
    process = subprocess.Popen(
        [*command, "--labml-url", dashboard_server.api_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        page = next(line.split()[-1] for line in process.stdout if line.startswith("watch and tune at"))
        yield run_dir, page
    finally:
        process.terminate()
        process.communicate()


def shot(driver: Chrome, name: str) -> None:
    """Save a screenshot if the environment variable DASHBOARD_SHOTS names a directory."""
    directory = os.environ.get("DASHBOARD_SHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(directory) / f"{name}.png"))


def wait_for(driver: Chrome, css: str, enough: Callable[[WebElement], bool] = lambda element: True) -> WebElement:
    """The first displayed element that matches `css` and is `enough`."""

    def found() -> WebElement | None:
        try:
            return next((e for e in driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed() and enough(e)), None)
        except StaleElementReferenceException:  # the page was redrawn
            return None

    element: WebElement = wait_until(found, f"the page shows {css}")
    return element


CARD = """
const card = [...document.querySelectorAll(".sparkline-content")].find(
    each => each.querySelector(".title").textContent === arguments[0])
const slider = card?.querySelector("input.slider"), field = card?.querySelector("input.text-end")
if (arguments[1]) field.value = arguments[1], field.dispatchEvent(new Event("input", {bubbles: true}))
return card && {field: field.value, note: card.querySelector(".answer")?.textContent || "",
    slider: Number(slider.value), low: Number(slider.min), high: Number(slider.max), step: Number(slider.step)}
"""
"""Script that types into the field of a live hyperparameter, and returns what its card shows."""


def card(driver: Chrome, name: str, typed: str = "") -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: driver.execute_script(CARD, name, typed), f"a card of {name}")
    return found


def save(driver: Chrome) -> None:
    wait_for(driver, "nav.nav-link", lambda button: button.text == "save").click()


def answered(driver: Chrome, name: str, words: str, field: str) -> dict[str, Any]:
    """The card of `name` once its note has `words` and its field shows `field`."""

    def found() -> dict[str, Any] | None:
        shown = card(driver, name)
        return shown if words in shown["note"] and shown["field"].replace("\u2212", "-") == field else None

    shown: dict[str, Any] = wait_until(found, f"{name}: {words}; {field}")
    return shown


@pytest.mark.long
def test_watched_and_tuned_in_the_page(
    training: tuple[Path, str],
    dashboard_server: DashboardProcess,  # noqa: F811
    browser: Chrome,  # noqa: F811
) -> None:
    run_dir, page = training
    metrics = page.replace("/run/", "/api/v1/metrics/")
    names = [f"charts/{name}" for name in ("episodic_return", "learning_rate")]

    def points() -> list[int]:
        series = call("GET", metrics)[1]["series"]
        return [len(line["step"]) for line in series if line["name"] in names]

    wait_until(lambda: [count for count in points() if count > 20] == points() != [], "the server has points")
    browser.get(page)
    wait_for(browser, ".labml-card svg path", lambda path: len(path.get_attribute("d") or "") > 200)
    text = browser.find_element(By.TAG_NAME, "body").text
    for name in ("run", "charts/episodic_return", "losses/td_loss", "settings/learning_rate"):
        assert name in text

    head = browser.find_element(By.CSS_SELECTOR, ".run-info h5").text
    for fact in ("CartPole-v1 · seed 1 · ", "batch_size 16", "learning_starts 200"):
        assert fact in head
    assert "gamma" not in head, "as by default"

    browser.get(f"{page}/hyper_params")
    shown = wait_until(lambda: (found := card(browser, "learning_rate"))["note"] and found, "a note")
    assert (shown["field"], shown["note"]) == ("1.0000e-4", "values: above 0 to 1")
    assert (shown["slider"], shown["low"], shown["high"]) == (pytest.approx(1e-4, rel=0.03), 0, 1e-3)
    assert card(browser, "epsilon")["note"] == "values: from 0 to 1, or -1 for the schedule"
    assert card(browser, "eval_interval")["field"] == "0"

    def edits(taken: bool) -> list[Edit]:
        return [edit for edit in read_edits(run_dir) if edit.taken == taken]

    card(browser, "learning_rate", "0.0007")
    card(browser, "checkpoint_interval", "2,000")  # as the page writes it
    save(browser)
    answered(browser, "learning_rate", "saved; the run has not answered yet", "7.0000e-4")
    edit, _ = wait_until(lambda: len(found := edits(taken=True)) == 2 and found, "the edits are accepted")
    assert (edit.name, edit.old, edit.new, edit.source) == ("learning_rate", 1e-4, 7e-4, "dashboard")
    note = f"values: above 0 to 1\nenv step {edit.env_step:,}: taken: learning_rate 0.0001 → 0.0007 (dashboard)"
    answered(browser, "learning_rate", note, "7.0000e-4")
    row = wait_until(lambda: [row for row in rows(run_dir) if row["env_step"] > edit.env_step], "a row after it")[0]
    assert row["settings/learning_rate"] == 7e-4, "the rate in the optimizer's own tensor"

    card(browser, "learning_rate", "5")
    card(browser, "epsilon", "0.2")
    save(browser)
    (refused,) = wait_until(lambda: edits(taken=False), "the edit is refused")
    note = f"env step {refused.env_step:,}: refused: learning_rate is 5; it must be above 0 to 1"
    answered(browser, "learning_rate", note, "7.0000e-4")
    shown = answered(browser, "epsilon", "taken: epsilon schedule → 0.2", "0.200")
    assert shown["slider"] == pytest.approx(0.2, abs=shown["step"])
    shot(browser, "tuned")

    card(browser, "epsilon", "-1")
    save(browser)
    answered(browser, "epsilon", "taken: epsilon 0.2 → schedule", "-1.000")
    assert len(edits(taken=False)) == 1, "what was refused is not sent again with a later edit"

    card(browser, "learning_rate", "hello")
    save(browser)
    assert "not a number" in browser.switch_to.alert.text
    browser.switch_to.alert.accept()
    assert card(browser, "learning_rate")["field"] == "7.0000e-4"

    # These show the user's picture, which labml's page loads from another server.
    for view, css in (("runs", ".list-group-item"), ("settings", "img")):
        browser.get(f"{dashboard_server.url}/{view}")
        wait_for(browser, css)
    assert requested_hosts(browser) == {dashboard_server.url.removeprefix("http://")}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
