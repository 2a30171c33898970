"""What is trained on images: a ViT that classifies them, with everything that decides its numbers."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmfree.lab.images import ImageBatches, ImageSet
from warmfree.lab.methods import Method
from warmfree.lab.models.vit import ViT, ViTConfig
from warmfree.lab.tasks import CHECKPOINT_EVERY, VALIDATE_EVERY
from warmfree.lab.train import Run
from warmfree.schedule.shapes import trapezoid

__all__ = ["ImageTaskConfig", "prepare_run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTaskConfig:
    """Model, batches and schedule of a ViT.

    Attributes:
        layers: blocks of the model.
        width: features of its residual stream.
        heads: attention heads.
        patch: pixels of a patch's side, a divisor of the images' size.
        batch_size: images per step.
        steps: optimizer steps, >= 1.
        cooldown: fraction of the run in which the learning rate falls linearly to 0, in [0, 1].
        weight_decay: of the tensors with 2 or more dimensions.
        betas: of optimizers that have two.
        validation_images: images per validation.
    """

    layers: int = 4
    width: int = 64
    heads: int = 4
    patch: int = 4
    batch_size: int = 64
    steps: int = 300
    cooldown: float = 0.5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    validation_images: int = 512

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")

    def with_steps(self, steps: int) -> "ImageTaskConfig":
        """Return the same task with another length of the run."""
        return dataclasses.replace(self, steps=steps)

    def model_config(self, images: ImageSet) -> ViTConfig:
        """Return the shape of the model for these images."""
        return ViTConfig(
            image_size=images.image_size,
            patch=self.patch,
            classes=images.classes,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
        )

    def describe(self, images: ImageSet) -> dict[str, Any]:
        """Return every setting, with the size of the model and the images, as plain JSON values."""
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in ViT(self.model_config(images)).parameters())
        return {
            "name": "ViT",
            **dataclasses.asdict(self),
            "betas": list(self.betas),
            "parameters": parameters,
            "images": self.steps * self.batch_size,
            "corpus": {"name": images.name, "sha256": images.sha256()},
            "useless_loss": images.label_entropy(),
        }


def prepare_run(config: ImageTaskConfig, images: ImageSet, method: Method, *, lr: float, seed: int) -> Run:
    """Seed, and build the model, optimizer and schedule of one run.

    All methods start from the same weights and see the same batches for the same seed. A run counts as diverged
    when it ends no better than the entropy of the labels, which a model reaches without any use of the image.

    Args:
        config: model, batches and schedule.
        images: the set.
        method: the optimizer and its warmup; its learning rates are for text, and are not used.
        lr: peak learning rate, > 0.
        seed: of weights and batches, >= 0.

    Raises:
        ValueError: the patch does not divide the images' size, or a number is out of range.
    """
    batches = ImageBatches(
        images, batch_size=config.batch_size, seed=seed, validation_images=config.validation_images
    )
    validation = batches.validation()
    torch.manual_seed(seed)
    model = ViT(config.model_config(images))
    optimizer = method.build(model, lr=lr, weight_decay=config.weight_decay, betas=config.betas)
    cooldown = min(config.cooldown, 1.0 - method.warmup)

    def loss(step: int) -> Tensor:
        return model.loss(*batches.train(step))

    def validate() -> float:
        number = sum(len(labels) for _, labels in validation)
        return sum(model.loss(*batch).item() * len(batch[1]) for batch in validation) / number

    return Run(
        model=model,
        optimizer=optimizer,
        schedule=trapezoid(optimizer, steps=config.steps, warmup=method.warmup, cooldown=cooldown),
        loss=loss,
        validate=validate,
        steps=config.steps,
        useless_loss=images.label_entropy(),
        eval_every=min(VALIDATE_EVERY, math.ceil(config.steps / 2)),
        checkpoint_every=CHECKPOINT_EVERY,
    )
