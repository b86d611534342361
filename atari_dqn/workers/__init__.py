"""Environments in other processes, supervised, behind `send` and `recv`. Never imports torch."""
