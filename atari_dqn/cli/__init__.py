"""How a command begins, talks to the user and ends."""
