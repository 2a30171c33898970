import re

import numpy as np
import pytest

from warmfree.theory.fit import fit_smoothness
from warmfree.theory.fit.points import MIN_POINTS, even_weights

LOSSES = np.geomspace(10.0, 0.1, 30)
CURVATURES = 2.0 + LOSSES


def fit(losses=LOSSES, curvatures=CURVATURES, **arguments):
    return fit_smoothness(losses, curvatures, **{"resamples": 20, **arguments})


def put(values: np.ndarray, where: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[where] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"losses": put(LOSSES, 3, np.nan)}, "1 of 30 points are not finite, the first at step 3: loss nan"),
        (
            {"curvatures": put(CURVATURES, 4, np.inf)},
            "at step 4: loss 5.29832, curvature inf; leave them out with",
        ),
        (
            {"curvatures": put(CURVATURES, 5, -0.3)},
            "1 of 30 curvatures are not > 0, the first -0.3 at step 5",
        ),
        ({"curvatures": put(CURVATURES, 5, 0.0)}, "curvatures are not > 0, the first 0 at step 5"),
        ({"f_star": 0.2}, "5 losses are not above f_star=0.2: the smallest is 0.1 at step 29, and f_star"),
        ({"f_star": 0.1}, "1 losses are not above f_star=0.1"),
        ({"f_star": np.nan}, "f_star must be finite or 'estimate', got nan"),
        ({"f_star": "guess"}, "f_star must be a number or 'estimate', got 'guess'"),
        ({"losses": LOSSES[:11], "curvatures": CURVATURES[:11]}, "a fit needs at least 12 points, got 11;"),
        ({"curvatures": CURVATURES[:20]}, "expected as many curvatures as losses, got 20 and 30"),
        ({"losses": LOSSES[:, None]}, "losses must have shape (points,), got (30, 1)"),
        ({"losses": ["a"] * 30}, "losses must be numbers, one for each point"),
        ({"steps": [0] * 30}, "steps must be distinct, got 0 more than once"),
        ({"steps": range(29)}, "steps must be one for each of the 30 points, got shape (29,)"),
        ({"steps": np.linspace(0.0, 1.0, 30)}, "steps must be integers, got float64"),
        ({"quantile": 1.0}, "quantile must be in [0.5, 1), got 1.0"),
        ({"quantile": 0.4}, "quantile must be in [0.5, 1), got 0.4"),
        ({"resamples": 19}, "resamples must be an int of at least 20, got 19"),
        ({"resamples": 50.0}, "resamples must be an int of at least 20, got 50.0"),
        ({"confidence": 1.0}, "confidence must be in (0, 1), got 1.0"),
        (
            {"losses": LOSSES * 0.0, "f_star": "estimate"},
            "f_star cannot be estimated from losses that are all 0",
        ),
    ],
)
def test_what_is_no_run_is_refused_with_what_to_do(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        fit(**arguments)


def test_invalid_points_can_be_left_out_and_are_counted() -> None:
    losses, curvatures = put(LOSSES, 3, np.nan), put(put(CURVATURES, 4, -1.0), 7, np.inf)
    found = fit(losses, curvatures, drop_invalid=True)
    valid = np.isfinite(losses) & np.isfinite(curvatures) & (curvatures > 0.0)
    assert found.dropped == 3
    assert "3 points were left out" in found.reasons[-1]
    assert found.steps.tolist() == np.flatnonzero(valid).tolist()
    alone = fit(LOSSES[valid], CURVATURES[valid], steps=np.flatnonzero(valid))
    assert found.smoothness == alone.smoothness
    assert found.intervals == alone.intervals
    few = np.full(30, np.nan)
    few[:11] = CURVATURES[:11]
    with pytest.raises(ValueError, match="at least 12 points, got 11 after 19 were left out"):
        fit(LOSSES, few, drop_invalid=True)


def test_inputs_are_left_as_they_are() -> None:
    losses, curvatures = LOSSES.copy(), CURVATURES.copy()
    fit(losses, curvatures)
    assert (losses == LOSSES).all()
    assert (curvatures == CURVATURES).all()


def test_weights_are_even_over_the_logarithm_of_the_gap() -> None:
    """Twenty points in the upper half of the range weigh as much as the two hundred in the lower."""
    gaps = np.concatenate([np.geomspace(1.01, 10.0, 50), np.geomspace(0.1, 0.99, 200)])
    weights = even_weights(gaps)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[:50].sum() == pytest.approx(0.5, abs=0.02)
    alone = even_weights(np.concatenate([[10.0], np.geomspace(0.1, 1.0, 200)]))
    assert alone[0] == pytest.approx(
        0.2 / (5 + 0.2), rel=0.01
    )  # one point: a fifth of a bin, and five are full
    assert even_weights(np.ones(20)) == pytest.approx(np.full(20, 0.05))


def test_the_least_number_of_points_is_enough() -> None:
    assert fit(LOSSES[:MIN_POINTS], CURVATURES[:MIN_POINTS]).gaps.size == MIN_POINTS
