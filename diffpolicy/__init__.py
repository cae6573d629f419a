"""Diffusion policies for maximum-entropy reinforcement learning.

The package is layered: :mod:`diffpolicy.sde` (plain torch mathematics of the denoising
process), :mod:`diffpolicy.networks` (torch modules), :mod:`diffpolicy.actors` (TensorDict
modules) and :mod:`diffpolicy.trainers` (Lightning, imported only on request).
"""

__version__ = "0.1.0"
