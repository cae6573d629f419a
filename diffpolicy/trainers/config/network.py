"""Options of policy networks."""

from collections.abc import Callable
from typing import Any

from diffpolicy.trainers.config.options import Options, at_least, configuration, option


@configuration()
class NetworkOptions(Options):
    """The policy's network."""

    actor_hidden_sizes: tuple[int, ...] = option(
        (64, 64),
        "widths of the hidden layers of the policy's (or score) network",
        valid=at_least(1),
        fixed=True,
    )
    encoder: str | Callable[..., Any] | None = option(
        None,
        "what makes features of images, in front of the policy and the critics: cnn, or "
        "module:Class, a torch.nn.Module that is built from the shape of an image",
        fixed=True,
    )
    share_encoder: bool = option(
        False,
        "one encoder for the policy and the critics, which the critics train",
        fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_encoder and self.encoder is None:
            raise ValueError("--share-encoder needs --encoder cnn (or module:Class).")
