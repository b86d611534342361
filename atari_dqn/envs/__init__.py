"""Environments: the only room that knows gymnasium and ALE, and the worker processes that step them."""
