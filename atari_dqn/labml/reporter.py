"""The side process that talks to a labml server: rows and live values flow in by a socket and out by http, and edits
made on the server's page flow back to the trainer.

One thread listens to the trainer and never waits for the network; the other talks to the server and may wait as long
as that pleases. What they share is bounded, so a server that is away, slow or hostile costs points and nothing else.
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
from atari_dqn.labml.http import Server, Trouble, plain

ROWS_KEPT = 2_000
"""Rows that wait while the server is away; the oldest go first."""
ROWS_AT_ONCE = 200
"""Rows in a report."""
TRIES = 3
"""Of a report that the server answers wrongly: then it is dropped, lest it stand in the way of all others for good."""
SCORE = "charts/episodic_return"
"""What the page's chart begins with."""
HEARTBEAT = 1.0
"""Seconds between reports. Edits come with the replies, so there is a report when there is nothing to tell, too."""
LONGEST_PAUSE = 15.0
"""Seconds between tries while the server is away; they begin with `HEARTBEAT`."""
LAST_SECONDS, PARTING_SECONDS = 3.7, 0.5
"""Seconds until the last report must be on its way (the one before may be waiting for its reply: the real server is 3 s
over each), and seconds that its own reply is waited for."""
MOST_EDITS, MOST_OF_VALUE = 100, 1_000
"""Edits taken from one reply, and characters of JSON of a value: a longer one arrives as the start of its text."""
TELL_SECONDS = 0.5
"""Seconds after which the trainer can know how many rows were dropped."""
MESSAGE_BYTES = 2**15
"""Of a message at most, either way; a row has a few hundred."""
ROW, SHOW, CLOSE = b"r", b"s", b"c"
"""What a message from the trainer begins with; a row and the values to show follow as JSON."""


def serve(channel: socket.socket, introduction: Introduction) -> None:
    """Report until the trainer says `CLOSE` or is gone. SIGINT and SIGTERM are blocked from birth."""
    os.nice(10)  # reports can wait, and env steps cannot
    try:
        Side(channel, introduction).listen()
    finally:
        shutil.rmtree(introduction.directory, ignore_errors=True)
        os._exit(0)  # the other thread may be waiting for a server that never answers


