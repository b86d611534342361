"""Compares runs: grouping, scores, tables, learning curves."""
