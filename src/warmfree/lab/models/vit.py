"""A small vision transformer in plain PyTorch: patches, a class token, pre-LayerNorm blocks, a Linear head.

The class token is a vector of its own, without a position: positions tell patches apart, and there is one of it.
Initial weights: normal with standard deviation sqrt(2 / (5 * width)) (SmallInit; Nguyen & Salazar 2019, Transformers
without Tears), and as in GPT-2 less by sqrt(2 * layers) where a projection writes into the residual stream.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from warmfree.lab.models.blocks import Block, BlocksConfig, cross_entropy, initialise

__all__ = ["ViT", "ViTConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig(BlocksConfig):
    """The shape of a ViT: of its blocks, and of what is around them.

    Attributes:
        image_size: pixels of a side; images are square, with one channel.
        patch: pixels of a patch's side, a divisor of ``image_size``.
        classes: number of labels.
        width: features of the residual stream, a multiple of ``heads``.
    """

    image_size: int = 28
    patch: int = 4
    classes: int = 10
    width: int = 64

    def __post_init__(self) -> None:
        BlocksConfig.__post_init__(self)  # slots leave super() without its class
        if self.image_size % self.patch:
            raise ValueError(f"patch must divide image_size={self.image_size}, got {self.patch}")

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch) ** 2


class ViT(nn.Module):
    """An encoder that classifies images by what its class token has become.

    Args:
        config: the shape of the model.

    Example:
        >>> model = ViT(ViTConfig(image_size=8, patch=4, classes=3, layers=1, width=16, heads=2))
        >>> images, labels = torch.zeros(5, 8, 8), torch.zeros(5, dtype=torch.long)
        >>> model(images).shape
        torch.Size([5, 3])
        >>> model.loss(images, labels).shape
        torch.Size([])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Linear(config.patch**2, config.width, bias=config.bias)
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Embedding(config.patches, config.width)
        self.blocks = nn.ModuleList(Block(config, causal=False) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.head = nn.Linear(config.width, config.classes, bias=config.bias)
        # About GPT-2's 0.02 at width 1024; at width 64 with 0.02 a block would write next to nothing for long.
        std = math.sqrt(2 / (5 * config.width))
        # Not 0: the first LayerNorm would divide by the root of its eps, and hand back a gradient as large.
        nn.init.normal_(self.class_token, std=std)
        initialise(self, layers=config.layers, std=std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the labels.

        Args:
            images: (batch, image_size, image_size) floating point, normalised to mean 0 and deviation 1.

        Returns:
            (batch, classes) logits.

        Raises:
            ValueError: the images have another shape.
        """
        size = self.config.image_size
        if images.ndim != 3 or images.shape[1:] != (size, size):
            raise ValueError(f"images must have the shape (batch, {size}, {size}), got {tuple(images.shape)}")
        x = self.patches(self._cut(images)) + self.positions.weight
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))  # type: ignore[no-any-return]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats per image.

        Args:
            images: (batch, image_size, image_size) floating point.
            labels: (batch,) integers in [0, classes).
        """
        return cross_entropy(self(images), labels)

    def _cut(self, images: Tensor) -> Tensor:
        """Cut images into patches, row by row: (batch, patches, pixels of a patch)."""
        side, patch = self.config.image_size // self.config.patch, self.config.patch
        return images.reshape(-1, side, patch, side, patch).transpose(2, 3).reshape(len(images), -1, patch**2)
