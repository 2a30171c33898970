"""What is dissected: models at learning rates where AdamW without warmup fails, and the runs to compare with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from warmfree.lab import tasks, vision
from warmfree.lab.data import Batches, Corpus, load_shakespeare
from warmfree.lab.folder import Grid
from warmfree.lab.images import ImageBatches, ImageSet, load_mnist
from warmfree.lab.methods import Method
from warmfree.lab.tasks import ByteGPTConfig
from warmfree.lab.train import Run
from warmfree.lab.vision import ImageTaskConfig

__all__ = ["CONTROL", "MODELS", "SUBJECT", "Case", "GPTCase", "ViTCase", "find_case", "grid_of"]

SUBJECT, CONTROL = "adamw", "adamw-warmup"
PROBE_SEQUENCES, PROBE_IMAGES = 4, 16

LearningRates = Mapping[str, tuple[float, ...]]


class Case(Protocol):
    """A model, what it is trained on, and the learning rates of each method."""

    @property
    def name(self) -> str:
        """Of the model, and of the folder."""

    @property
    def title(self) -> str:
        """Model and data in words."""

    @property
    def lrs(self) -> LearningRates:
        """Learning rates by method; the first one of each is that of `SUBJECT`."""

    @property
    def steps(self) -> int:
        """Length of a run."""

    @property
    def batch_size(self) -> int:
        """Samples in a step."""

    def describe(self) -> dict[str, Any]:
        """Return every setting of the task as plain JSON values."""

    def prepare(self, method: Method, *, lr: float, seed: int) -> Run:
        """Make one run."""

    def probe_batch(self) -> tuple[Tensor, Tensor]:
        """Return held-out samples, the same for all runs: what probes run the network on."""


@dataclass(frozen=True, kw_only=True)
class GPTCase:
    """A byte GPT on a text."""

    task: ByteGPTConfig
    corpus: Corpus
    lrs: LearningRates
    name: str = "gpt"

    @property
    def title(self) -> str:
        """Model and data in words."""
        return f"byte GPT on {self.corpus.name}"

    @property
    def steps(self) -> int:
        """Length of a run."""
        return self.task.steps

    @property
    def batch_size(self) -> int:
        """Sequences in a step."""
        return self.task.batch_size

    def describe(self) -> dict[str, Any]:
        """Return every setting of the task as plain JSON values."""
        return self.task.describe(self.corpus)

    def prepare(self, method: Method, *, lr: float, seed: int) -> Run:
        """Make one run."""
        return tasks.prepare_run(self.task, self.corpus, method, lr=lr, seed=seed)

    def probe_batch(self) -> tuple[Tensor, Tensor]:
        """Return sequences from all over the held-out text."""
        batches = Batches(
            self.corpus,
            context=self.task.context,
            batch_size=PROBE_SEQUENCES,
            seed=0,
            validation_sequences=PROBE_SEQUENCES,
        )
        return batches.validation()[0]


@dataclass(frozen=True, kw_only=True)
class ViTCase:
    """A ViT on images."""

    task: ImageTaskConfig
    images: ImageSet
    lrs: LearningRates
    name: str = "vit"

    @property
    def title(self) -> str:
        """Model and data in words."""
        return f"ViT on {self.images.name}"

    @property
    def steps(self) -> int:
        """Length of a run."""
        return self.task.steps

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return self.task.batch_size

    def describe(self) -> dict[str, Any]:
        """Return every setting of the task as plain JSON values."""
        return self.task.describe(self.images)

    def prepare(self, method: Method, *, lr: float, seed: int) -> Run:
        """Make one run."""
        return vision.prepare_run(self.task, self.images, method, lr=lr, seed=seed)

    def probe_batch(self) -> tuple[Tensor, Tensor]:
        """Return held-out images, of any label."""
        batches = ImageBatches(self.images, batch_size=PROBE_IMAGES, seed=0, validation_images=PROBE_IMAGES)
        return batches.validation()[0]


# Found by a scan: AdamW ends at 2.62 to 3.29 nats per byte without warmup, at 2.16 to 2.47 with it. The second learning
# rates are the best ones of docs/compare.md.
_GPT_TASK = ByteGPTConfig(betas=(0.9, 0.999), steps=300)
_GPT_LRS: LearningRates = {
    "adamw": (2e-3,),
    "adamw-warmup": (2e-3,),
    "adamw2": (2e-3, 8e-3),
    "lionar": (2e-3, 1.6e-2),
}
# AdamW ends at 1.26 to 1.87 nats without warmup, at 0.62 to 0.75 with it; AdamW2 is best at 4e-3, LionAR at 8e-3.
_VIT_TASK = ImageTaskConfig(steps=200)
_VIT_LRS: LearningRates = {
    "adamw": (8e-3,),
    "adamw-warmup": (8e-3,),
    "adamw2": (8e-3, 4e-3),
    "lionar": (8e-3,),
}
MODELS = ("gpt", "vit")


def find_case(name: str, *, steps: int | None = None) -> Case:
    """Return the case of a model, with its data.

    Args:
        name: of `MODELS`.
        steps: of every run, >= 1; None for the case's own.

    Raises:
        ValueError: there is no such model, or steps is out of range.
        ModuleNotFoundError: the package with the data is missing.
    """
    if name == "gpt":
        task = _GPT_TASK.with_steps(_GPT_TASK.steps if steps is None else steps)
        return GPTCase(task=task, corpus=load_shakespeare(), lrs=_GPT_LRS)
    if name == "vit":
        images = _VIT_TASK.with_steps(_VIT_TASK.steps if steps is None else steps)
        return ViTCase(task=images, images=load_mnist(), lrs=_VIT_LRS)
    raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")


def grid_of(case: Case, *, seeds: int) -> Grid:
    """Return all runs of a case with seeds 0, 1, ...

    Raises:
        ValueError: seeds < 1.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    return Grid(lrs=dict(case.lrs), seeds=tuple(range(seeds)))