class Side:
    """`listen` is the main thread's work, `_report` the other's; what both touch often lies under `_lock`."""

    def __init__(self, channel: socket.socket, introduction: Introduction) -> None:
        self._channel, self._introduction = channel, introduction
        self._server = Server(introduction.url)
        self._lock = threading.Lock()
        self._rows: collections.deque[bytes] = collections.deque()
        self._values = {slider.name: slider.value for slider in introduction.live}
        self._page: dict[str, Any] = {}
        """what the server's page takes for the value of each"""
        self._echoes: dict[str, float] = {}
        """values that we asked for on the page ourselves, which come back as if a user had"""
        self._asked: dict[str, Any] = {}
        """what was asked for last, as far as we heard"""
        self._postponed: set[str] = set()
        self._dropped = 0
        self._batch, self._batch_rows, self._tries = dict[str, Any](), 0, 0
        self._introduced = self._opened = False
        self._named: set[str] = set()
        """of all that was reported"""
        self._trouble = ""
        self._unsent: collections.deque[dict[str, Any]] = collections.deque(maxlen=MOST_EDITS)
        self._told_dropped = 0
        self._wake, self._closing, self._parted = threading.Event(), threading.Event(), threading.Event()

    # ------------------------------------------------------------------ the trainer's side

    def listen(self) -> None:
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        due = time.monotonic()
        while True:
            ready = select.select([self._channel], [], [], TELL_SECONDS)[0]
            if time.monotonic() >= due:
                due = time.monotonic() + TELL_SECONDS
                self._tell()
            if not ready:
                continue
            message = self._channel.recv(MESSAGE_BYTES)
            if not message:
                return  # no trainer any more
            if message[:1] == CLOSE:
                self._part(reporter)
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

    def _part(self, reporter: threading.Thread) -> None:
        """Let the last report go out, and count what did not."""
        self._closing.set()
        self._wake.set()
        self._parted.wait(LAST_SECONDS)
        reporter.join(PARTING_SECONDS)
        # A server that has replied to all before will have taken this one too: its reply alone is not worth the wait.
        taken = self._introduced and self._parted.is_set()
        with self._lock:
            self._dropped += len(self._rows) + (0 if taken else self._batch_rows)
        self._tell()

    def _tell(self, edits: list[tuple[str, Any]] | None = None, problem: str = "") -> None:
        """Pass on what is new; what finds no room now goes with a later call."""
        with self._lock, contextlib.suppress(OSError):
            self._unsent.extend({"edit": edit} for edit in edits or ())
            if problem:
                self._unsent.append({"problem": problem})
            while self._unsent:
                self._send(self._unsent[0])
                self._unsent.popleft()
            if self._dropped != self._told_dropped:
                self._send({"dropped": self._dropped})
                self._told_dropped = self._dropped

    def _send(self, news: dict[str, Any]) -> None:
        self._channel.send(json.dumps(news).encode(), socket.MSG_DONTWAIT)

    # ------------------------------------------------------------------ the server's side

    def _report(self) -> None:
        try:
            client = Client(self._introduction)
            pause = HEARTBEAT
            while True:
                last = self._closing.is_set()
                try:
                    self._exchange(client, last)
                    self._trouble, pause = "", HEARTBEAT
                    wait = 0.0 if len(self._rows) >= ROWS_AT_ONCE else HEARTBEAT
                except Trouble as trouble:
                    self._failed(trouble)
                    wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
                if last:
                    return
                self._wake.wait(wait)
                if not self._closing.is_set():
                    self._wake.clear()
        except Exception as error:  # labml's client itself, or its files
            self._tell(problem=plain(f"the labml client failed and reports no more: {type(error).__name__}: {error}"))
        finally:
            self._parted.set()

    def _exchange(self, client: Client, last: bool) -> None:
        """One report and its reply. Raises `Trouble`; then the report is kept for the next try."""
        with self._lock:
            values = dict(self._values)
            most = 0 if self._batch_rows else ROWS_KEPT if last else ROWS_AT_ONCE
            rows = [self._rows.popleft() for _ in range(min(len(self._rows), most))]
        if rows:
            told = [json.loads(row) for row in rows]
            self._batch, self._batch_rows = client.metrics(told, values), len(rows)
            self._named.update(name for row in told for name in row if "/" in name)
        packets = [{"time": time.time()}, *([self._batch] if self._batch_rows else [])]
        if not self._introduced:
            # It comes again after any trouble, for the server may have lost what it knew.
            packets = client.introduction(values) + packets
        if last:
            packets += client.farewell()
        sent = self._parted.set if last else None
        reply = self._server.ask("POST", "track", packets, client.query, sent)
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

    def _failed(self, trouble: Trouble) -> None:
        self._introduced = False
        self._tries += trouble.answered
        if self._tries >= TRIES and self._batch_rows:
            with self._lock:
                self._dropped += self._batch_rows
            self._batch, self._batch_rows, self._tries = {}, 0, 0
        said, self._trouble = self._trouble, str(trouble)
        self._tell(problem="" if said == self._trouble else self._trouble)

    def _take_edits(self, asked: Any) -> None:
        if not isinstance(asked, dict):
            return
        edits = []
        for name, value in list(asked.items())[:MOST_EDITS]:
            if name in self._page:
                self._page[name] = self._asked[name] = value
            if name not in self._echoes or self._echoes.pop(name) != value:
                edits.append((name[:MOST_OF_VALUE], _short(value)))
        self._tell(edits)

    def _open_with_score(self) -> None:
        """Choose, once there is a score, what the page's chart shows: left alone it takes the alphabet's first name."""
        if self._opened or SCORE not in self._named:
            return
        place = sorted(self._named).index(SCORE)  # the page knows series by their places only
        path = f"metrics/preferences/{self._introduction.uuid}"
        self._server.ask("POST", path, {"series_preferences": [*[-1] * place, place]})
        self._opened = True

    def _correct_page(self) -> None:
        """Where the page shows another value than the run has (an edit was refused, or made elsewhere), set it right.

        labml has no packet for that: the page's input shows what was last asked for, so we ask for the present value.
        """
        with self._lock:
            wrong = {name: value for name, value in self._values.items() if self._page.get(name) != value}
        if not wrong:
            return
        path = f"hyper_params/{self._introduction.uuid}"
        try:
            on_page = _last_asked(self._server.ask("GET", path))
        except Trouble:
            on_page = {}
        # What we have not heard of yet was asked for after the last report, and comes with the next: it stays.
        newer = {name for name in wrong if name in on_page and on_page[name] != self._asked.get(name)} - self._postponed
        self._postponed = newer
        wrong = {name: value for name, value in wrong.items() if name not in newer}
        if wrong:
            for known in (self._page, self._asked, self._echoes):
                known.update(wrong)
            self._server.ask("POST", path, wrong)


def _last_asked(hyper_params: dict[str, Any]) -> dict[str, Any]:
    """By name, the value that was last asked for on the page; none where nobody ever asked."""
    try:
        return {line["name"]: line["sub"]["value"][-1] for line in hyper_params["series"] if "sub" in line}
    except (KeyError, IndexError, TypeError):
        return {}


def _short(value: Any) -> Any:
    """`value` itself, or the start of its JSON where that is long."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "..."
    return value if len(text) <= MOST_OF_VALUE else text[:MOST_OF_VALUE]
