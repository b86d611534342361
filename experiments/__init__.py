"""Settings worth repeating, a short file each: `python -m experiments` lists, `python -m experiments.NAME` runs them.

Each file says where its settings come from, what is to be expected of them and what was measured, and holds `CONFIG`,
`EXPECTED` and `TAKES` (one line each, for the list). Any setting can be overridden by its flag, as in `train --help`.
"""
