"""The numbers, against ones computed by hand."""

import math

import pytest
from synthetic_results import make_exact, make_results

from warmfree.report.analysis import analyze

THREE = {
    "adamw": {1e-3: [2.10, 2.20], 2e-3: [2.30, 2.50]},
    "adamw-warmup": {1e-3: [2.06, 2.08], 2e-3: [1.98, 2.02], 4e-3: [2.05, 2.15]},
    "adamw2": {1e-3: [2.20, 2.20], 2e-3: [2.04, 2.06], 4e-3: [1.50, None]},
    "lionar": {3e-2: [2.20, 2.20], 1e-1: [2.02, 2.02], 3e-1: [2.30, 2.30]},
}


def test_best_learning_rate_mean_and_spread():
    warm = analyze(make_exact(THREE)).find("adamw-warmup")
    assert warm is not None
    assert warm.best is not None
    assert warm.best.lr == 2e-3
    assert warm.best.mean == pytest.approx(2.0)
    # Two values 0.04 apart: standard deviation 0.04 / sqrt(2), with n - 1.
    assert warm.best.spread == pytest.approx(0.04 / math.sqrt(2))


def test_gap_is_relative_to_the_best_method():
    analysis = analyze(make_exact(THREE))
    assert analysis.best is analysis.find("adamw-warmup")
    gaps = {summary.method.name: summary.gap for summary in analysis.methods}
    assert gaps == pytest.approx({"adamw": 0.075, "adamw-warmup": 0.0, "adamw2": 0.025, "lionar": 0.01})
    assert [summary.method.name for summary in analysis.ranked] == [
        "adamw-warmup",
        "lionar",
        "adamw2",
        "adamw",
    ]


def test_one_diverged_seed_rules_a_learning_rate_out():
    adamw2 = analyze(make_exact(THREE)).find("adamw2")
    assert adamw2 is not None
    assert adamw2.best is not None
    assert adamw2.best.lr == 2e-3, "4e-3 has the smallest single loss, but a seed diverged there"
    assert adamw2.points[-1].mean == math.inf
    assert (adamw2.num_diverged, adamw2.num_cells) == (1, 6)


def test_removal_and_warmup_free_contrasts():
    analysis = analyze(make_exact(THREE))
    assert analysis.removal is not None
    assert analysis.removal.relative == pytest.approx(2.15 / 2.0 - 1)
    assert analysis.removal.spread == pytest.approx(math.hypot(0.10, 0.04) / math.sqrt(2) / 2.0)
    assert analysis.removal.resolved is True
    assert analysis.best_warmup_free is analysis.find("lionar")
    assert analysis.warmup_free is not None
    assert analysis.warmup_free.relative == pytest.approx(0.01)
    assert analysis.warmup_free.resolved is False, "0.010 is within 0.04 / sqrt(2) / 2 = 0.014"


def test_robust_range_is_unbroken_and_within_five_percent():
    # 5 % above 2.0 is 2.1: 2.0999 is in, 2.1001 is out, and the good 32e-3 beyond the gap does not count.
    losses = {1e-3: [2.0999], 2e-3: [2.0], 4e-3: [2.05], 8e-3: [2.1001], 16e-3: [2.01]}
    (summary,) = analyze(make_exact({"adamw": losses})).methods
    assert summary.robust is not None
    assert (summary.robust.low, summary.robust.high) == (1e-3, 4e-3)
    assert summary.robust.width == pytest.approx(4)
    assert (summary.robust.open_below, summary.robust.open_above) == (True, False)
    assert summary.robust.is_bound


def test_robust_range_ends_at_a_diverged_learning_rate():
    (summary,) = analyze(make_exact({"adamw": {1e-3: [3.0], 2e-3: [2.0], 4e-3: [None]}})).methods
    assert summary.robust is not None
    assert (summary.robust.low, summary.robust.high, summary.robust.is_bound) == (2e-3, 2e-3, False)


@pytest.mark.parametrize(
    ("losses", "edge"),
    [
        ({1e-3: [2.0], 2e-3: [2.1], 4e-3: [2.2]}, "lowest"),
        ({1e-3: [2.2], 2e-3: [2.1], 4e-3: [2.0]}, "highest"),
        ({1e-3: [2.2], 2e-3: [2.0], 4e-3: [2.1]}, None),
        ({1e-3: [2.2], 2e-3: [2.0], 4e-3: [None]}, None),
        ({1e-3: [2.2]}, "only"),
        ({1e-3: [None], 2e-3: [None]}, None),
    ],
)
def test_edge_of_the_grid(losses, edge):
    (summary,) = analyze(make_exact({"adamw": losses})).methods
    assert summary.edge == edge


def test_learning_rates_are_sorted_whatever_the_order_of_the_cells():
    results = make_exact(THREE)
    results["cells"].reverse()
    assert analyze(results).methods == analyze(make_exact(THREE)).methods


def test_one_seed_has_no_spread():
    analysis = analyze(make_exact({"adamw": {1e-3: [2.1]}, "adamw-warmup": {1e-3: [2.0]}}))
    assert analysis.removal is not None
    assert (analysis.removal.spread, analysis.removal.resolved) == (None, None)


def test_missing_cells_are_counted_and_the_rest_is_used():
    results = make_exact(THREE)
    # Both seeds of AdamW at 2e-3 and one of its seeds at 1e-3.
    del results["cells"][1:4]
    analysis = analyze(results)
    assert analysis.num_missing == 3
    adamw = analysis.find("adamw")
    assert adamw is not None
    assert adamw.best is not None
    assert (adamw.best.mean, adamw.best.spread, adamw.edge) == (2.10, None, "only")


def test_everything_diverged():
    analysis = analyze(make_exact({"adamw": {1e-3: [None]}, "adamw-warmup": {1e-3: [None]}}))
    assert (analysis.best, analysis.removal, analysis.warmup_free) == (None, None, None)
    assert all(summary.gap is None and summary.robust is None for summary in analysis.methods)


def test_no_cells_and_absent_reference():
    empty = make_results()
    empty["cells"] = []
    assert analyze(empty).best is None
    alone = analyze(make_exact({"lionar": {1e-1: [2.0]}}))
    assert alone.removal is None
    assert alone.warmup_free is None
    assert alone.best_warmup_free is alone.best
