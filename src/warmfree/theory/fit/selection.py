"""Which of the three envelopes the points ask for: the simplest that they do not reject."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.fit.envelope import Envelopes, fit_floor, fit_power, fit_sum
from warmfree.theory.fit.resample import interval

__all__ = ["MIN_GAIN", "ModelFits", "ModelName", "chosen_model", "fit_models", "gain"]

Floats = NDArray[np.float64]
ModelName = Literal["floor", "power", "sum"]

MIN_GAIN = 0.02  # share of the loss that a constant more has to save: less is fitted to noise, or to rounding

_EXACT = 1e-9  # mean pinball loss in logarithms at which an envelope goes through all points
_FLAT = 1e-6  # spread in logarithms of what is constant but for rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFits:
    """Floor, power and sum under B weightings, and how they do on the points as they are.

    Attributes:
        envelopes: of shape (B,).
        rises: by which factor each rises from the smallest to the largest gap, (B,).
        losses: the mean pinball loss of each of them on the points of the run, (B,). What was fitted to one resample is
            not made for the points, so that a needless constant costs what it costs on another run.
    """

    envelopes: dict[ModelName, Envelopes]
    rises: dict[ModelName, Floats]
    losses: dict[ModelName, Floats]


def fit_models(
    log_gaps: Floats,
    logs: Floats,
    weights: Floats,
    *,
    base: Floats,
    quantile: float,
    refinements: int,
    reach: int = 3,
    near: ModelFits | None = None,
) -> ModelFits:
    """Fit the three models.

    Args:
        log_gaps: logarithms of the gaps, (n,).
        logs: logarithms of the curvatures, (n,).
        weights: (B, n).
        base: weights of the points as they are, (n,).
        quantile: in (0, 1).
        refinements: of the search.
        reach: of the search.
        near: fits to look near at, too.
    """
    floor = fit_floor(logs, weights, quantile=quantile)
    found: dict[ModelName, Envelopes] = {"floor": floor, "power": floor, "sum": floor}
    if np.ptp(log_gaps) > _FLAT and np.ptp(logs) > _FLAT:
        near_models = near.envelopes if near is not None else {}
        found["power"] = fit_power(
            log_gaps,
            logs,
            weights,
            quantile=quantile,
            refinements=refinements,
            reach=reach,
            near=near_models.get("power"),
        )
        found["sum"] = fit_sum(
            log_gaps,
            logs,
            weights,
            quantile=quantile,
            refinements=refinements,
            reach=reach,
            near=near_models.get("sum"),
        )
    losses = {
        name: envelope.losses_on(log_gaps, logs, base, quantile=quantile) for name, envelope in found.items()
    }
    ends = float(log_gaps.min()), float(log_gaps.max())
    rises = {name: np.exp(envelope.rise(*ends)) for name, envelope in found.items()}
    return ModelFits(envelopes=found, rises=rises, losses=losses)


def gain(fits: ModelFits, model: ModelName, over: ModelName) -> Floats:
    """Return the share of the loss on the points that a model saves over another, (B,); 0 where there is none to save.

    For the fit of the points themselves over the floor it is the measure R1 of Koenker & Machado 1999.
    """
    loss, before = fits.losses[model], fits.losses[over]
    exact = before <= _EXACT
    saved: Floats = np.where(exact, 0.0, 1.0 - loss / np.where(exact, 1.0, before))
    return saved


def chosen_model(point: ModelFits, resamples: ModelFits, *, confidence: float) -> ModelName:
    """Return the simplest model that no larger one is better than.

    Better: it saves at least `MIN_GAIN` of the loss, and its fits to the resamples also save some on the points, by an
    interval of the confidence that is above 0.

    Args:
        point: fits of the points as they are, B = 1.
        resamples: fits of their resamples.
        confidence: of the interval.
    """

    def better(model: ModelName, over: ModelName) -> bool:
        if float(gain(point, model, over)[0]) < MIN_GAIN:
            return False
        return interval(gain(resamples, model, over), confidence=confidence)[0] > 0.0

    steeper = better("power", "floor")
    if not steeper and not better("sum", "floor"):
        return "floor"
    return "sum" if not steeper or better("sum", "power") else "power"
