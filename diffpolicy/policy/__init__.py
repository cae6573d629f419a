"""Trained policies: load, act, export, share. Nothing here needs Lightning."""

from diffpolicy.policy.export import ExportError
from diffpolicy.policy.policy import Policy
from diffpolicy.policy.sources import load_policy, pretrained

__all__ = ["ExportError", "Policy", "load_policy", "pretrained"]
