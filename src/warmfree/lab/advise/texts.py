"""A file or a folder of text as tokens: bytes, or what a tokenizer makes of them."""

import codecs
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from warmfree.lab.data import load_text
from warmfree.report.wording import count

__all__ = ["TokenWindows", "as_bytes", "read_documents"]

READ_LIMIT = 2**24  # bytes: for the first steps of a run some millions of tokens are plenty

Tokens = npt.NDArray[np.int64]


def read_documents(path: Path, *, seed: int, limit: int = READ_LIMIT) -> list[str]:
    """Return the text of a file, or of the files of a folder and its subfolders in an order drawn from a seed.

    Files in a folder that are hidden, empty or no UTF-8 text are passed over.

    Args:
        path: a file or a folder.
        seed: of the order, int >= 0.
        limit: bytes to read at most, about; the rest is left unread.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a file that is no UTF-8 text, or a folder without any text.
    """
    if not path.is_dir():
        load_text(path)  # for what it says of a file that cannot be used
        text = _read(path, limit)
        assert text is not None
        return [text]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    documents: list[str] = []
    left = limit
    for index in np.random.default_rng(seed).permutation(len(files)):
        if left <= 0:
            break
        text = _read(files[index], left)
        if text is not None and text.strip():
            documents.append(text)
            left -= files[index].stat().st_size
    if not documents:
        raise ValueError(
            f"no UTF-8 text in the folder {path}, among {count(len(files), 'file')}; pass another with --text"
        )
    return documents


def _read(file: Path, limit: int) -> str | None:
    """Return the beginning of a file, None if it is no text."""
    try:
        with file.open("rb") as opened:
            content = opened.read(limit)
            whole = not opened.read(1)
        # Not final: the limit may cut a character into two.
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=whole)
    except (UnicodeDecodeError, OSError):
        return None
    return None if "\0" in text else text


def as_bytes(text: str) -> list[int]:
    """Return the UTF-8 bytes of a text.

    Example:
        >>> as_bytes("né")
        [110, 195, 169]
    """
    return list(text.encode())


class TokenWindows:
    """Windows of a text, drawn uniformly; those of a step depend on (seed, step) alone.

    Args:
        documents: texts, joined in this order.
        encode: a text's tokens.
        context: tokens per sequence, >= 2, so that there is one to predict.
        batch_size: sequences per step, >= 1.
        seed: of the windows, >= 0.
        vocabulary: number of tokens that the model knows.

    Raises:
        ValueError: an argument is out of range, a token is, or there are fewer tokens than a sequence has.

    Example:
        >>> windows = TokenWindows(["abcd"], as_bytes, context=3, batch_size=2, seed=0, vocabulary=256)
        >>> windows.batch(0)["input_ids"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        documents: list[str],
        encode: Callable[[str], list[int]],
        *,
        context: int,
        batch_size: int,
        seed: int,
        vocabulary: int,
    ) -> None:
        for name, value, least in (("context", context, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        tokens: Tokens = np.concatenate([np.asarray(encode(text), dtype=np.int64) for text in documents])
        if len(tokens) < context:
            raise ValueError(
                f"text too short: it has {len(tokens)} tokens, one sequence has {context}; pass more text, or a "
                f"smaller --context"
            )
        if tokens.max() >= vocabulary:
            raise ValueError(
                f"the tokenizer makes token {tokens.max()}, the config's vocab_size is {vocabulary}: they do not "
                f"belong together; set vocab_size to at least {tokens.max() + 1}"
            )
        self._tokens, self._context = tokens, context
        self._batch_size, self._seed = batch_size, seed

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return (batch, context) int64 tokens, which are also the labels: the model shifts them itself."""
        random = np.random.default_rng((self._seed, step))
        starts = random.integers(0, len(self._tokens) - self._context + 1, size=self._batch_size)
        windows = torch.from_numpy(self._tokens[starts[:, None] + np.arange(self._context)])
        return {"input_ids": windows, "labels": windows}
