"""Fourier embeddings of denoising steps and of times."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from diffpolicy.networks.mlp import Activation, Initialization, mlp


class StepEmbedding(nn.Module):
    """Embeds the integer step n: sin and cos of ``c_i n + b_i``, then Linear, activation, Linear.

    ``c`` is a buffer, evenly spaced in [0.1, 100]; the phases ``b`` are learned (arXiv 2502.02316,
    arXiv 2512.02019). The steps ``0 .. num_steps - 1`` are embedded once per call and looked up,
    so the cost does not grow with the batch.

    Args:
        num_steps: number of different steps.
        frequencies: number of frequencies.
        hidden_features: width of the hidden layer.
        out_features: size of the embedding ``E``.
        activation: of the hidden layer, see :func:`~diffpolicy.networks.mlp`.
        initialization: of the linear layers, see :func:`~diffpolicy.networks.mlp`.

    Raises:
        ValueError: if ``num_steps`` or a width is below 1, or for an unknown initialization.
    """

    coefficients: Tensor
    steps: Tensor

    def __init__(
        self,
        num_steps: int,
        frequencies: int = 32,
        hidden_features: int = 32,
        out_features: int = 16,
        *,
        activation: Activation | Callable[[], nn.Module] = "gelu",
        initialization: Initialization = "torch",
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.out_features = out_features
        dtype = torch.get_default_dtype()
        self.register_buffer("coefficients", torch.linspace(0.1, 100, frequencies))
        self.register_buffer("steps", torch.arange(num_steps, dtype=dtype))
        self.phases = nn.Parameter(torch.zeros(frequencies))
        self.net = mlp(
            2 * frequencies, (hidden_features,), out_features, activation, initialization
        )

    def reset_parameters(self) -> None:
        """Set the phases back to zero; the layers reset themselves."""
        nn.init.zeros_(self.phases)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what is fixed if the state does not have it, as states of old do not."""
        state_dict.setdefault(prefix + "coefficients", self.coefficients)
        state_dict.setdefault(prefix + "steps", self.steps)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def table(self) -> Tensor:
        """Embeddings of all steps, ``[num_steps, E]``."""
        angles = self.steps.unsqueeze(-1) * self.coefficients + self.phases
        return self.net(torch.cat((angles.sin(), angles.cos()), -1))

    def forward(self, step: Tensor) -> Tensor:
        """Embed integer steps ``[*B]`` as ``[*B, E]``."""
        return self.table()[step]

    def projected(self, weight: Tensor) -> Callable[[int | Tensor], Tensor]:
        """What a linear layer ``[H, E]`` makes of a step n, all steps at once: ``[H]``."""
        rows = linear(self.table(), weight).unbind()

        def of_step(step: int | Tensor) -> Tensor:
            return rows[int(step)]

        return of_step


class IntervalEmbedding(nn.Module):
    """Embeds two times of [0, 1]: sin and cos of ``c_i t``, then Linear, activation, Linear.

    ``c`` is a buffer, evenly spaced in [0.1, 10]: a flow is differentiated along its time, which
    the frequencies multiply.

    Args:
        frequencies: number of frequencies.
        hidden_features: width of the hidden layer.
        out_features: size of the embedding ``E``.
        activation: of the hidden layer, see :func:`~diffpolicy.networks.mlp`.
        initialization: of the linear layers, see :func:`~diffpolicy.networks.mlp`.

    Raises:
        ValueError: if a width is below 1, or for an unknown initialization.
    """

    coefficients: Tensor

    def __init__(
        self,
        frequencies: int = 8,
        hidden_features: int = 32,
        out_features: int = 16,
        *,
        activation: Activation | Callable[[], nn.Module] = "gelu",
        initialization: Initialization = "torch",
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.register_buffer("coefficients", torch.linspace(0.1, 10, frequencies))
        self.net = mlp(
            4 * frequencies, (hidden_features,), out_features, activation, initialization
        )

    def forward(self, times: Tensor) -> Tensor:
        """Embed times ``[*B, 2]`` as ``[*B, E]``."""
        angles = (times.unsqueeze(-1) * self.coefficients).flatten(-2)
        return self.net(torch.cat((angles.sin(), angles.cos()), -1))

    def projected(self, weight: Tensor) -> Callable[[int | Tensor], Tensor]:
        """What a linear layer ``[H, E]`` makes of times ``[2]``: ``[H]``."""

        def of_times(times: int | Tensor) -> Tensor:
            assert isinstance(times, Tensor)
            return linear(self(times), weight)

        return of_times
