"""The sentences: right numbers for every shape of run, and no claim that the record does not bear out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import SHAPES, alert, crash, end, healthy, start, step, values, write

from warmfree.report.runs import Run, load_run, run_summary
from warmfree.report.runs.findings import WINDOW, read_loss, read_rotation, read_stability, smoothed


def summary(folder, lines):
    return " ".join(run_summary(load_run(write(folder, lines))))


def run_of(losses):
    losses = np.array(losses, float)
    count = len(losses)
    return Run("r", steps=np.arange(count), losses=losses, has_loss=np.ones(count, bool), lrs=np.ones(count))


EXPECTED = {
    "healthy": ["The loss went from 5.6", "never rose markedly", "No alert was raised", "stayed below the stability",
                "Up to step 29", "times as far as predicted for equilibrium", "Monitoring took 1.3 %"],
    "crash": ["The run diverged: the loss went from 5.6", "to NaN over 300 steps",
              "The first of 3 alerts, a warning, came at step 140: attention entropy of blocks.3.attention, head 1 "
              "was 0.09 (the alert's threshold is 0.1), and cleared at step 150.",
              "steps before the loss moved", "exceeded the stability threshold in"],
    "resumed": ["resumed at steps 40 and 45", "The record has no end", "threshold was not measured"],
    "spiky": ["2 spikes of the loss came back down (at steps 100 and 200)", "never rose markedly"],
    "broken": ["The first loss that is not finite came at step 5", "1 step after the loss had moved"],
    "start only": ["Nothing was recorded yet: no loss, no measurement and no alert."],
    "losses only": ["The loss went from 3.000 to 2.510 over 50 steps", "No alert", "not measured"],
    "no loss": ["No loss was recorded, so whether the run trained is not known"],
    "one step": ["Only one loss was recorded, 2.000: too little"],
    "no start": ["The loss went from 2.000 to 1.500 over 2 steps"],
}  # fmt: skip


@pytest.mark.parametrize("shape", EXPECTED)
def test_every_shape_is_told_right(shape, tmp_path):
    said = summary(tmp_path, SHAPES[shape]())
    for part in EXPECTED[shape]:
        assert part in said


@pytest.mark.parametrize("shape", SHAPES)
def test_sentences_are_sentences(shape, tmp_path):
    sentences = run_summary(load_run(write(tmp_path, SHAPES[shape]())))
    assert sentences
    assert all(sentence.endswith(".") and "None" not in sentence for sentence in sentences)


def test_the_lead_is_counted_from_the_alert_to_the_move(tmp_path):
    run = load_run(write(tmp_path, crash()))
    moved = read_loss(run).moved
    assert 160 < moved < 175, "0.12 a step from step 160 on, a median over 7 steps"
    assert f"That was {moved - 140} steps before the loss moved." in " ".join(run_summary(run))


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (5, "5 steps before the loss moved"),
        (10, "the very step at which the loss moved"),
        (13, "3 steps after the loss had"),
    ],
)
def test_before_at_and_after_the_move(at, said, tmp_path):
    lines = [
        start(),
        *(step(number, 1.0 if number < 10 else math.nan) for number in range(20)),
        alert(at, "a", 0, 0.1),
    ]
    assert said in summary(tmp_path, lines)


def test_an_alert_without_a_move_or_a_loss_claims_nothing(tmp_path):
    lines = [start(), step(0, 2.0), step(1, 1.9), alert(1, "a", 0, 0.1)]
    assert "The loss did not move in the steps recorded." in summary(tmp_path / "a", lines)
    assert "whether it mattered cannot be said" in summary(tmp_path / "b", [start(), alert(1, "a", 0, 0.1)])


def test_an_alert_on_the_loss_itself_does_not_hide_the_first_other_one(tmp_path):
    lines = [
        start(),
        step(0, 2.0),
        step(1, 1.9),
        alert(0, "", None, 9.0, quantity="loss"),
        alert(1, "a", 2, 0.1),
    ]
    said = summary(tmp_path, lines)
    assert "came at step 0: the training loss was 9" in said
    assert (
        "The first on anything but the loss, a warning, came at step 1: attention entropy of a, head 2"
        in said
    )


def test_of_alerts_at_one_step_a_critical_one_is_named(tmp_path):
    lines = [start(), step(0, 2.0), alert(0, "a", None, 1.0), alert(0, "b", None, 1.0, severity="critical")]
    assert "The first of 2 alerts, a critical alert, came at step 0, with 1 other at that step" in summary(
        tmp_path, lines
    )


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_smoothing_is_a_trailing_median(losses):
    smooth = smoothed(np.array(losses))
    for at, value in enumerate(smooth):
        assert value == np.median(losses[max(at - WINDOW + 1, 0) : at + 1])


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=80))
def test_a_falling_loss_never_moves(losses):
    found = read_loss(run_of(sorted(losses, reverse=True)))
    assert found.moved is None
    assert found.outcome in ("down", "flat")
    assert found.spikes == ()


@given(st.integers(1, 60), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_loss_that_is_not_finite_moves_at_once(at, broken):
    losses = [3.0 - 0.01 * number for number in range(80)]
    losses[at] = broken
    found = read_loss(run_of(losses))
    assert (found.moved, found.moved_how) == (at, "not finite")


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_does_not_move_a_loss(seed):
    noise = np.random.default_rng(seed).standard_normal(20_000)
    found = read_loss(run_of(3 + 5 * np.exp(-np.arange(20_000) / 1000) + 0.3 * noise))
    assert found.moved is None
    assert found.outcome == "down"
    assert len(found.spikes) < 10


def test_outcomes():
    down = [4 * math.exp(-number / 20) + 1 for number in range(100)]
    assert read_loss(run_of(down)).outcome == "down"
    assert read_loss(run_of([*down, *[2.5] * 20])).outcome == "high"
    assert read_loss(run_of([*down, *[6.0] * 20])).outcome == "diverged"
    assert read_loss(run_of([*down, math.nan])).outcome == "diverged"
    assert read_loss(run_of([2.0] * 30)).outcome == "flat"
    assert read_loss(run_of([math.nan] * 5)).best is None


def test_stability_counts_what_is_above_one(tmp_path):
    measured = [0.5, 1.5, math.nan, 0.9, 2.0, 1.0]
    lines = [start(), *(values(10 * at, {"instability": {"": value}}) for at, value in enumerate(measured))]
    found = read_stability(load_run(write(tmp_path, lines)))
    assert (found.count, found.above, found.first_above, found.highest, found.highest_step) == (
        5,
        2,
        10,
        2.0,
        40,
    )


def test_rotation_compares_early_with_late(tmp_path):
    lines = [start(), *(step(at, 1.0) for at in range(100)), end(100)]
    lines += [
        values(at, {"angle_ratio": {"a": 8.0 if at < 10 else 1.0, "b": 4.0 if at < 10 else 1.0}})
        for at in range(100)
    ]
    found = read_rotation(load_run(write(tmp_path, lines)))
    assert (found.early, found.early_end, found.late) == (6.0, 9, 1.0)
    assert (found.largest, found.largest_row.label, found.largest_step) == (8.0, "a", 0)


def test_rotation_that_was_not_measured_early_is_not_claimed(tmp_path):
    lines = [start(), *(step(at, 1.0) for at in range(100)), values(50, {"angle_ratio": {"a": 1.0}})]
    assert read_rotation(load_run(write(tmp_path, lines))) is None
    assert "equilibrium" not in summary(tmp_path / "again", lines)


def test_an_abandoned_tail_is_named(tmp_path):
    lines = [*healthy(50)[:-1], start(4, 20), step(20, 2.0)]
    assert "From step 21 on, the record is of an attempt that was abandoned" in summary(tmp_path, lines)
