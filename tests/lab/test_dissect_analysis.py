"""The analysis on records with known answers: who moved first is planted."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmfree.lab.cells import Cell
from warmfree.lab.dissect.dissection import Dissection, dissect_histories
from warmfree.lab.dissect.envelope import Range, envelope_of, first_exits, ranges_of, widened
from warmfree.lab.dissect.history import History
from warmfree.lab.dissect.losses import LossEvents, find_loss_events, smoothed
from warmfree.lab.dissect.movers import Mover
from warmfree.lab.dissect.results import as_json
from warmfree.lab.dissect.verdicts import judge
from warmfree.lab.dissect.wording import markdown, notes, sentences
from warmfree.report.runs.run import Grid, Quantity, Row

STEPS = 100
CRASH = 60

Series = Mapping[Row, Sequence[float]]


def make_grid(name: str, series: Series, *, every: int = 1, is_log: bool = True) -> Grid:
    steps = np.arange(0, STEPS, every)
    values = np.array([np.asarray(numbers, float)[steps] for numbers in series.values()])
    return Grid(
        Quantity(name, f"the {name}", is_log=is_log), tuple(series), steps, values, np.ones_like(values, bool)
    )


def curve(of: Callable[[int], float]) -> list[float]:
    return [of(step) for step in range(STEPS)]


def healthy_run(method: str, seed: int, extra: Sequence[Grid] = ()) -> History:
    """Loss 3 to 1; the gradient norm of two layers and the entropy of two heads stay where they are."""
    noise = np.random.default_rng((seed, len(method))).uniform(0.95, 1.05, (5, STEPS))
    flat = {Row("a"): noise[0], Row("b"): 10 * noise[1]}
    heads = {Row("attention", 0): 0.8 * noise[2], Row("attention", 1): 0.6 * noise[3]}
    grids = [make_grid("grad_norm", flat), make_grid("attention_entropy_ratio", heads, is_log=False), *extra]
    losses = {step: (3.0 - 2 * step / STEPS) * noise[4, step] for step in range(STEPS)}
    return History(
        Cell(method, 1e-3, seed), final_val_loss=1.0, losses=losses, grids={g.quantity.name: g for g in grids}
    )


def failing_run(seed: int, extra: Sequence[Grid] = ()) -> History:
    """Loss doubles at step 60; head 1 loses its entropy at step 40, the gradient of b grows at step 52."""
    base = healthy_run("adamw", seed)
    flat = {Row("a"): curve(lambda step: 1.0), Row("b"): curve(lambda step: 100.0 if step >= 52 else 10.0)}
    heads = {
        Row("attention", 0): curve(lambda step: 0.8),
        Row("attention", 1): curve(lambda step: 0.6 if step < 40 else 0.1),
    }
    grids = [
        make_grid("grad_norm", flat),
        make_grid("attention_entropy_ratio", heads, every=4, is_log=False),
        *extra,
    ]
    losses = {step: loss * (2.0 if step >= CRASH else 1.0) for step, loss in base.losses.items()}
    return dataclasses.replace(
        base, final_val_loss=2.0, losses=losses, grids={g.quantity.name: g for g in grids}
    )


def runs(extra: Callable[[str, int], Sequence[Grid]] = lambda method, seed: ()) -> list[History]:
    healthy = [healthy_run(m, s, extra(m, s)) for m in ("adamw-warmup", "adamw2", "lionar") for s in range(3)]
    return [*(failing_run(seed, extra("adamw", seed)) for seed in range(3)), *healthy]


def mover(dissection: Dissection, name: str) -> Mover:
    return next(mover for mover in dissection.movers if mover.name == name)


def test_the_planted_first_mover_is_found_with_its_head_and_lead() -> None:
    dissection = dissect_histories(runs())
    assert dissection.problems == []
    assert len(dissection.of_outcome("healthy")) == 9
    for events in dissection.events.values():
        assert events.jump == CRASH
        # Noise may have it above all others a few steps earlier, when the mean sees the crash already.
        assert events.leaves is not None
        assert CRASH - 4 <= events.leaves <= CRASH
    first = mover(dissection, "attention_entropy_ratio")
    assert dissection.movers[0] is first
    assert first.kind == "symptom"
    for move in first.moves:
        assert (move.exit.row, move.exit.step, move.exit.previous) == (Row("attention", 1), 40, 36)
        assert move.lead_jump == 20
        assert move.lead == move.lead_leaves == 20 + dissection.events[move.run].leaves - CRASH  # type: ignore[operator]
        assert move.rows_before == 1
    gradient = mover(dissection, "grad_norm")
    assert [(m.exit.row.layer, m.exit.step, m.exit.previous) for m in gradient.moves] == [("b", 52, 51)] * 3
    for found in (first, gradient):
        assert found.false_alarm_rate == 0.0
        assert len(found.run_alarms) == len(found.method_alarms) == 9
    for firsts in dissection.firsts.values():
        assert firsts.symptom is not None
        assert firsts.symptom == firsts.trusted_symptom
        assert firsts.symptom.exit.quantity == "attention_entropy_ratio"
        assert firsts.by_construction is None
        assert firsts.symptoms_before == 2
    assert set(dissection.healthy_symptoms.values()) == {(0, 0)}


def test_what_moves_in_healthy_runs_too_is_ranked_last_and_its_rate_is_known() -> None:
    def nervous(method: str, seed: int) -> list[Grid]:
        # Every run has its own level, a factor of 3 apart: the two at the ends leave the range of the others.
        number = ["adamw", "adamw-warmup", "adamw2", "lionar"].index(method) * 3 + seed
        level = 3.0 ** (number - 3) if method != "adamw" else 1e9
        return [make_grid("output_norm", {Row("a"): curve(lambda step: level)})]

    dissection = dissect_histories(runs(nervous))
    found = mover(dissection, "output_norm")
    assert [move.exit.step for move in found.moves] == [0, 0, 0]
    assert all(move.exit.previous is None for move in found.moves)
    assert found.false_alarm_rate == pytest.approx(2 / 9)
    # Of the runs of a method, all leave the range of other methods at the ends, and none in the middle.
    assert sum(step is not None for step in found.method_alarms.values()) == 6
    assert not found.is_trusted
    assert dissection.movers[-1] is found
    for firsts in dissection.firsts.values():
        assert firsts.symptom is not None
        assert firsts.trusted_symptom is not None
        assert firsts.symptom.exit.quantity == "output_norm"
        assert firsts.trusted_symptom.exit.quantity == "attention_entropy_ratio"
    assert sorted(dissection.healthy_symptoms.values()) == [(0, 0)] * 7 + [(1, 1)] * 2
    assert any("first with few false alarms" in sentence for sentence in sentences(dissection))


def test_false_alarms_after_the_crash_are_counted_apart() -> None:
    def late(method: str, seed: int) -> list[Grid]:
        odd = (method, seed) == ("lionar", 2)
        return [make_grid("output_norm", {Row("a"): curve(lambda step: 9.0 if odd and step >= 80 else 1.0)})]

    dissection = dissect_histories(runs(late))
    found = mover(dissection, "output_norm")
    assert found.false_alarm_rate == pytest.approx(1 / 9)
    assert found.run_alarms["lionar-lr0.001-seed2"] == 80
    assert (found.alarms_before(CRASH), found.alarms_before(81)) == (0, 1)
    assert dissection.healthy_symptoms["lionar-lr0.001-seed2"] == (0, 1)


def test_update_size_is_a_cause_by_construction_and_never_the_first_symptom() -> None:
    def sizes(method: str, seed: int) -> list[Grid]:
        size = 1.0 if method == "adamw" else 0.1
        return [make_grid("update_rms", {Row("a"): curve(lambda step: size)})]

    dissection = dissect_histories(runs(sizes))
    assert mover(dissection, "update_rms").kind == "cause by construction"
    for firsts in dissection.firsts.values():
        assert firsts.by_construction is not None
        assert firsts.by_construction.exit.step == 0
        assert firsts.symptom is not None
        assert firsts.symptom.exit.quantity == "attention_entropy_ratio"
    text = markdown(dissection, runs(sizes), title="T", command="C", notes=notes(dense_steps=60, pace="P"))
    head, _, tail = text.partition("## Quantities that differ by construction")
    assert "| the update_rms |" in tail
    assert "| the update_rms |" not in head
    assert "| the attention_entropy_ratio | 3/3 |" in head


def test_nan_is_a_move_only_where_no_healthy_run_has_one() -> None:
    def nans(method: str, seed: int) -> list[Grid]:
        failing = method == "adamw"
        return [
            make_grid("snr", {Row("a"): curve(lambda step: math.nan if step < 5 or failing else 1.0)}),
            make_grid(
                "sharpness", {Row(""): curve(lambda step: math.inf if failing and step >= 30 else 1.0)}
            ),
        ]

    dissection = dissect_histories(runs(nans))
    assert mover(dissection, "snr").moves == ()
    assert [move.exit.step for move in mover(dissection, "sharpness").moves] == [30, 30, 30]
    # What JSON has no numbers for must not keep the results from being written.
    assert json.dumps(as_json(dissection, runs(nans)), default=str)


def test_output_that_is_not_finite_needs_no_healthy_range() -> None:
    bad = Grid(
        Quantity("nonfinite_output", "bad"),
        (Row("blocks.1"),),
        np.array([50]),
        np.array([[1.0]]),
        np.array([[True]]),
    )
    histories = [failing_run(0, [bad]), *runs()[1:]]
    found = mover(dissect_histories(histories), "nonfinite_output")
    assert [(move.exit.row.layer, move.exit.step) for move in found.moves] == [("blocks.1", 50)]
    assert found.false_alarm_rate == 0.0


def test_a_layer_or_quantity_that_no_healthy_run_has_is_not_judged() -> None:
    extra = [make_grid("factor", {Row("a"): curve(lambda step: 0.5)})]
    histories = [failing_run(0, extra), *runs()[1:]]
    found = mover(dissect_histories(histories), "factor")
    assert (found.failing_runs, found.healthy_runs, found.moves, found.run_alarms) == (0, 0, (), {})


def test_without_a_healthy_run_the_problem_is_named() -> None:
    histories = [
        dataclasses.replace(h, diverged="the loss is not finite", final_val_loss=None) for h in runs()
    ]
    dissection = dissect_histories(histories)
    assert dissection.movers == []
    assert "No run went well" in dissection.problems[0]
    assert sentences(dissection)[0].startswith("No run went well")
    assert sum("it is left out" in problem for problem in dissection.problems) == 9
    with pytest.raises(ValueError, match="no run went well"):
        find_loss_events({0: 1.0}, [])


def test_without_a_failing_run_the_problem_is_named() -> None:
    dissection = dissect_histories(runs()[3:])
    assert dissection.movers == []
    assert "No run of adamw failed" in dissection.problems[0]


def test_a_control_that_fails_is_said_and_its_seed_is_held_against_the_others() -> None:
    histories = runs()
    at = next(i for i, h in enumerate(histories) if h.name == "adamw-warmup-lr0.001-seed2")
    histories[at] = dataclasses.replace(histories[at], final_val_loss=1.5)
    verdicts = judge(histories)
    assert verdicts["adamw-warmup-lr0.001-seed2"].outcome == "failed"
    assert not verdicts["adamw-lr0.001-seed2"].own_control
    assert verdicts["adamw-lr0.001-seed2"].ratio == pytest.approx(2.0)
    assert verdicts["adamw-lr0.001-seed1"].own_control
    dissection = dissect_histories(histories)
    assert len(dissection.firsts) == 3
    assert any("adamw-warmup-lr0.001-seed2 failed" in problem for problem in dissection.problems)


@pytest.mark.parametrize(
    ("loss", "outcome"), [(1.0, "healthy"), (1.1, "healthy"), (1.12, "between"), (1.2, "failed")]
)
def test_runs_are_judged_by_the_control_of_their_seed(loss: float, outcome: str) -> None:
    control = History(Cell("adamw-warmup", 1.0, 0), final_val_loss=1.0)
    run = History(Cell("adamw", 1.0, 0), final_val_loss=loss)
    assert judge([control, run])[run.name].outcome == outcome
    alone = judge([run])[run.name]
    assert (alone.outcome, alone.reference) == ("between", None)
    gone = dataclasses.replace(run, diverged="why")
    assert judge([gone])[gone.name].outcome == "failed"


def test_missing_losses_are_no_event_and_bad_ones_are() -> None:
    healthy = [dict.fromkeys(range(STEPS), 1.0)]
    gaps = dict.fromkeys(range(0, STEPS, 7), 1.0)
    assert find_loss_events(gaps, healthy) == LossEvents(None, None)
    assert find_loss_events({}, healthy) == LossEvents(None, None)
    assert LossEvents(None, None).first is None
    # Blown up at step 30, where the record ends: it jumps, and it never comes back.
    blown = dict.fromkeys(range(30), 1.0) | {30: math.nan}
    assert find_loss_events(blown, healthy) == LossEvents(jump=30, leaves=30)
    # Steps that no healthy run has cannot be judged.
    assert find_loss_events(dict.fromkeys(range(STEPS), 9.0), [{0: 9.0}]) == LossEvents(None, None)


def test_a_spike_that_heals_jumps_and_does_not_leave() -> None:
    healthy = [dict.fromkeys(range(STEPS), 1.0)]
    spike = {step: 5.0 if step == 50 else 0.9 for step in range(STEPS)}
    assert find_loss_events(spike, healthy) == LossEvents(jump=50, leaves=None)
    # Above all others but within the factor: it leaves, and does not jump.
    above = {step: 1.05 if step >= 50 else 0.9 for step in range(STEPS)}
    events = find_loss_events(above, healthy)
    assert events.jump is None
    assert events.leaves == events.first == 52  # where 7 of the 9 steps are high: 2 * 0.9 + 7 * 1.05 > 9


def test_a_failed_run_whose_training_loss_stays_healthy_is_named() -> None:
    histories = runs()
    histories[0] = dataclasses.replace(histories[0], losses=histories[3].losses)
    dissection = dissect_histories(histories)
    name = histories[0].name
    assert any(f"The training loss of {name} never leaves" in problem for problem in dissection.problems)
    assert all(move.lead is None for found in dissection.movers for move in found.moves if move.run == name)
    assert dissection.firsts[name].symptom is None


def test_the_smoothed_loss_is_centred() -> None:
    losses = {step: float(step) for step in range(20)}
    means = smoothed(losses)
    assert [means[step] for step in (0, 8, 19)] == [2.0, 8.0, 17.0]
    assert math.isnan(smoothed(losses | {10: math.inf})[6])


numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=1, max_size=20), st.floats(1.01, 10.0), st.booleans())
def test_what_a_run_shows_is_never_outside_of_its_own_range(
    values: list[float], margin: float, is_log: bool
) -> None:
    low, high = widened(Range(min(values), max(values)), margin=margin, is_log=is_log)
    assert low <= min(values)
    assert max(values) <= high


@given(
    st.lists(st.lists(st.one_of(numbers, st.just(math.nan)), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_no_run_leaves_an_envelope_that_it_is_part_of(rows: list[list[float]]) -> None:
    grids = [
        Grid(
            Quantity("grad_norm", "", is_log=True),
            (Row("a"),),
            np.arange(3),
            np.array([row]),
            np.ones((1, 3), bool),
        )
        for row in rows
    ]
    envelope = envelope_of([ranges_of({"grad_norm": grid}) for grid in grids])
    assert all(first_exits(grid, envelope) == [] for grid in grids)


def test_heads_share_a_range_and_layers_do_not() -> None:
    calm = make_grid(
        "qk_energy", {Row("x", 0): curve(lambda s: 0.2), Row("x", 1): curve(lambda s: 0.6)}, is_log=False
    )
    envelope = envelope_of([ranges_of({"qk_energy": calm})])
    swapped = make_grid("qk_energy", {Row("x", 0): curve(lambda s: 0.6)}, is_log=False)
    assert first_exits(swapped, envelope) == []
    higher = make_grid("qk_energy", {Row("x", 0): curve(lambda s: 0.66)}, is_log=False)
    assert [(found.row, found.step) for found in first_exits(higher, envelope)] == [(Row("x", 0), 0)]
    assert (
        first_exits(make_grid("qk_energy", {Row("y", 0): curve(lambda s: 9.0)}, is_log=False), envelope) == []
    )


def test_of_rows_that_leave_on_one_step_the_furthest_outside_comes_first() -> None:
    calm = make_grid("grad_norm", {Row("a"): curve(lambda s: 1.0), Row("b"): curve(lambda s: 1.0)})
    envelope = envelope_of([ranges_of({"grad_norm": calm})])
    wild = make_grid(
        "grad_norm",
        {
            Row("a"): curve(lambda s: 1.0 + s),
            Row("b"): curve(lambda s: 1.0 if s < 1 else 1e-3),
            Row("c"): curve(float),
        },
    )
    exits = first_exits(wild, envelope)
    assert [(found.row.layer, found.step) for found in exits] == [("b", 1), ("a", 1)]
    assert exits[0].excess == pytest.approx(math.log(1e-3 * 1.5) / -math.log(1.5))
    zero = first_exits(make_grid("grad_norm", {Row("a"): curve(lambda s: 0.0)}), envelope)
    assert zero[0].excess == math.inf
