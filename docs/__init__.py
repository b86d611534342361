"""Pages, and the program that writes docs/settings.md."""
