"""The two or three numbers that a reader should see first, each with how sure it is."""

from __future__ import annotations

from warmfree.report import wording
from warmfree.report.analysis import TOLERANCE, Analysis, Summary
from warmfree.report.markup import tag, text
from warmfree.report.verdict import certainty


def write_tiles(analysis: Analysis) -> str:
    """Write the headline numbers that this comparison has; an empty string when it has none."""
    tiles = []
    if analysis.removal:
        warmup = 100 * analysis.removal.against.method.warmup_fraction
        label = f"AdamW's best loss when its {warmup:.3g} % warmup is removed"
        tiles.append(
            _tile(label, wording.signed_percent(analysis.removal.relative), certainty(analysis.removal))
        )
    if analysis.warmup_free:
        change = analysis.warmup_free
        label = f"{change.of.method.label}, the best without warmup, against {change.against.method.label}"
        tiles.append(_tile(label, wording.signed_percent(change.relative), certainty(change)))
    widest = _most_forgiving(analysis)
    if widest and widest.robust:
        number = f"{'≥ ' if widest.robust.is_bound else ''}×{wording.factor(widest.robust.width)}"
        label = f"Learning rates within {100 * TOLERANCE:.0f} % of the best: {widest.method.label}, the most forgiving"
        note = f"from {wording.short(widest.robust.low)} to {wording.short(widest.robust.high)}"
        tiles.append(_tile(label, number, note))
    return tag("ul", *tiles, class_="tiles") if tiles else ""


def _most_forgiving(analysis: Analysis) -> Summary | None:
    """The method with the widest robust range, if that is certain: no other range is as wide or cut off."""
    ranges = [(summary.robust, summary) for summary in analysis.methods if summary.robust]
    if len(ranges) < 2:
        return None
    widest, summary = max(ranges, key=lambda entry: entry[0].width)
    others = [robust for robust, _ in ranges if robust is not widest]
    is_certain = all(not other.is_bound and 1.01 * other.width < widest.width for other in others)
    return summary if is_certain else None


def _tile(label: str, number: str, note: str) -> str:
    return tag(
        "li",
        tag("span", text(label), class_="label"),
        tag("span", text(number), class_="value"),
        tag("span", text(note), class_="note"),
    )
