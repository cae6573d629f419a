"""Trained policies: load, act, demonstrate, export, share. Nothing here needs Lightning."""

from diffpolicy.policy.demonstrations import record_episodes, save_demonstrations
from diffpolicy.policy.export import ExportError
from diffpolicy.policy.policy import Policy
from diffpolicy.policy.sources import load_policy, pretrained

__all__ = [
    "ExportError",
    "Policy",
    "load_policy",
    "pretrained",
    "record_episodes",
    "save_demonstrations",
]
