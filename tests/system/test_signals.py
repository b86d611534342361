"""Requests to stop: the first signal is remembered, and whatever handled it before is put back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atari_dqn.system.signals import StopRequest
from atari_dqn.train import main
from tests.test_train import SHORT, TRAIN

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_handlers_are_put_back_whether_or_not_a_signal_came(number: signal.Signals | None) -> None:
    """Else the next Ctrl-C in a notebook would end the interpreter."""
    before = [signal.getsignal(each) for each in NUMBERS]
    with StopRequest() as stop:
        if number:
            os.kill(os.getpid(), number)
        assert stop.asked() is (number is not None)
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_they_are_put_back_after_an_error_and_a_break_too() -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop, stop.breaking():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_a_closed_terminal_asks_once_and_is_then_ignored() -> None:
    """The shell sends one SIGHUP, the terminal another, perhaps when the run has just ended."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked()
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_closed_terminal_does_not_stop_what_nohup_started() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_training_runs_in_a_thread(tmp_path: Path) -> None:
    codes = []
    flags = [*SHORT[len(TRAIN) :], "--run-dir", str(tmp_path / "run"), "--total-env-steps", "240"]
    thread = threading.Thread(target=lambda: codes.append(main(flags)))
    thread.start()
    thread.join()
    assert codes == [0]
