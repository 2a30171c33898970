"""What `parse` lets through, and what it says about the rest."""

import math

import pytest
from synthetic_results import make_exact, make_results

from warmfree.report.results import parse


def one_cell():
    return make_exact({"adamw": {1e-3: [2.0]}})


def test_reads_every_field_of_a_cell():
    results = make_exact({"adamw": {1e-3: [2.0, None]}})
    results["cells"][1]["divergence"] = {"step": 7, "reason": "not finite", "where": "head.weight"}
    results["cells"][1]["skipped_steps"] = 3
    finished, diverged = parse(results).cells
    assert (finished.method, finished.lr, finished.seed, finished.finished, finished.loss) == (
        "adamw",
        1e-3,
        0,
        True,
        2.0,
    )
    assert finished.divergence is None
    assert (diverged.finished, diverged.loss, diverged.skipped_steps) == (False, None, 3)
    assert diverged.divergence is not None
    assert (diverged.divergence.step, diverged.divergence.where) == (7, "head.weight")


def test_unmeasured_values_become_nan_whether_null_or_a_null_column_or_not_finite():
    results = one_cell()
    curve = results["cells"][0]["curve"]
    curve["factor"] = None
    curve["angle"] = [None, math.inf, *curve["angle"][2:]]
    parsed = parse(results).cells[0].curve
    assert len(parsed.factor) == len(parsed.step)
    assert all(map(math.isnan, parsed.factor))
    assert [math.isnan(value) for value in parsed.angle[:3]] == [True, True, False]


@pytest.mark.parametrize(
    "key", ["format", "command", "created", "versions", "machine", "task", "methods", "cells"]
)
def test_missing_key_is_named_with_what_to_do(key):
    results = one_cell()
    del results[key]
    with pytest.raises(ValueError, match=f"results has no '{key}': pass the results.json"):
        parse(results)


@pytest.mark.parametrize("key", ["method", "lr", "seed", "status", "final_val_loss", "curve", "divergence"])
def test_missing_key_of_a_cell_is_named_with_its_place(key):
    results = make_results(seeds=(0,))
    del results["cells"][4][key]
    with pytest.raises(ValueError, match=rf"cells\[4\] has no '{key}'"):
        parse(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is 2, expected 1"),
        ({"format": "1"}, "results.format is str, expected int"),
        ({"methods": []}, "methods is empty"),
        ({"cells": {}}, "results.cells is dict, expected list"),
    ],
)
def test_wrong_top_level_value(change, message):
    with pytest.raises(ValueError, match=message):
        parse(one_cell() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sgd"}, "a cell names the method 'sgd', which is not listed"),
        ({"status": "done"}, "status is 'done', expected 'finished' or 'diverged'"),
        ({"final_val_loss": None}, "final_val_loss is None, expected a finite number > 0"),
        ({"final_val_loss": math.nan}, "final_val_loss is nan, expected a finite number > 0"),
        ({"final_val_loss": True}, "final_val_loss is True, expected a finite number > 0"),
        ({"lr": 0.0}, "lr is 0.0, expected a finite number > 0"),
        ({"seconds": "8"}, "seconds is '8', expected a finite number"),
        ({"curve": [1]}, "curve is list, expected Mapping"),
    ],
)
def test_wrong_value_in_a_cell(change, message):
    results = one_cell()
    results["cells"][0] |= change
    with pytest.raises(ValueError, match=message):
        parse(results)


def test_curve_of_unequal_lengths():
    results = one_cell()
    results["cells"][0]["curve"]["loss"].pop()
    with pytest.raises(
        ValueError, match=r"cells\[0\].curve.loss has 299 values, expected one for each of 300"
    ):
        parse(results)


def test_the_same_cell_or_method_twice():
    results = one_cell()
    results["cells"] *= 2
    with pytest.raises(ValueError, match=r"two cells for 'adamw', lr 0.001, seed 0"):
        parse(results)
    results = one_cell()
    results["methods"] *= 2
    with pytest.raises(ValueError, match="two methods share a name"):
        parse(results)


def test_something_else_altogether():
    with pytest.raises(ValueError, match="expected a mapping, got list"):
        parse([])  # type: ignore[arg-type]
