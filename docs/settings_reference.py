"""The schema of the settings flows in; docs/settings.md, a reference of all of them, flows out.

python -m docs.settings_reference > docs/settings.md
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from atari_dqn.config.schema import COLUMNS, TrainConfig
from atari_dqn.config.setting import Setting, flag
from atari_dqn.train import TrainCommand

HEAD = """# Settings

Generated from the schema by `python -m docs.settings_reference > docs/settings.md`; a test compares them.

The defaults below are those of `--preset paper`, of every environment but Atari's, and of `python -m atari_dqn.sweep`.
On an Atari game `train` begins with the settings of `--preset cpu` or `gpu`
([config/presets.py](../atari_dqn/config/presets.py)), unless `--config` or a run gives others.

Each setting is a flag of `python -m atari_dqn.train` (`--no-NAME` for one that is `on`), a key of a run's
`config.json`, and a keyword of `TrainConfig().replace(...)`, there with underscores. The last column says when it may
change:

- **live**: at any time of a run, with `python -m atari_dqn.tune RUN NAME=VALUE` or on the dashboard's page, under this
  name;
- **resume**: when a run is resumed, by giving the flag again with its `--run-dir`;
- **never**: a change would make it a different run; the reason is given.
"""

COMMAND = """
## Of `train` alone

These are no settings of the run: they are not kept in its `config.json`.

| flag | meaning |
|---|---|
"""


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    for hint in typing.get_type_hints(TrainConfig).values():
        parts.append(f"\n## {hint.__doc__}\n\n| setting | meaning | unit and bounds | default | source | changes |\n")
        parts.append("|---|---|---|---|---|---|\n")
        parts.extend(_row(name, kind, setting, getattr(hint(), name)) for name, kind, setting in _settings_of(hint))
    parts.append(COMMAND)
    own = {field.name for field in dataclasses.fields(TrainCommand)} - {f.name for f in dataclasses.fields(TrainConfig)}
    for name, hint in typing.get_type_hints(TrainCommand, include_extras=True).items():
        if name in own:
            told = next(extra.help for extra in reversed(hint.__metadata__) if getattr(extra, "help", None))
            parts.append(f"| `{flag(name)}` | {_cell(told)} |\n")
    return "".join(parts)


def _settings_of(section: type) -> Iterator[tuple[str, Any, Setting]]:
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        for extra in hint.__metadata__:
            if isinstance(extra, Setting):
                yield name, hint.__origin__, extra


def _row(name: str, kind: Any, setting: Setting, default: Any) -> str:
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    values = ", ".join(f"`{choice}`" for choice in choices) or ("on or off" if kind is bool else "")
    bounds = "; ".join(part for part in (setting.unit, setting.bounds, values) if part)
    cells = (f"`{flag(name)}`", setting.help, bounds, _default(default), setting.source, _changes(setting))
    return f"| {' | '.join(map(_cell, cells))} |\n"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "`" + " ".join(map(str, value)) + "`"
    return "none" if value is None else f"`{value}`"


def _changes(setting: Setting) -> str:
    if setting.live:
        low, high = setting.suggested
        return f"live: `{setting.live}` (slider {low:,.7g} to {high:,.7g})"
    if setting.structural == COLUMNS:
        return f"resume, if the number of envs stays: {COLUMNS}"
    return f"never: {setting.structural}" if setting.structural else "resume"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    print(reference(), end="")
