"""Process that reports a run to a labml server and passes edits made on the server's page back to the trainer.

One thread listens to the trainer and never waits for the network; the other talks to the server and may wait for it.
What they share is bounded, so a server that is down, slow or hostile costs rows on its page and nothing else.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import shutil
import socket
import threading
import time
from typing import Any

from atari_dqn.labml.client import Client, Introduction
from atari_dqn.labml.http import LabmlServer, RequestFailed, printable

ROWS_KEPT = 2_000
"""Number of rows that wait while the server is down; the oldest are dropped first."""
ROWS_PER_REPORT = 200
MAX_TRIES = 3
"""Number of wrong answers to a report before its rows are dropped, or it would hold up all others for good."""
SCORE = "charts/episodic_return"
"""Metric that the page's chart shows first."""
HEARTBEAT_SECONDS = 1.0
"""Time between reports. They are sent without rows too, since edits come with the replies."""
MAX_PAUSE_SECONDS = 15.0
"""Longest time between tries while the server is down; the first is `HEARTBEAT_SECONDS`."""
LAST_REPORT_SECONDS = 3.7
"""Time to send the last report; the one before may still await its reply, for which the real server takes 3 s."""
LAST_REPLY_SECONDS = 0.5
"""Time to wait for the reply to the last report."""
MAX_EDITS = 100
"""Number of edits taken from one reply."""
MAX_VALUE_CHARACTERS = 1_000
"""Longest JSON of an edit's value; of a longer one, the beginning is passed on as a text."""
NEWS_SECONDS = 0.5
"""Time between messages to the trainer about dropped rows."""
MESSAGE_BYTES = 2**15
"""Longest message in either direction; a row has a few hundred bytes."""
ROW, SHOW, CLOSE = b"r", b"s", b"c"
"""First byte of a message from the trainer; a row and the values to show follow as JSON."""


def run_reporter(channel: socket.socket, introduction: Introduction) -> None:
    """Report until the trainer sends `CLOSE` or has ended. The process starts with SIGINT and SIGTERM blocked."""
    os.nice(10)  # reports can wait, environment steps cannot
    try:
        Reporter(channel, introduction).listen()
    finally:
        shutil.rmtree(introduction.directory, ignore_errors=True)
        os._exit(0)  # the other thread may be waiting for a server that never answers


