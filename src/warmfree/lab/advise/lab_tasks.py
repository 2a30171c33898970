"""The lab's own tasks as sources: the byte GPT on a text, the ViT on small images."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from warmfree.lab.advise.recipes import Recipe
from warmfree.lab.advise.source import Source, Stream, choose_device, own_loss
from warmfree.lab.data import Batches, load_shakespeare, load_text
from warmfree.lab.images import ImageBatches, load_idx, load_mnist
from warmfree.lab.models.gpt import GPT
from warmfree.lab.models.vit import ViT
from warmfree.lab.tasks import ByteGPTConfig
from warmfree.lab.vision import ImageTaskConfig

__all__ = ["gpt_source", "vit_source"]


def gpt_source(
    recipe: Recipe,
    *,
    steps: int | None,
    batch_size: int | None,
    seed: int,
    text: Path | None,
    device: str | None,
) -> Source:
    """Return the byte GPT that `warmfree compare` trains, before its first step.

    Args:
        recipe: the optimizer.
        steps: of the run; None for the task's own.
        batch_size: sequences per step; None for the task's own.
        seed: of weights and batches.
        text: a UTF-8 file; None for Shakespeare's plays.
        device: by name; None for CUDA's if there is one.

    Raises:
        ValueError: a number is out of range, or the text cannot be used.
        FileNotFoundError: there is no such text.
        ModuleNotFoundError: the default text is not installed.
    """
    place = choose_device(device)
    task = dataclasses.replace(ByteGPTConfig(), **_given(steps=steps, batch_size=batch_size))
    corpus = load_shakespeare() if text is None else load_text(text)
    batches = Batches(corpus, context=task.context, batch_size=task.batch_size, seed=seed)
    torch.manual_seed(seed)
    model = GPT(task.model_config()).to(place)
    return Source(
        title=f"byte GPT on {corpus.name}",
        model=model,
        loss_fn=own_loss,
        batches=Stream(batches.train, device=place),
        optimizer=recipe.build(model),
        steps=task.steps,
        batch_size=task.batch_size,
    )


def vit_source(
    recipe: Recipe,
    *,
    steps: int | None,
    batch_size: int | None,
    seed: int,
    images: Path | None,
    device: str | None,
) -> Source:
    """Return the ViT that `warmfree dissect` trains, before its first step.

    Args:
        recipe: the optimizer.
        steps: of the run; None for the task's own.
        batch_size: images per step; None for the task's own.
        seed: of weights and batches.
        images: a folder of idx files; None for MNIST.
        device: by name; None for CUDA's if there is one.

    Raises:
        ValueError: a number is out of range, or the images cannot be used.
        FileNotFoundError: there is no such folder.
        ModuleNotFoundError: the default images are not installed.
    """
    place = choose_device(device)
    task = dataclasses.replace(ImageTaskConfig(), **_given(steps=steps, batch_size=batch_size))
    split = load_mnist() if images is None else load_idx(images)
    batches = ImageBatches(split, batch_size=task.batch_size, seed=seed)
    torch.manual_seed(seed)
    model = ViT(task.model_config(split)).to(place)
    return Source(
        title=f"ViT on {split.name}",
        model=model,
        loss_fn=own_loss,
        batches=Stream(batches.train, device=place),
        optimizer=recipe.build(model),
        steps=task.steps,
        batch_size=task.batch_size,
    )


def _given(**values: int | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
