"""Rows of metrics (made in training/metrics.py) shown in metrics.jsonl, TensorBoard and the terminal."""
