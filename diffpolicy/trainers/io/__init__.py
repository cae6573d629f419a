"""What a run writes and reads: files, checkpoints, random states, the console."""
