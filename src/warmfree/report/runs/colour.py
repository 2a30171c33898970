"""From numbers to colours: a map whose lightness grows evenly, from dark violet over green to pale yellow.

The colours stand on a line in OKLCh (Ottosson 2020, a space in which equal distances look equally far): lightness
and hue change evenly, the chroma is constant. Lightness alone orders them, so the map reads without colour vision
and in grey print; no colour of it is red or grey, which are left for what is not a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.report.runs.run import Floats
from warmfree.report.runs.thin import Binned

LEVELS = 64
NAN, INFINITE, MISSING = LEVELS, LEVELS + 1, LEVELS + 2
_LIGHTNESS, _HUE, _CHROMA = (0.24, 0.94), (305.0, 105.0), 0.1
# What the picture lets through shows the hatching behind it: all of it for NaN, tinted for infinity.
_SPECIAL = ((255, 255, 255, 0), (213, 60, 0, 165), (138, 138, 138, 255))


@dataclass(frozen=True, slots=True)
class Scale:
    """What the two ends of the colour map stand for; `smallest` and `largest` may lie beyond them."""

    low: float
    high: float
    is_log: bool
    smallest: float
    largest: float

    def level(self, values: Floats) -> Floats:
        """Return how far up the map finite `values` are, from 0 to 1; on a log scale 0 and below are at 0."""
        low, high, scaled = (self._scaled(part) for part in (np.array(self.low), np.array(self.high), values))
        if high == low:
            return np.full(values.shape, 0.5)
        return np.clip((scaled - low) / (high - low), 0.0, 1.0)

    def value(self, level: float) -> float:
        """Return the number that stands `level` up the map."""
        if self.is_log:
            return float(np.exp((1 - level) * np.log(self.low) + level * np.log(self.high)))
        return (1 - level) * self.low + level * self.high

    def _scaled(self, values: Floats) -> Floats:
        return np.log(np.maximum(values, self.low)) if self.is_log else values


def find_scale(arrays: list[Floats], *, is_log: bool) -> Scale | None:
    """Choose the ends of the colour map for all `arrays` together; None when no value is finite.

    They are the smallest and largest value, unless these lie far outside of where 98 % of the values are: then
    the map reaches beyond the 1st and 99th percentile by as much as these are apart, so that a spike stands out
    and does not turn everything else into one colour.
    """
    values = np.concatenate([array[np.isfinite(array)] for array in arrays])
    if not len(values):
        return None
    smallest, largest = float(values.min()), float(values.max())
    positive = values[values > 0]
    is_log = is_log and len(positive) > 0
    scaled = np.log(positive) if is_log else values
    p1, p99 = np.percentile(scaled, [1, 99])
    spread = p99 - p1
    low = float(max(scaled.min(), p1 - spread)) if spread else float(scaled.min())
    high = float(min(scaled.max(), p99 + spread)) if spread else float(scaled.max())
    if is_log:
        low, high = float(np.exp(low)), float(np.exp(high))
    return Scale(low, high, is_log, smallest, largest)


def colour_cells(binned: Binned, scale: Scale | None) -> NDArray[np.uint8]:
    """Return the palette index of every cell: a column shows what is farthest from its row's median."""
    low, high = binned.low, binned.high
    index = np.full(low.shape, MISSING, np.uint8)
    index[binned.measured & np.isnan(high)] = NAN
    index[binned.measured & np.isinf(high)] = INFINITE
    numbers = binned.measured & np.isfinite(high)
    if scale is None or not numbers.any():
        return index
    lows, highs = (scale.level(np.where(numbers, part, scale.low)) for part in (low, high))
    if binned.is_whole:
        chosen = highs
    else:
        middle = _row_medians(0.5 * (lows + highs), numbers)
        chosen = np.where(highs - middle >= middle - lows, highs, lows)
    index[numbers] = np.minimum(chosen[numbers] * LEVELS, LEVELS - 1).astype(np.uint8)
    return index


def palette() -> list[tuple[int, int, int, int]]:
    """The colours, red green blue alpha: `LEVELS` of the map, then those of NaN, infinity and not measured."""
    along = np.linspace(0.0, 1.0, LEVELS)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * along
    hue = np.radians(_HUE[0] + (_HUE[1] - _HUE[0]) * along)
    colours = _from_oklab(lightness, _CHROMA * np.cos(hue), _CHROMA * np.sin(hue))
    return [(int(red), int(green), int(blue), 255) for red, green, blue in colours] + list(_SPECIAL)


def gradient(stops: int = 12) -> str:
    """The colour map as a CSS gradient from left to right."""
    colours = palette()[:LEVELS]
    chosen = (colours[round(place * (LEVELS - 1) / (stops - 1))] for place in range(stops))
    return f"linear-gradient(to right,{','.join(f'#{red:02x}{green:02x}{blue:02x}' for red, green, blue, _ in chosen)})"


def _from_oklab(lightness: Floats, a: Floats, b: Floats) -> NDArray[np.uint8]:
    """Convert OKLab to sRGB with 8 bits (Ottosson 2020, "A perceptual color space for image processing")."""
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_linear @ cones**3, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * srgb.T), np.uint8)


def _row_medians(levels: Floats, known: NDArray[np.bool_]) -> Floats:
    medians = [
        float(np.median(row[mask])) if mask.any() else 0.5 for row, mask in zip(levels, known, strict=True)
    ]
    return np.array(medians)[:, None]
