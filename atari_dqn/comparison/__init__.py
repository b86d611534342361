"""Runs beside each other: grouping, scores, tables, learning curves."""
