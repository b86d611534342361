"""docs/settings.md is what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import flag, settings
from docs.settings_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_the_schemas() -> None:
    assert PAGE.read_text() == reference(), "python -m docs.settings_reference > docs/settings.md mends it"


def test_every_setting_is_there_with_all_that_is_known_of_it() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in reference().splitlines() if row.startswith("| `")}
    for name, setting in settings(TrainConfig).items():
        row = rows[flag(name)]
        for fact in (setting.help, setting.unit, setting.bounds, setting.source, setting.structural, setting.live):
            assert fact.replace("|", "\\|").replace("*", "\\*") in row, (name, fact)
        assert len(re.findall(r"(?<!\\)\|", row)) == 7, f"{name}: a cell too many"
    assert "`adam`, `adamw`" in rows["--optimizer"]
    assert "| on |" in rows["--dueling"]
    assert "from 1 to 1000" in rows["--seeds"]
    assert "flags override it" in rows["--config"]
