"""The figures over steps: loss, update size, implied warmup.

Sentences are computed or hold in general; none states a finding that the numbers might not bear out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmfree.report import axes as plot
from warmfree.report import curves, wording
from warmfree.report.analysis import Analysis
from warmfree.report.curves import Track
from warmfree.report.figure import Figure, Styles
from warmfree.report.results import Method
from warmfree.report.svg import Panel, draw_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_SHOWN_FROM = 0.1


def draw_loss_curves(analysis: Analysis, styles: Styles) -> Figure | None:
    """Training loss over steps, whole and early, every method at its own best learning rate."""
    tracks = curves.track_all(analysis, curves.loss)
    if not tracks:
        return None
    last = max(track.step[-1] for track in tracks)
    panels = (
        draw_panel(
            "curve-whole",
            f"Training loss, after the first {100 * _SHOWN_FROM:.0f} % of steps",
            _describe(tracks, "Training loss"),
            lambda axes: _draw_whole_run(axes, tracks, styles, last),
        ),
        draw_panel(
            "curve-early",
            "Training loss from the first step (log axis)",
            _describe(tracks, "Training loss"),
            lambda axes: _draw_over_log_steps(axes, tracks, styles, last, log_values=False),
        ),
    )
    return Figure(
        ident="curves",
        title="Loss curves at each method's best learning rate",
        methods=_methods(tracks),
        panels=panels,
        sentences=(
            "Trouble that warmup would have prevented starts early: on the log axis, look for a loss that jumps or "
            "stalls in the first steps; on the other, for whether it ever catches up.",
            f"Training loss is that of single batches, averaged over short windows{_over_seeds(analysis)}.",
            *_absent(analysis, tracks),
        ),
    )


def draw_update_sizes(analysis: Analysis, styles: Styles) -> Figure | None:
    """Update RMS and angle over steps."""
    panels = []
    shown: list[Track] = []
    for ident, quantity, title in (
        ("size-rms", curves.update_rms, "Update RMS, in units of the learning rate"),
        ("size-angle", curves.angle, "Rotation of the weights, radians per step"),
    ):
        tracks = curves.track_all(analysis, quantity)
        if tracks:
            panels.append(_over_log_steps(ident, title, tracks, styles))
            shown += tracks
    if not panels:
        return None
    return Figure(
        ident="sizes",
        title="How far every step moves the weights",
        methods=_methods(shown),
        panels=tuple(panels),
        sentences=(
            "Update RMS is the root mean square of the weight change divided by the learning rate: what the "
            "optimizer does to the size of a step beyond the schedule. The angle is how far a step turns the "
            "weights, averaged over the matrices; it includes the learning rate and its schedule.",
            "Look at the first tens of steps: a turn much larger than later ones is what warmup damps, and what a "
            "method without warmup has to keep small by itself. Where a cooldown ends, lines may run out of the "
            "frame.",
            *_absent(analysis, shown),
        ),
    )


def draw_implied_warmup(analysis: Analysis, styles: Styles) -> Figure | None:
    """The factor that size controls applied, beside the explicit warmup schedule."""
    factors = curves.track_all(analysis, curves.factor)
    if not factors:
        return None
    explicit = curves.explicit_warmup(analysis)
    effective = curves.track_all(analysis, curves.effective_schedule) or factors
    beside = [explicit] if explicit else []
    panels = (
        _fractions(
            "implied-factor",
            "Factor applied to the update (log steps)",
            [*factors, *map(curves.until_peak, beside)],
            styles,
        ),
        _fractions(
            "implied-effective",
            "Share of the peak learning rate in use",
            [*effective, *beside],
            styles,
            log=False,
        ),
    )
    compared = (
        f" Beside them stands the schedule of {explicit.method.label}, in the first panel up to its peak."
        if explicit
        else ""
    )
    return Figure(
        ident="implied",
        title="The warmup that size control implies",
        methods=_methods([*factors, *beside]),
        panels=panels,
        sentences=(
            "The factor, in (0, 1], is by what an optimizer shrank its own update: below 1 it acts like a warmup, "
            "but one that follows what it measures instead of the step count. The share is that factor times the "
            f"schedule (lr / peak lr).{compared}",
        ),
        remarks=tuple(_read_warmup(curves.implied_warmup(track)) for track in factors),
    )


def _draw_whole_run(axes: Axes, tracks: list[Track], styles: Styles, last: float) -> None:
    thinned = [curves.thin(track, log_steps=False) for track in tracks]
    for track in thinned:
        plot.draw_track(axes, track, styles[track.method.name])
    settled = [
        value
        for track in thinned
        for step, value in zip(track.step, track.value, strict=True)
        if step >= _SHOWN_FROM * last
    ]
    low, high = min(settled, default=0.0), max(settled, default=1.0)
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    plot.use_linear_steps(axes, last)


def _draw_over_log_steps(
    axes: Axes, tracks: list[Track], styles: Styles, last: float, *, log_values: bool
) -> None:
    thinned = [curves.thin(track, log_steps=True) for track in tracks]
    if log_values:
        plot.use_log_values(axes, thinned)
    for track in thinned:
        plot.draw_track(axes, track, styles[track.method.name])
    plot.use_log_steps(axes, last)


def _over_log_steps(ident: str, title: str, tracks: list[Track], styles: Styles) -> Panel:
    last = max(track.step[-1] for track in tracks)
    return draw_panel(
        ident,
        f"{title} (log axes)",
        _describe(tracks, title),
        lambda axes: _draw_over_log_steps(axes, tracks, styles, last, log_values=True),
    )


def _fractions(ident: str, title: str, tracks: list[Track], styles: Styles, *, log: bool = True) -> Panel:
    last = max(track.step[-1] for track in tracks)

    def draw(axes: Axes) -> None:
        for track in tracks:
            plot.draw_track(axes, curves.thin(track, log_steps=log), styles[track.method.name])
        axes.set_ylim(0, 1.06)
        if log:
            plot.use_log_steps(axes, last)
        else:
            plot.use_linear_steps(axes, last)

    return draw_panel(ident, title, _describe(tracks, title), draw)


def _describe(tracks: list[Track], quantity: str) -> str:
    parts = (
        f"{track.method.label} goes from {track.value[0]:.3g} at step {track.step[0]:.0f} "
        f"to {track.value[-1]:.3g} at step {track.step[-1]:.0f}"
        for track in tracks
    )
    return f"{quantity} over steps. {'; '.join(parts)}."


def _read_warmup(warmup: curves.ImpliedWarmup) -> str:
    if warmup.smallest >= curves.SETTLED:
        return f"{warmup.method.label}: never below {warmup.smallest:.2f}, so next to no implied warmup."
    smallest = (
        f"{warmup.method.label}: smallest factor {warmup.smallest:.2g}, at step {warmup.smallest_step:,.0f}"
    )
    if warmup.settled_step is None:
        return f"{smallest}; still below {curves.SETTLED} at the last step."
    share = f"{100 * warmup.settled_step / warmup.last_step:.0f} % of the run"
    return f"{smallest}; at least {curves.SETTLED} from step {warmup.settled_step:,.0f} on ({share})."


def _methods(tracks: list[Track]) -> tuple[Method, ...]:
    return tuple({track.method.name: track.method for track in tracks}.values())


def _over_seeds(analysis: Analysis) -> str:
    return f" and over {len(analysis.seeds)} seeds" if len(analysis.seeds) > 1 else ""


def _absent(analysis: Analysis, tracks: list[Track]) -> list[str]:
    shown = {track.method.name for track in tracks}
    labels = [summary.method.label for summary in analysis.methods if summary.method.name not in shown]
    return [f"Not drawn, because no finished run measured it: {wording.listing(labels)}."] if labels else []
