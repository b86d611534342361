"""A run directory on disk: its lock, records, checkpoints and live edits."""
