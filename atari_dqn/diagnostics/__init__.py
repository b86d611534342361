"""Measurements and checks behind `bench` and `doctor`."""
