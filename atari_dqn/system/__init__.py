"""The machine, child processes, signals and atomic files. Imports nothing else of this package."""
