"""What the numbers say, in plain words: every sentence is computed, none claims more than the seeds allow."""

from __future__ import annotations

from warmfree.report import wording
from warmfree.report.analysis import TOLERANCE, WITH_WARMUP, WITHOUT_WARMUP, Analysis, Contrast, Summary


def conclude(analysis: Analysis) -> list[str]:
    """Say what `analysis` shows, the most important first."""
    if analysis.best is None:
        return [_nothing_finished(analysis)]
    sentences = [
        _cost_of_removal(analysis),
        _best_warmup_free(analysis),
        _robustness(analysis),
        *_edges(analysis),
        *_unequal_grids(analysis),
        _seeds(analysis),
        *_missing(analysis),
    ]
    return [sentence for sentence in sentences if sentence]


def certainty(contrast: Contrast) -> str:
    """Say how far the seeds support a difference, in words that fit in brackets."""
    if contrast.spread is None:
        most = max(len(best.losses) for best in (contrast.of.best, contrast.against.best) if best)
        return f"{'one seed each' if most == 1 else 'too few seeds'}, so the spread is unknown"
    margin = f"± {wording.percent(contrast.spread)}"
    return f"{margin} over seeds" if contrast.resolved else f"within the spread over seeds, {margin}"


def _nothing_finished(analysis: Analysis) -> str:
    cells = sum(summary.num_cells for summary in analysis.methods)
    if not cells:
        return "No cell has a result yet, so there is nothing to compare."
    diverged = sum(summary.num_diverged for summary in analysis.methods)
    if diverged == cells:
        return f"Every run diverged ({wording.count(cells, 'cell')}): try smaller learning rates."
    return (
        f"No learning rate finished with every seed ({diverged} of {wording.count(cells, 'cell')} diverged): "
        "try smaller learning rates."
    )


def _cost_of_removal(analysis: Analysis) -> str:
    without, warm = analysis.find(WITHOUT_WARMUP), analysis.find(WITH_WARMUP)
    if without is None or warm is None:
        return (
            "What removing warmup costs AdamW is not measured here: it takes AdamW both with and without it."
        )
    warmup = f"the {100 * warm.method.warmup_fraction:.3g} % warmup"
    change = analysis.removal
    if change is None:
        return " ".join(
            f"{summary.method.label} has no learning rate at which every seed finished, "
            f"so the cost of removing {warmup} cannot be put in percent."
            for summary in (without, warm)
            if summary.best is None
        )
    return (
        f"{_effect_of_removal(change, warmup)} ({certainty(change)}). "
        f"Best final validation loss: {_result(without)} for {without.method.label} "
        f"against {_result(warm)} for {warm.method.label}."
    )


def _effect_of_removal(change: Contrast, warmup: str) -> str:
    size = wording.percent(change.relative)
    if change.resolved is False:
        return f"Removing {warmup} changes AdamW's best loss by {wording.signed_percent(change.relative)}"
    if change.relative < 0:
        return f"Removing {warmup} lowers AdamW's best loss by {size}"
    if change.relative == 0:
        return f"Removing {warmup} does not change AdamW's best loss"
    return f"Removing {warmup} costs AdamW {size}"


def _best_warmup_free(analysis: Analysis) -> str:
    candidates = [summary for summary in analysis.methods if summary.method.kind == "warmup-free"]
    best = analysis.best_warmup_free
    if not candidates:
        return "No warmup-free optimizer was compared."
    if best is None:
        return "No warmup-free optimizer has a learning rate at which every seed finished."
    opening = f"{best.method.label}, without warmup, reaches {_result(best)}"
    if len(candidates) > 1:
        opening = f"The best of {len(candidates)} warmup-free optimizers is {best.method.label} with {_result(best)}"
    change = analysis.warmup_free
    if change is None:
        return f"{opening}; there is no AdamW with warmup to hold it against."
    side = "above" if change.relative > 0 else "below"
    where = f"{wording.percent(change.relative)} {side}" if change.relative else "equal to"
    return f"{opening}: {where} {change.against.method.label} ({certainty(change)})."


def _result(summary: Summary) -> str:
    assert summary.best is not None
    return f"{wording.loss(summary.best.mean)} (lr {wording.short(summary.best.lr)})"


def _robustness(analysis: Analysis) -> str:
    tuned = [summary for summary in analysis.methods if summary.robust and len(summary.points) > 1]
    labels: dict[str, list[str]] = {}
    for summary in sorted(tuned, key=lambda summary: -(summary.robust.width if summary.robust else 0)):
        assert summary.robust is not None
        width = f"×{wording.factor(summary.robust.width)}{' or more' if summary.robust.is_bound else ''}"
        labels.setdefault(width, []).append(summary.method.label)
    if not labels:
        return ""
    parts = [f"{width} for {wording.listing(names)}" for width, names in labels.items()]
    return (
        f"Learning rates within {100 * TOLERANCE:.0f} % of a method's own best, among those tested, span a factor "
        f"of {'; '.join(parts)}."
    )


def _edges(analysis: Analysis) -> list[str]:
    sentences = []
    for edge in ("lowest", "highest"):
        labels = [summary.method.label for summary in analysis.methods if summary.edge == edge]
        if labels:
            direction = "smaller" if edge == "lowest" else "larger"
            sentences.append(
                f"The best learning rate is the {edge} one tried for {wording.listing(labels)}: the grid is too "
                f"narrow there, {direction} ones may do better, and the loss is only an upper bound."
            )
    single = [summary.method.label for summary in analysis.methods if summary.edge == "only"]
    if single:
        sentences.append(
            f"Only one learning rate has a result for {wording.listing(single)}: not tuned, so the loss is only "
            "an upper bound."
        )
    return sentences


def _unequal_grids(analysis: Analysis) -> list[str]:
    """A finer or longer grid is more tries at a small minimum: say so where the headline depends on it."""
    sentences = []
    for change in (analysis.removal, analysis.warmup_free):
        if change is None or len(change.of.points) == len(change.against.points):
            continue
        more, fewer = sorted((change.of, change.against), key=lambda summary: -len(summary.points))
        sentences.append(
            f"{more.method.label} was given {len(more.points)} learning rates and {fewer.method.label} "
            f"{len(fewer.points)}: more tries favour the former."
        )
    return sentences


def _seeds(analysis: Analysis) -> str:
    if len(analysis.seeds) > 1:
        return (
            f"Losses are means over {len(analysis.seeds)} seeds; ± is the standard deviation between seeds, "
            "not an error of the mean."
        )
    return "Only one seed was run: how much of any difference is chance is unknown."


def _missing(analysis: Analysis) -> list[str]:
    if not analysis.num_missing:
        return []
    verb = "has" if analysis.num_missing == 1 else "have"
    return [
        f"{wording.count(analysis.num_missing, 'cell')} {verb} no result yet: these numbers are preliminary."
    ]
