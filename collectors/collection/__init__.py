"""Collectors, their workers, and evaluation."""
