"""Records: discarding rows, and reading what is complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from atari_dqn.config.live import Edit
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.edits import RECORD, discard_edits
from atari_dqn.runs.records import discard_after, line, read_rows


def test_an_incomplete_last_line_is_discarded_even_if_it_is_json(tmp_path: Path) -> None:
    """A kill may fall between the row and its line break; the next row would be joined to it."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line({"env_step": 1}) + line({"env_step": 2}) + b'{"env_step": 1}')
    discard_after(file, 1)
    assert file.read_bytes() == line({"env_step": 1})
    discard_after(tmp_path / "absent", 1)
    edit = Edit(env_step=3, update=1, time=0.0, name="beta", old=0.4, new=0.5, source="tune", taken=True)
    stored = [json.dumps(dataclasses.asdict(each)) for each in (edit, edit)]
    (tmp_path / RECORD).write_text("\n".join(stored))
    assert discard_edits(tmp_path, 2) == []
    assert (tmp_path / RECORD).read_text() == stored[0] + "\n"


def test_only_complete_rows_with_the_wanted_fields_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    file.write_text('{"env_step": 1}\n{"env_step": 2, "x": 3}\n{"env_st')
    assert [row["env_step"] for row in read_rows(file)] == [1, 2]
    assert read_rows(file, "x") == [{"env_step": 2, "x": 3}]
    for text in ('{"env_step": -1}', '{"env_step": "five"}', "[1]", "{", "[" * 100_000):
        file.write_text(text + "\n{}")
        with pytest.raises(ConfigError, match=r"rows\.jsonl, line 1, is not a row .*; fix or delete"):
            read_rows(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*rows\.jsonl"):
        read_rows(file)
