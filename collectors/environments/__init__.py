"""Environments: where they come from, what they observe, how copies are stepped together."""
