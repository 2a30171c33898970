"""What the page's script knows: the same numbers as the static page, in a form that is small and safe inside HTML.

Grids are sent as 16-bit codes of logarithms: three digits are right over any usual range. The columns of a grid
that was thinned have two codes a cell, the smallest and the largest value.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from warmfree.report.runs.run import Floats
from warmfree.report.runs.thin import Binned

# Codes: 0 is zero; from 1 on sizes, from the smallest to the largest, as many as there are codes for; where a grid
# has negative numbers these take the codes from NEGATIVE on, and there are half as many sizes.
SIZES, HALF_SIZES, NEGATIVE = 65_500, 32_700, 32_768
NAN, INFINITY, MINUS_INFINITY, MISSING = 65_535, 65_534, 65_533, 65_532


def encode_grid(binned: Binned, names: dict[str, int]) -> dict[str, Any]:
    """Encode a grid for the script.

    Args:
        binned: the grid.
        names: the number of every row name on the page; new ones are added.
    """
    parts = [binned.low] if binned.is_whole else [binned.low, binned.high]
    values = np.stack(parts, axis=2)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    low, high = (float(np.log(sizes.min())), float(np.log(sizes.max()))) if len(sizes) else (0.0, 0.0)
    count = HALF_SIZES if (values < 0).any() else SIZES
    codes = _codes(values, low, high, count)
    codes[~binned.measured] = MISSING
    entry: dict[str, Any] = {
        "rows": [names.setdefault(row.label, len(names)) for row in binned.grid.rows],
        "first": binned.first.tolist(),
        "low": low,
        "high": high,
        "sizes": count,
        "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii"),
    }
    return entry if binned.is_whole else {**entry, "last": binned.last.tolist()}


def decode_codes(entry: Mapping[str, Any]) -> Floats:
    """Read the codes of `encode_grid` as the script does: (rows, columns, 1 or 2); NaN where nothing was measured."""
    codes = np.frombuffer(base64.b64decode(entry["codes"]), "<u2").astype(np.int64)
    is_negative = (codes >= NEGATIVE) & (entry["sizes"] == HALF_SIZES)
    place = np.where(is_negative, codes - NEGATIVE, codes)
    sizes = np.exp(entry["low"] + (place - 1) / (entry["sizes"] - 1) * (entry["high"] - entry["low"]))
    values = np.where(is_negative, -sizes, sizes)
    values = np.where(codes == 0, 0.0, values)
    values = np.where(codes == INFINITY, np.inf, np.where(codes == MINUS_INFINITY, -np.inf, values))
    values = np.where((codes == NAN) | (codes == MISSING), np.nan, values)
    return values.reshape(len(entry["rows"]), len(entry["first"]), -1)


def write_json(payload: object) -> str:
    r"""Write `payload` as JSON that can neither end a script element nor hold what JSON has no form for.

    Example:
        >>> write_json({"name": "</script>", "loss": [1.0, float("nan")]})
        '{"name":"\\u003c/script>","loss":[1.0,null]}'
    """
    return json.dumps(_finite(payload), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def rounded(values: Floats) -> list[float]:
    """Round to five digits, which is what a readout shows and more."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _codes(values: Floats, low: float, high: float, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    finite = np.isfinite(values)
    size = np.abs(np.where(finite & (values != 0), values, np.exp(low)))
    along = (np.log(size) - low) / (high - low) if high > low else np.zeros(values.shape)
    codes = 1 + np.rint(along * (count - 1)).astype(np.int64)
    codes = np.where(values < 0, codes + NEGATIVE, codes)
    codes = np.where(values == 0, 0, codes)
    codes = np.where(np.isnan(values), NAN, codes)
    return np.where(np.isinf(values), np.where(values > 0, INFINITY, MINUS_INFINITY), codes)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
