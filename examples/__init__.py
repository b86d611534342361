"""Short programs that use the package: `python -m examples.NAME`."""
