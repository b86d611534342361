"""Gymnasium and ALE environments: protocols, games, vector environments, and single ones for people."""
