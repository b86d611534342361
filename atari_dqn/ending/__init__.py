"""What a run leaves when it ends: its score, curve and film, and the commands to continue with."""
