"""End to end: a training, the real labml server, and a browser in which the training is watched and tuned."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
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
from tests.test_dashboard_page import shot, wait_for
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
    assert process.stdout is not None
    page = next(line.split()[-1] for line in process.stdout if line.startswith("watch and tune at"))
    yield run_dir, page
    process.terminate()
    process.communicate()


def card_of(driver: Chrome, name: str, value: float | None = None, seconds: float = 60) -> WebElement:
    """The page's element for a live hyperparameter, once its field shows `value`, if one is given."""
    path = f"//*[contains(@class, 'sparkline-content')][*[@class='title' and text()='{name}']]"

    def found() -> WebElement | None:
        cards = driver.find_elements(By.XPATH, path)
        return next((card for card in cards if value in (None, number_in(field(card)))), None)

    element: WebElement = wait_until(found, f"the page shows {name} {value}", seconds)
    return element


def field(card: WebElement) -> WebElement:
    return card.find_element(By.CSS_SELECTOR, "input.text-end")


def number_in(field: WebElement) -> float:
    """The number in a field, which the page writes with a typographic minus and commas."""
    text = field.get_attribute("value") or "nan"
    return float(text.replace("\u2212", "-").replace(",", ""))


def reloaded_card(driver: Chrome, name: str, value: float) -> WebElement:
    """As `card_of`, reloading the page until it shows `value`."""
    deadline = time.monotonic() + 60
    while True:
        driver.refresh()
        try:
            return card_of(driver, name, value, seconds=5)
        except AssertionError:
            assert time.monotonic() < deadline, f"the page does not show {name} {value}"


def enter(driver: Chrome, card: WebElement, text: str) -> None:
    """Type a value and save it as a user does."""
    field(card).send_keys(Keys.CONTROL, "a")
    field(card).send_keys(text)
    wait_for(driver, "nav.nav-link", lambda button: button.text == "save").click()


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
    for name in ("run", "charts/episodic_return", "losses/td_loss", "charts/learning_rate"):
        assert name in text

    browser.get(f"{page}/hyper_params")
    enter(browser, card_of(browser, "learning_rate", 1e-4), "0.0007")

    def edits(taken: bool) -> list[Edit]:
        return [edit for edit in read_edits(run_dir) if edit.taken == taken]

    (edit,) = wait_until(lambda: edits(taken=True), "the edit is accepted")
    assert (edit.name, edit.old, edit.new, edit.source) == ("learning_rate", 1e-4, 7e-4, "dashboard")
    row = wait_until(lambda: [row for row in rows(run_dir) if row["env_step"] > edit.env_step], "a row after it")[0]
    assert row["charts/learning_rate"] == 7e-4, "the rate in the optimizer's own tensor"

    enter(browser, reloaded_card(browser, "learning_rate", 7e-4), "5")
    (refused,) = wait_until(lambda: edits(taken=False), "the edit is refused")
    assert refused.reason == "learning_rate is 5; it must be above 0 to 1"
    card = reloaded_card(browser, "learning_rate", 7e-4)
    line = card.find_element(By.CSS_SELECTOR, "path.unsmoothed-line").get_attribute("d") or ""
    heights = {round(float(point.split(",")[-1])) for point in re.findall(r"[-\d.]+,[-\d.]+", line)}
    assert len(heights) > 1, "the chart has a step where the rate was changed"
    shot(browser, "tuned")

    enter(browser, card_of(browser, "epsilon"), "0.2")
    wait_until(lambda: [e for e in edits(taken=True) if (e.name, e.new) == ("epsilon", 0.2)], "epsilon is fixed")
    enter(browser, reloaded_card(browser, "epsilon", 0.2), "-1")
    wait_until(lambda: [e for e in edits(taken=True) if (e.name, e.new) == ("epsilon", "schedule")], "and back")
    browser.get(page)
    wait_for(browser, ".labml-card svg path", lambda path: len(path.get_attribute("d") or "") > 200)
    shot(browser, "trained")
    assert requested_hosts(browser) == {dashboard_server.url.removeprefix("http://")}
