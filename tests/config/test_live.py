"""Live edits: no input gets past the bounds, changes a type or raises, and every one of them is remembered."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atari_dqn.config.live import SCHEDULE, Edit, LiveValues, Request, for_page, from_page, live_settings, new_request
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.edits import INBOX, RECORD, EditDesk, Inbox, live_values, read_edits, recorded_edits, to_undo

NAMES = {
    "learning_rate", "epsilon", "beta", "target_update_interval", "replay_ratio", "max_grad_norm", "eval_interval",
    "checkpoint_interval", "record_interval",
}  # fmt: skip
CONFIG = TrainConfig()


def values(config: TrainConfig = CONFIG) -> LiveValues:
    return LiveValues(config)


def edit(name: str, old: Any, new: Any, *, taken: bool = True, undo: bool = False, env_step: int = 8) -> Edit:
    return Edit(0.0, env_step, 0, name, old, new, taken, "tune", undo=undo)


def test_the_live_settings_are_those_of_the_config_and_their_sliders_lie_within_the_bounds() -> None:
    found = live_settings()
    assert set(found) == NAMES
    for live in found.values():
        low, high = live.setting.suggested
        middle = live.kind((low + high) / 2)
        assert low < high
        assert live.check(middle) == middle
    assert found["learning_rate"].setting.suggested == (0, 1e-3)
    assert values().values["epsilon"] == values().values["beta"] == SCHEDULE
    assert values().values["learning_rate"] == CONFIG.learner.learning_rate


@pytest.mark.parametrize("name", ["epsilon", "learning_rate", "eval_interval", "unknown"])
@pytest.mark.parametrize("value", [-1, -1.0, -0.5, -2, -1e-9, -math.inf, math.nan, 0, 0.5, True])
def test_minus_one_alone_means_the_schedule_on_the_page_and_only_where_there_is_one(name: str, value: Any) -> None:
    request = from_page(name, value)
    meant = SCHEDULE if name == "epsilon" and value == -1 else value
    assert (request.name, request.value, request.source) == (name, meant, "dashboard")
    live = values()
    decided = live.decide(request, 0, 0)
    if not decided.taken:
        assert live.values == values().values
    elif name in live.values:
        assert for_page(live.values)[name] == value, "the page shows what was typed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(SCHEDULE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NUMBERS = st.floats(0, 2) | st.integers(-2, 10**6) | st.sampled_from([10**400, -(10**400), 3.0, 3.7, 5e-324])


@given(name=st.sampled_from(sorted(NAMES)) | st.text(), value=NUMBERS | JSON)
def test_no_input_raises_changes_a_type_or_gets_past_the_bounds(name: str, value: Any) -> None:
    live = values()
    before = dict(live.values)
    decided = live.decide(Request(name, value, "dashboard"), env_step=100, update=7)
    line = json.dumps(dataclasses.asdict(decided))
    assert json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) == dataclasses.asdict(
        decided
    )
    assert len(line) < 2_000
    line.encode("ascii")
    str(decided).encode()
    if not decided.taken:
        assert live.values == before
        assert decided.reason
        return
    assert live.values == before | {name: decided.new}
    setting = live.settings[name]
    if decided.new == SCHEDULE:
        assert setting.scheduled
        assert value == SCHEDULE
        return
    assert type(decided.new) is setting.kind
    assert decided.new == value
    assert not isinstance(value, bool)
    low, high = setting.setting.low, setting.setting.high
    assert low is not None
    assert high is not None
    assert math.isfinite(decided.new)
    assert low <= decided.new <= high
    assert np.float32(decided.new) != 0 or not setting.setting.low_open


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", -1, "learning_rate is -1; it must be above 0 to 1"),
        ("learning_rate", 0, "above 0 to 1"),
        ("learning_rate", 1e9, "above 0 to 1"),
        ("learning_rate", 1e-46, "learning_rate is 1e-46; it must be above 0 to 1"),
        ("max_grad_norm", 1e-46, "above 0 to 1"),
        ("epsilon", 1.0000001, "epsilon is 1.0000001; it must be from 0 to 1"),
        ("target_update_interval", 3.0000001, "target_update_interval is 3.0000001; it must be a whole number"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("learning_rate", float("inf"), "learning_rate is inf"),
        ("learning_rate", None, "must be a number"),
        ("learning_rate", True, "must be a number"),
        ("learning_rate", SCHEDULE, "learning_rate is schedule; it must be a number"),
        ("target_update_interval", 3.7, "target_update_interval is 3.7; it must be a whole number"),
        ("target_update_interval", 0, "from 1 to 2^40"),
        ("target_update_interval", "hello", "target_update_interval is hello; it must be a number"),
        ("epsilon", 1.5, "epsilon is 1.5; it must be from 0 to 1"),
        ("epsilon", "x\ny\ud800", "it must be a number, or schedule"),
        ("epsilon_values", 0.1, "epsilon_values cannot be changed during a run; "),
        ("batch_size", 64, "batch_size cannot be changed during a run; "),
    ],
)
def test_what_is_refused_says_why_in_one_line(name: str, value: Any, words: str) -> None:
    decided = values().decide(Request(name, value, "tune"), 0, 0)
    assert not decided.taken
    assert words in decided.reason
    assert decided.reason.isprintable()


@pytest.mark.parametrize(
    ("name", "value", "new"),
    [
        ("learning_rate", 5e-5, 5e-5),
        ("learning_rate", 1, 1.0),
        ("target_update_interval", 500.0, 500),
        ("epsilon", 0, 0.0),
        ("beta", SCHEDULE, SCHEDULE),
        ("eval_interval", 0, 0),
    ],
)
def test_what_is_taken_has_the_settings_type(name: str, value: Any, new: Any) -> None:
    decided = values().decide(Request(name, value, "tune"), 0, 0)
    assert decided.taken
    assert decided.new == new
    assert type(decided.new) is type(new)


def test_a_state_holds_what_was_edited_and_a_flag_given_later_wins() -> None:
    live = values()
    for name, value in (("learning_rate", 3e-4), ("epsilon", 0.2), ("beta", 0.5), ("beta", SCHEDULE)):
        live.decide(Request(name, value, "tune"), 0, 0)
    state = json.loads(json.dumps(live.state()))
    assert state.keys() == {"learning_rate", "epsilon", "beta"}, "beta too, for its record says so"
    same = values()
    assert same.load(state) == []
    assert same.values == live.values
    changed = values(CONFIG.replace(learning_rate=7e-5, batch_size=64))
    (overruling,) = changed.load(state)
    assert overruling == Request("learning_rate", 7e-5, "command line")
    assert changed.decide(overruling, 0, 0).old == 3e-4
    assert changed.values == live.values | {"learning_rate": 7e-5}


def test_a_ladder_of_epsilons_asked_for_at_a_resume_overrules_a_number_asked_for_before() -> None:
    for former, present in ((False, True), (True, False)):
        live = values(CONFIG.replace(epsilon_ladder=former))
        live.decide(Request("epsilon", 0.05, "tune"), 8, 0)
        stored = json.loads(json.dumps(live.state()))
        assert values(CONFIG.replace(epsilon_ladder=former)).load(stored) == []
        overruled = values(CONFIG.replace(epsilon_ladder=present)).load(stored)
        assert overruled == [Request("epsilon", SCHEDULE, "command line")]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("epsilon", {"epsilon_decay": 6_000.0}),
        ("epsilon", {"epsilon_at": (0.0, 0.2)}),
        ("epsilon", {"epsilon_values": (1.0, 0.2)}),
        ("beta", {"beta_at": (0.0, 0.5)}),
    ],
)
def test_any_part_of_a_schedule_given_at_a_resume_overrules_a_number(name: str, changed: dict[str, Any]) -> None:
    config = CONFIG.replace(epsilon_values=(1.0, 0.05), epsilon_at=(0.0, 0.1), epsilon_decay=3_000.0)
    live = values(config)
    live.decide(Request(name, 0.3, "tune"), 8, 0)
    stored = json.loads(json.dumps(live.state()))
    assert values(config.replace(total_env_steps=2 * config.run.total_env_steps)).load(stored) == []
    assert values(config.replace(**changed)).load(stored) == [Request(name, SCHEDULE, "command line")]


def test_the_inbox_hands_over_what_was_asked_in_order_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [new_request("learning_rate", value) for value in (1e-4, 2e-4, -1)]
    Inbox(tmp_path).put(new_request("epsilon", 0.5))
    (tmp_path / INBOX / "0-directory.json").mkdir()
    began = time.time_ns()
    for request in asked:
        Inbox(tmp_path).put(request)
    Inbox(tmp_path).clear(before=began)
    desk = EditDesk(tmp_path)
    for number, garbage in enumerate((b"", b"[]", b"{}", b'{"name": 1', b"\xff", b"[" * 100_000)):
        (tmp_path / INBOX / f"0{number}.json").write_bytes(garbage)
    assert desk.asked(8, 0) == asked, "and nothing that was asked of a former process"
    assert [file.name for file in (tmp_path / INBOX).iterdir()] == ["0-directory.json"], "garbage is not read twice"
    monkeypatch.setattr("atari_dqn.runs.edits.POLL_SECONDS", 0.0)
    desk = EditDesk(tmp_path)
    assert desk.asked(16, 0) == []
    Inbox(tmp_path).put(asked[0])
    assert desk.asked(24, 0) == [asked[0]]
    assert desk.asked(32, 0) == []


def test_edits_are_repeated_at_their_counts_or_at_the_first_past_them(tmp_path: Path) -> None:
    counts = ((8, 0), (8, 3), (8, 4), (16, 3), (9, 5), (40, 7))
    repeated = [
        dataclasses.replace(edit("beta", SCHEDULE, at / 100, env_step=at, undo=at == 9), update=update)
        for at, update in counts
    ]
    desk = EditDesk(tmp_path, repeated, env_step=8, update=3)
    asked = [desk.asked(env_step, update) for env_step, update in ((8, 9), (9, 4), (9, 5), (24, 0), (32, 50))]
    assert [[request.value for request in at_once] for at_once in asked] == [[0.08], [], [0.09], [0.16], []]
    assert asked[2] == [Request("beta", 0.09, "replay", undo=True)], "or the repeated run could not be undone alike"


def test_the_record_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read_edits(tmp_path) == []
    live, desk = values(), EditDesk(tmp_path)
    for name, value in (("learning_rate", 2e-4), ("learning_rate", -1), ("epsilon", 0.1)):
        desk.record(live.decide(new_request(name, value), 40, 3))
    edits = read_edits(tmp_path)
    assert [(one.name, one.old, one.new, one.taken) for one in edits] == [
        ("learning_rate", 1e-4, 2e-4, True),
        ("learning_rate", 2e-4, -1, False),
        ("epsilon", SCHEDULE, 0.1, True),
    ]
    assert live_values(CONFIG, edits).values == live.values
    assert [one.name for one in recorded_edits(tmp_path / RECORD)] == ["learning_rate", "epsilon"]


def test_a_full_disk_leaves_no_torn_line_in_the_record(tmp_path: Path) -> None:
    live, desk = values(), EditDesk(tmp_path)
    desk.record(live.decide(new_request("beta", 0.5), 40, 3))
    whole = (tmp_path / RECORD).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            desk.record(live.decide(new_request("beta", 0.6), 48, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / RECORD).read_bytes() == whole


def test_undo_takes_back_edit_after_edit() -> None:
    first, second = edit("epsilon", SCHEDULE, 0.1), edit("learning_rate", 1e-4, 2e-4)
    refused = edit("beta", SCHEDULE, 7, taken=False)
    undone = edit("learning_rate", 2e-4, 1e-4, undo=True)
    assert to_undo([]) is None
    assert to_undo([first, second, refused]) == second
    assert to_undo([first, second, undone]) == first
    assert to_undo([first, second, undone, edit("epsilon", 0.1, SCHEDULE, undo=True)]) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "line 1, is not an edit: .*missing .* required"),
        ({"new": 7}, "beta is 7; it must be from 0 to 1"),
        ({"old": []}, "must be a number, or schedule"),
        ({"name": "seed"}, "is not an edit: 'seed'"),
        ({"name": []}, "is not an edit"),
        ({"update": None}, "is not an edit"),
        ({"time": "now"}, "is not an edit"),
        ({"env_step": "8"}, "is not a row"),
    ],
)
def test_a_record_that_cannot_be_repeated_is_refused(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    file = tmp_path / "edits.jsonl"
    row = dataclasses.asdict(edit("beta", 0, 1)) | wrong if wrong else {"env_step": 8}
    file.write_text(json.dumps(row) + "\n\n")
    with pytest.raises(ConfigError, match=words):
        recorded_edits(file)
    file.rename(tmp_path / RECORD)
    with pytest.raises(ConfigError, match=words):
        read_edits(tmp_path)
    with pytest.raises(ConfigError, match=r"^--replay-edits [^ ]+ is not a run directory"):
        recorded_edits(tmp_path)
