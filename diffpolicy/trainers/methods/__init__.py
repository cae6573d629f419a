"""One file per method: its options, its parts, its line in the registry."""
