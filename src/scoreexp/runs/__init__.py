"""What a run leaves: its directory, checkpoints and reports."""
