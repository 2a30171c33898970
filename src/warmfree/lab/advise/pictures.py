"""A folder of images, one subfolder a class, as batches for an image classifier."""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ImageFolder", "Pictures"]

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SAMPLED = 256  # images, for the mean and standard deviation of pixels

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """The files of a folder that is laid out as for torchvision's ImageFolder: ``class/any/where/image.png``.

    Attributes:
        path: the folder.
        files: all images, class after class.
        labels: the number of each one's class.
        classes: the names of the subfolders, in order.
    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def find(cls, path: Path) -> "ImageFolder":
        """List the images of a folder.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it does not have two classes with images at least.
        """
        if not path.is_dir():
            raise FileNotFoundError(f"folder of images not found: {path}")
        files: list[Path] = []
        labels: list[int] = []
        classes: list[str] = []
        for folder in sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != "."):
            found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
            if found:
                files += found
                labels += [len(classes)] * len(found)
                classes.append(folder.name)
        if len(classes) < 2:
            raise ValueError(
                f"{path} must have a subfolder with images for each class, two at least, got {len(classes)}; "
                f"images end in {', '.join(ENDINGS)}"
            )
        return cls(path=path, files=tuple(files), labels=tuple(labels), classes=tuple(classes))


class Pictures:
    """Images of a folder, drawn uniformly; those of a step depend on (seed, step) alone.

    Each is scaled until its shorter side fits, its centre cut out, and its pixels, in [0, 1], shifted and scaled.

    Args:
        folder: the files.
        size: height and width in pixels.
        channels: 3 for colours, 1 for grey.
        batch_size: images per step, >= 1.
        seed: of the choice, >= 0.
        mean: of the pixels of each channel; None to measure it on up to 256 images.
        std: their standard deviation; likewise.

    Raises:
        ModuleNotFoundError: pillow is not installed.
        ValueError: an argument is out of range, or an image cannot be read.
    """

    def __init__(
        self,
        folder: ImageFolder,
        *,
        size: tuple[int, int],
        channels: int,
        batch_size: int,
        seed: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise ModuleNotFoundError(
                "reading images needs pillow, which is not installed; run: pip install 'warmfree[lab]'"
            )
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if channels not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, the model takes {channels}; set num_channels")
        self._folder, self._size, self._channels = folder, size, channels
        self._batch_size, self._seed = batch_size, seed
        if mean is None or std is None:
            mean, std = self._measure()
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"image_mean and image_std must have {channels} numbers, those of std > 0, got {mean} and {std}"
            )
        self._mean = np.asarray(mean, dtype=np.float32)[:, None, None]
        self._std = np.asarray(std, dtype=np.float32)[:, None, None]

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return (batch, channels, height, width) float32 pixels and (batch,) int64 labels."""
        random = np.random.default_rng((self._seed, step))
        chosen = random.integers(0, len(self._folder.files), size=self._batch_size)
        pixels = np.stack([self._read(self._folder.files[index]) for index in chosen])
        return {
            "pixel_values": torch.from_numpy((pixels - self._mean) / self._std),
            "labels": torch.tensor([self._folder.labels[index] for index in chosen]),
        }

    def _measure(self) -> tuple[list[float], list[float]]:
        chosen = np.random.default_rng(self._seed).permutation(len(self._folder.files))[:_SAMPLED]
        pixels = np.stack([self._read(self._folder.files[index]) for index in chosen]).astype(np.float64)
        std = pixels.std(axis=(0, 2, 3))
        if not std.all():
            raise ValueError(
                f"all pixels of a channel have one value in {self._folder.path}: nothing to learn"
            )
        return pixels.mean(axis=(0, 2, 3)).tolist(), std.tolist()

    def _read(self, file: Path) -> Pixels:
        """Return the pixels of a file, (channels, height, width) in [0, 1]."""
        from PIL import Image, ImageOps

        height, width = self._size
        try:
            # Pillow warns of oddities in files that it reads nevertheless.
            with warnings.catch_warnings(action="ignore"), Image.open(file) as opened:
                picture: Any = opened.convert("RGB" if self._channels == 3 else "L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"image cannot be read: {file} ({error}); remove it, or get it again") from None
        fitted = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR))
        channels = fitted.reshape(height, width, self._channels).transpose(2, 0, 1)
        return channels.astype(np.float32) / np.float32(255)
