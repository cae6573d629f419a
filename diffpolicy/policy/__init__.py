"""Trained policies: load, act, export, share. Nothing here needs Lightning."""

from diffpolicy.policy.policy import Policy
from diffpolicy.policy.sources import load_policy

__all__ = ["Policy", "load_policy"]
