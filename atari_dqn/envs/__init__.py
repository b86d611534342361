"""Gymnasium and ALE environments: ids, evaluation protocols, vector environments, and single ones for people."""
