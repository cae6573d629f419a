"""Encoders: images and vectors of an observation as one vector of features."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffpolicy.networks.normalization import RunningNorm

#: Builds the encoder of one image from its shape; or an encoder, of which copies are made.
MakeEncoder = Callable[[tuple[int, ...]], nn.Module] | nn.Module


class ImageEncoder(nn.Module):
    """A small convolutional network: 3 x 3 kernels of stride 2, then one layer with its norm.

    It halves images until they are four pixels high or wide, at most four times. Images of bytes
    are scaled to ``[-0.5, 0.5]``, images of floats are taken as they are. The channels are the
    first or the last dimension, whichever is smaller (the last one if they are equal).

    Args:
        shape: ``[H, W, C]`` or ``[C, H, W]``.
        features: size of the output.
        width: channels of the first layer; all others have twice as many.

    Raises:
        ValueError: if the shape is not that of an image.

    Examples:
        >>> encode = ImageEncoder((16, 16, 3), features=10)
        >>> encode(torch.zeros(5, 16, 16, 3, dtype=torch.uint8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, shape: Sequence[int], features: int = 64, width: int = 32) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"shape must be [H, W, C] or [C, H, W], got {tuple(shape)}.")
        self.channels_last = channels_last(shape)
        channels, *size = (shape[-1], *shape[:2]) if self.channels_last else shape
        layers: list[nn.Module] = []
        for index in range(4):
            if index and min(size) <= 4:
                break
            layers += [nn.Conv2d(channels, width << (index > 0), 3, stride=2, padding=1), nn.ReLU()]
            channels, size = width << (index > 0), [-(-side // 2) for side in size]
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(channels * math.prod(size), features)
        self.norm = nn.LayerNorm(features)

    def forward(self, image: Tensor) -> Tensor:
        """Features ``[N, features]`` of images ``[N, *shape]``."""
        scaled = image if image.is_floating_point() else image / 255 - 0.5
        if self.channels_last:
            scaled = scaled.movedim(-1, -3)
        return self.norm(self.out(self.convolutions(scaled).flatten(-3))).tanh()


class ObservationEncoder(nn.Module):
    """One vector from all entries of an observation: vectors first, then features of each image.

    Args:
        entries: shape and type of each entry; those of three dimensions are images.
        make: builds the encoder of one image, which maps ``[N, *shape]`` to ``[N, F]``.
        normalizer: statistics of the vectors, which it standardises; None leaves them as they are.

    Raises:
        ValueError: if an encoder returns something else than ``[N, F]``.

    Attributes:
        features: size of the output.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Sequence[int], torch.dtype]],
        make: MakeEncoder,
        normalizer: RunningNorm | None = None,
    ) -> None:
        super().__init__()
        self.shapes = [tuple(shape) for shape, _ in entries]
        self.normalizer = normalizer
        self.images = nn.ModuleList()
        self.features = sum(shape[-1] for shape in self.shapes if not is_image(shape))
        for shape, dtype in entries:
            if is_image(shape):
                encoder = _built(make, tuple(shape))
                self.images.append(encoder)
                self.features += _width(encoder, torch.zeros(2, *shape, dtype=dtype))

    def forward(self, *entries: Tensor) -> Tensor:
        """Features ``[*B, features]`` of entries ``[*B, *shape]``."""
        given = list(zip(self.shapes, entries, strict=True))
        vectors = [entry for shape, entry in given if not is_image(shape)]
        images = [entry for shape, entry in given if is_image(shape)]
        parts = []
        if vectors:
            joined = torch.cat(vectors, -1) if len(vectors) > 1 else vectors[0]
            parts.append(joined if self.normalizer is None else self.normalizer(joined))
        for shape, image, encode in zip(self._image_shapes(), images, self.images, strict=True):
            batch = image.shape[:-3]
            parts.append(encode(image.reshape(-1, *shape)).reshape(*batch, -1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _image_shapes(self) -> list[tuple[int, ...]]:
        return [shape for shape in self.shapes if is_image(shape)]


def is_image(shape: Sequence[int]) -> bool:
    """Whether entries of this shape, without that of the batch, are images."""
    return len(shape) == 3


def channels_last(shape: Sequence[int]) -> bool:
    """Whether an image is ``[H, W, C]`` rather than ``[C, H, W]``."""
    return shape[-1] <= shape[0]


def _built(make: MakeEncoder, shape: tuple[int, ...]) -> nn.Module:
    encoder = copy.deepcopy(make) if isinstance(make, nn.Module) else make(shape)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            "encoder must be a torch.nn.Module, or build one from the shape of an image, got "
            f"{type(encoder).__name__}."
        )
    return encoder


def _width(encoder: nn.Module, images: Tensor) -> int:
    """The number of features that an encoder makes of an image."""
    training = encoder.training
    with torch.no_grad():
        out = encoder.eval()(images)
    encoder.train(training)
    if out.ndim != 2 or len(out) != len(images):
        raise ValueError(
            f"encoder must map images {list(images.shape)} to features [{len(images)}, F], got "
            f"{list(out.shape)}."
        )
    return out.shape[-1]
