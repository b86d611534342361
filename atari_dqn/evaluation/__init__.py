"""Scores of whole games, with their intervals and human references."""
