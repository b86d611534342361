"""Experiments worth repeating, one short file each: `python -m experiments` lists them.

Each file says what it reproduces, where its settings come from, what score and duration to expect, and what was
measured. It defines `CONFIG`, `EXPECTED` and `TAKES` (one line each, for the list). `python -m experiments.NAME` runs
it; any setting can be overridden by its flag, as in `python -m atari_dqn.train --help`.
"""