class Reporter:
    """The main thread runs `listen` and a second one `_report`; `_lock` guards what both change."""

    def __init__(self, channel: socket.socket, introduction: Introduction) -> None:
        self._channel, self._introduction = channel, introduction
        self._server = LabmlServer(introduction.url)
        self._lock = threading.Lock()
        self._rows: collections.deque[bytes] = collections.deque()
        self._values = {slider.name: slider.value for slider in introduction.live}
        self._page: dict[str, Any] = {}
        """Value of each hyperparameter on the server's page."""
        self._echoes: dict[str, float] = {}
        """Values that we set on the page ourselves, which come back like a user's edits."""
        self._asked: dict[str, Any] = {}
        """Last edit of each hyperparameter that we know of."""
        self._postponed: set[str] = set()
        self._dropped = 0
        self._batch, self._batch_rows, self._tries = dict[str, Any](), 0, 0
        self._introduced = self._opened = False
        self._metrics: set[str] = set()
        """Names of all metrics reported so far."""
        self._problem = ""
        self._unsent: collections.deque[dict[str, Any]] = collections.deque(maxlen=MAX_EDITS)
        self._reported_dropped = 0
        self._wake, self._closing, self._last_sent = threading.Event(), threading.Event(), threading.Event()

    # ------------------------------------------------------------------ messages from and to the trainer

    def listen(self) -> None:
        """Take the trainer's messages until it closes the channel."""
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        due = time.monotonic()
        while True:
            ready = select.select([self._channel], [], [], NEWS_SECONDS)[0]
            if time.monotonic() >= due:
                due = time.monotonic() + NEWS_SECONDS
                self._pass_on()
            if not ready:
                continue
            message = self._channel.recv(MESSAGE_BYTES)
            if not message:
                return  # the trainer has ended
            if message[:1] == CLOSE:
                self._send_last(reporter)
                return
            with self._lock:
                if message[:1] == ROW:
                    self._rows.append(message[1:])
                    if len(self._rows) > ROWS_KEPT:
                        self._rows.popleft()
                        self._dropped += 1
                else:
                    shown = json.loads(message[1:])
                    self._values.update((name, value) for name, value in shown.items() if name in self._values)
                    self._wake.set()

    def _send_last(self, reporter: threading.Thread) -> None:
        """Wait for the last report to be sent, and count the rows that were not."""
        self._closing.set()
        self._wake.set()
        self._last_sent.wait(LAST_REPORT_SECONDS)
        reporter.join(LAST_REPLY_SECONDS)
        # A server that accepted all reports so far has accepted this one, too: do not wait longer for its reply.
        taken = self._introduced and self._last_sent.is_set()
        with self._lock:
            self._dropped += len(self._rows) + (0 if taken else self._batch_rows)
        self._pass_on()

    def _pass_on(self, edits: list[tuple[str, Any]] | None = None, problem: str = "") -> None:
        """Send news to the trainer; what does not fit into the socket now is sent by a later call."""
        with self._lock, contextlib.suppress(OSError):
            self._unsent.extend({"edit": edit} for edit in edits or ())
            if problem:
                self._unsent.append({"problem": problem})
            while self._unsent:
                self._send(self._unsent[0])
                self._unsent.popleft()
            if self._dropped != self._reported_dropped:
                self._send({"dropped": self._dropped})
                self._reported_dropped = self._dropped

    def _send(self, news: dict[str, Any]) -> None:
        self._channel.send(json.dumps(news).encode(), socket.MSG_DONTWAIT)

    # ------------------------------------------------------------------ requests to the server

    def _report(self) -> None:
        try:
            client = Client(self._introduction)
            pause = HEARTBEAT_SECONDS
            while True:
                last = self._closing.is_set()
                try:
                    self._exchange(client, last)
                    self._problem, pause = "", HEARTBEAT_SECONDS
                    wait = 0.0 if len(self._rows) >= ROWS_PER_REPORT else HEARTBEAT_SECONDS
                except RequestFailed as error:
                    self._note_failure(error)
                    wait, pause = pause, min(2 * pause, MAX_PAUSE_SECONDS)
                if last:
                    return
                self._wake.wait(wait)
                if not self._closing.is_set():
                    self._wake.clear()
        except Exception as error:  # labml's client itself, or its files
            self._pass_on(problem=printable(f"labml client stopped: {type(error).__name__}: {error}"))
        finally:
            self._last_sent.set()

    def _exchange(self, client: Client, last: bool) -> None:
        """Send one report and use its reply. After a `RequestFailed` the report is kept for the next try."""
        with self._lock:
            values = dict(self._values)
            most = 0 if self._batch_rows else ROWS_KEPT if last else ROWS_PER_REPORT
            rows = [self._rows.popleft() for _ in range(min(len(self._rows), most))]
        if rows:
            parsed = [json.loads(row) for row in rows]
            self._batch, self._batch_rows = client.metrics(parsed, values), len(rows)
            self._metrics.update(name for row in parsed for name in row if "/" in name)
        packets = [{"time": time.time()}, *([self._batch] if self._batch_rows else [])]
        if not self._introduced:
            # Repeated after any failure, since the server may have lost what it knew.
            packets = client.introduction(values) + packets
        if last:
            packets += client.farewell()
        on_sent = self._last_sent.set if last else None
        reply = self._server.ask("POST", "track", packets, client.query, on_sent)
        self._batch, self._batch_rows, self._tries = {}, 0, 0
        if not self._introduced:
            self._page = dict(values)
            if not last:
                self._server.ask("PUT", f"run/{self._introduction.uuid}/claim")
            self._introduced = True
        self._take_edits(reply.get("dynamic"))
        if not last:
            self._correct_page()
            self._open_with_score()

    def _note_failure(self, error: RequestFailed) -> None:
        self._introduced = False
        self._tries += error.answered
        if self._tries >= MAX_TRIES and self._batch_rows:
            with self._lock:
                self._dropped += self._batch_rows
            self._batch, self._batch_rows, self._tries = {}, 0, 0
        previous, self._problem = self._problem, str(error)
        self._pass_on(problem="" if previous == self._problem else self._problem)

    def _take_edits(self, asked: Any) -> None:
        if not isinstance(asked, dict):
            return
        edits = []
        for name, value in list(asked.items())[:MAX_EDITS]:
            if name in self._page:
                self._page[name] = self._asked[name] = value
            if name not in self._echoes or self._echoes.pop(name) != value:
                edits.append((name[:MAX_VALUE_CHARACTERS], _short(value)))
        self._pass_on(edits)

    def _open_with_score(self) -> None:
        """Select the score on the page's chart once there is one; by default it shows the first metric by name."""
        if self._opened or SCORE not in self._metrics:
            return
        place = sorted(self._metrics).index(SCORE)  # the page identifies series by position only
        path = f"metrics/preferences/{self._introduction.uuid}"
        self._server.ask("POST", path, {"series_preferences": [*[-1] * place, place]})
        self._opened = True

    def _correct_page(self) -> None:
        """Correct values on the page that the run does not have: an edit was refused, or made elsewhere.

        labml has no packet for that. The page's input shows the last edit, so we make an edit to the present value.
        """
        with self._lock:
            wrong = {name: value for name, value in self._values.items() if self._page.get(name) != value}
        if not wrong:
            return
        path = f"hyper_params/{self._introduction.uuid}"
        try:
            on_page = _last_edits(self._server.ask("GET", path))
        except RequestFailed:
            on_page = {}
        # An edit that we have not received yet was made after the last report and comes with the next: keep it.
        newer = {name for name in wrong if name in on_page and on_page[name] != self._asked.get(name)} - self._postponed
        self._postponed = newer
        wrong = {name: value for name, value in wrong.items() if name not in newer}
        if wrong:
            for known in (self._page, self._asked, self._echoes):
                known.update(wrong)
            self._server.ask("POST", path, wrong)


def _last_edits(hyper_params: dict[str, Any]) -> dict[str, Any]:
    """The value of the last edit on the page of each hyperparameter that was ever edited, by name."""
    try:
        return {line["name"]: line["sub"]["value"][-1] for line in hyper_params["series"] if "sub" in line}
    except (KeyError, IndexError, TypeError):
        return {}


def _short(value: Any) -> Any:
    """`value`, or the beginning of its JSON if that is long."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "..."
    return value if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS]
