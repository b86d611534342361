"""The training loop, the session around it, and several seeds at once."""
