"""Reports a run to a labml server from a thread of its own, which also receives the edits made on the server's page.

The thread may wait for the server, the training never waits for the thread. What they share is bounded: a server that
is down, slow or broken costs rows on its page and nothing else.
"""

import collections
import contextlib
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from atari_dqn.config.live import LiveSetting
from atari_dqn.labml import packets
from atari_dqn.labml.http import LabmlServer, RequestFailed, check_url

ROWS_KEPT = 2_000
"""Number of rows that wait while the server is down; the oldest are dropped first."""
ROWS_PER_REPORT = 200
SCORE = "charts/episodic_return"
"""Metric that the page's chart shows first."""
HEARTBEAT_SECONDS = 1.0
"""Time between reports. They are sent without rows too, since edits come with the replies."""
MAX_PAUSE_SECONDS = 15.0
"""Longest time between tries while the server is down; the first is `HEARTBEAT_SECONDS`."""
LAST_REPORT_SECONDS = 4.0
"""Time to send the last report; the one before may still await its reply, for which the real server takes 3 s."""
LAST_REPLY_SECONDS = 0.5


class LabmlLink:
    """Reports one run to a labml server; a view for the monitor. Every link is a new run on the server.

    Args:
        url: The server, with or without `/api/v1`.
        name: The run's name on the page.
        config: The run's settings.
        live: The present value of each live hyperparameter.
        env_step: The env step at which the run starts or resumes.

    Raises:
        ConfigError: `url` is not a plain http or https address. No method raises, whatever the server does.
    """

    def __init__(
        self, url: str, *, name: str, config: Mapping[str, Any], live: Mapping[LiveSetting, float], env_step: int = 0
    ) -> None:
        self.uuid = uuid.uuid4().hex
        """Identifier of the run on the server."""
        self.dropped = 0
        """Number of rows that never reached the server; final after `close`."""
        self._server = LabmlServer(check_url(url))
        self._name, self._config, self._env_step = name, dict(config), env_step
        self._live = tuple(live)

        # What both threads change, under the lock.
        self._lock = threading.Lock()
        self._rows: collections.deque[Mapping[str, float]] = collections.deque()
        self._values = {param.name: value for param, value in live.items()}
        self._edits: dict[str, Any] = {}
        """Edits that the run has not polled."""
        self._undecided: set[str] = set()
        """Names of edits that the run has not answered: until then the page keeps what was typed."""
        self._answers: dict[str, str] = {}
        self._answers_due: dict[str, str] = {}
        """Answers whose values the run has shown since, so that the page can show both."""
        self._problem: str | None = None
        self._batch: list[Mapping[str, float]] = []
        """Rows of the report under way; kept until the server accepts them."""

        # What the thread alone knows: the state of the server.
        self._introduced = self._opened = False
        self._metrics: set[str] = set()
        """Names of all metrics reported so far."""
        self._page: dict[str, Any] = {}
        """Value of each hyperparameter on the server's page: its last edit or, without one, the first value."""
        self._echoes: dict[str, float] = {}
        """Values that we set on the page ourselves, which come back like a user's edits."""

        self._wake, self._closing, self._last_sent = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._report, name="labml", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, float]) -> None:
        """Report a row: `env_step` and the scalars named `a/b`, which the page shows."""
        with self._lock:
            self._rows.append(dict(row))
            if len(self._rows) > ROWS_KEPT:
                self._rows.popleft()
                self.dropped += 1

    def show(self, values: Mapping[str, float]) -> None:
        """Show these values of live hyperparameters on the page; to be called after each edit, accepted or refused."""
        with self._lock:
            self._values |= {name: value for name, value in values.items() if name in self._values}
            self._undecided &= self._edits.keys()
            self._answers_due |= self._answers
            self._answers = {}
        self._wake.set()

    def answer(self, name: str, text: str) -> None:
        """Say beside a hyperparameter what became of its last edit; `show` follows."""
        with self._lock:
            if name in self._values:
                self._answers[name] = text

    def poll(self) -> list[tuple[str, Any]]:
        """Return the edits made on the page since the last call: names of `live` and numbers, unchecked.

        The real server sends whole numbers as floats, too. Takes microseconds.
        """
        with self._lock:
            edits, self._edits = self._edits, {}
        return list(edits.items())

    def problem(self) -> str | None:
        """Return one line about the latest problem; None if there is none or it was returned before."""
        with self._lock:
            problem, self._problem = self._problem, None
        return problem

    def close(self) -> None:
        """Send what is left and count what the server did not take, within 5 s. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        self._last_sent.wait(LAST_REPORT_SECONDS)
        self._thread.join(LAST_REPLY_SECONDS)
        with self._lock:
            # A server that accepted all reports so far has accepted this one, too: do not wait longer for its reply.
            taken = self._introduced and self._last_sent.is_set()
            self.dropped += len(self._rows) + (0 if taken else len(self._batch))

    # ------------------------------------------------------------------ the thread

    def _report(self) -> None:
        wait, pause, before, last = 0.0, HEARTBEAT_SECONDS, "", False
        while not last:
            self._wake.wait(wait)
            self._wake.clear()
            last = self._closing.is_set()
            try:
                self._exchange(last)
                wait = 0.0 if len(self._rows) >= ROWS_PER_REPORT else HEARTBEAT_SECONDS
                pause, before = HEARTBEAT_SECONDS, ""
            except RequestFailed as error:
                self._introduced = False  # the server may have lost what it knew
                wait, pause = pause, min(2 * pause, MAX_PAUSE_SECONDS)
                if str(error) != before:
                    with self._lock:
                        self._problem = before = str(error)
        self._last_sent.set()

    def _exchange(self, last: bool) -> None:
        """Send one report and use its reply. After a `RequestFailed` its rows are kept for the next try."""
        with self._lock:
            values = dict(self._values)
            if not self._batch:
                self._batch = [self._rows.popleft() for _ in range(min(len(self._rows), ROWS_PER_REPORT))]
            if last:
                self._batch += self._rows
                self._rows.clear()
        query = {**packets.CLIENT, "run_uuid": self.uuid}
        reply = self._server.ask(
            "POST", "track", self._packets(values, last), query, self._last_sent.set if last else None
        )
        self._batch = []
        if last:
            return
        if not self._introduced:
            self._page = {**values, **self._page}  # a server that knows the run kept the page's edits
            self._server.ask("PUT", f"run/{self.uuid}/claim")
            self._introduced = True
        self._take_edits(reply.get("dynamic"))
        self._correct_page()
        self._send_answers()
        self._open_with_score()

    def _packets(self, values: Mapping[str, float], last: bool) -> list[dict[str, Any]]:
        """The report: the rows of the batch, and what the server must be told before and after them."""
        # The page has no slider for a value that was never reported.
        first = [] if self._metrics or self._introduced else [{"env_step": self._env_step}]
        points = packets.points([*first, *self._batch], values)
        self._metrics |= {name for name in points.get("track", {}) if "/" in name}
        report = [points]
        if not self._introduced:
            report.insert(0, packets.introduction(self.uuid, self._name, self._config, self._live, values))
        if last:
            report.append(packets.farewell())
        return report

    def _take_edits(self, asked: Any) -> None:
        for name, value in asked.items() if isinstance(asked, dict) else ():
            if name not in self._values or not isinstance(value, int | float):
                continue
            self._page[name] = value
            if self._echoes.pop(name, None) != value:
                with self._lock:
                    self._edits[name] = value
                    self._undecided.add(name)

    def _correct_page(self) -> None:
        """Correct values on the page that the run does not have: an edit was refused, or made elsewhere.

        labml has no packet for that. The page's input shows the last edit, so we make an edit to the present value.
        """
        with self._lock:
            wrong = {name: value for name, value in self._values.items() if name not in self._undecided}
        wrong = {name: value for name, value in wrong.items() if value != self._page[name]}
        if not wrong:
            return
        path = f"hyper_params/{self.uuid}"
        last_edits = _last_edits(self._server.ask("GET", path))
        # An edit that we have not received yet was made after the last report and comes with the next: keep it.
        wrong = {
            name: value for name, value in wrong.items() if last_edits.get(name, self._page[name]) == self._page[name]
        }
        if wrong:
            self._page |= wrong
            self._echoes |= wrong
            self._server.ask("POST", path, wrong)

    def _send_answers(self) -> None:
        with self._lock:
            answers, self._answers_due = self._answers_due, {}
        if answers:
            with contextlib.suppress(RequestFailed):  # only our own dashboard has a place for them
                self._server.ask("PUT", f"answers/{self.uuid}", answers)

    def _open_with_score(self) -> None:
        """Select the score on the page's chart once there is one; by default it shows the first metric by name."""
        if self._opened or SCORE not in self._metrics:
            return
        place = sorted(self._metrics).index(SCORE)  # the page identifies series by position only
        self._server.ask("POST", f"metrics/preferences/{self.uuid}", {"series_preferences": [*[-1] * place, place]})
        self._opened = True


def _last_edits(hyper_params: dict[str, Any]) -> dict[str, Any]:
    """The value of the last edit on the page of each hyperparameter that was ever edited, by name."""
    try:
        return {line["name"]: line["sub"]["value"][-1] for line in hyper_params["series"] if "sub" in line}
    except (KeyError, IndexError, TypeError):
        return {}
