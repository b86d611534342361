"""Rows of metrics on their way to metrics.jsonl, TensorBoard and the terminal."""
