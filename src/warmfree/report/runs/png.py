"""Pictures with a palette as PNG, in a data URI: one pixel a cell, so that a heat map is a few kilobytes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def encode_png(pixels: NDArray[np.uint8], palette: Sequence[tuple[int, int, int, int]]) -> bytes:
    r"""Write palette indices as a PNG file.

    Args:
        pixels: (height, width), indices into `palette`.
        palette: up to 256 colours as red, green, blue, alpha, from 0 to 255.

    Example:
        >>> encode_png(np.zeros((2, 3), np.uint8), [(255, 0, 0, 255)])[:8]
        b'\x89PNG\r\n\x1a\n'
    """
    height, width = pixels.shape
    # A zero before every line: the line is not filtered, which is best for indices.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(part for colour in palette for part in colour[:3])),
            _chunk(b"tRNS", bytes(colour[3] for colour in palette)),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        ]
    )


def data_uri(png: bytes) -> str:
    """Write a PNG file as an address that needs no request."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
