"""Alerts: hysteresis, patience, relative limits, heads, values that are not finite."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmfree.monitor.alerts import DEFAULT_RULES, Alerts, Rule


def changes(alerts, values, *, quantity="logit", layer="block"):
    found = []
    for step, value in enumerate(values):
        found += [(a.step, a.state) for a in alerts.check(step, {quantity: {layer: value}})]
    return found


def test_raised_above_the_limit_and_cleared_below_the_release_only():
    alerts = Alerts([Rule(name="hot", quantity="logit", limit=50.0, release=30.0)])
    assert changes(alerts, [10, 51, 49, 31, 60, 29, 49, 51]) == [(1, "raised"), (5, "cleared"), (7, "raised")]


def test_below():
    alerts = Alerts([Rule(name="cold", quantity="logit", limit=0.1, release=0.2, above=False)])
    assert changes(alerts, [0.5, 0.09, 0.15, 0.21, 0.15]) == [(1, "raised"), (3, "cleared")]


def test_patience_counts_in_a_row():
    alerts = Alerts([Rule(name="hot", quantity="logit", limit=1.0, release=0.5, patience=3)])
    assert changes(alerts, [2, 2, 0, 2, 2, 2, 2]) == [(5, "raised")]


def test_relative_limits_follow_the_median_and_wait_for_five_measurements():
    rule = Rule(name="jump", quantity="logit", limit=4.0, release=2.0, relative=True)
    assert changes(Alerts([rule]), [1, 100, 1, 1, 1, 1, 5, 1.5]) == [(6, "raised"), (7, "cleared")]


def test_a_new_level_that_lasts_becomes_the_level():
    rule = Rule(name="jump", quantity="logit", limit=4.0, release=2.0, relative=True)
    assert changes(Alerts([rule]), [1.0] * 6 + [5.0] * 30) == [(6, "raised"), (13, "cleared")]


def test_each_head_and_layer_has_its_own_state():
    alerts = Alerts([Rule(name="hot", quantity="logit", limit=1.0, release=0.5)])
    first = alerts.check(0, {"logit": {"a": [0.0, 2.0], "b": [2.0, 0.0]}})
    assert [(a.layer, a.head) for a in first] == [("a", 1), ("b", 0)]
    second = alerts.check(1, {"logit": {"a": [2.0, 2.0], "b": [0.0, 0.0]}})
    assert [(a.layer, a.head, a.state) for a in second] == [("a", 0, "raised"), ("b", 0, "cleared")]
    assert "a, head 0" in second[0].message
    assert "step 1" in second[0].message


def test_a_value_that_is_not_finite_is_critical_under_any_rules():
    alerts = Alerts([])
    found = [a for step, value in enumerate([1.0, math.nan, math.inf, 1.0])
             for a in alerts.check(step, {"grad_norm": {"": value}})]  # fmt: skip
    assert [(a.step, a.state, a.severity) for a in found] == [
        (1, "raised", "critical"),
        (3, "cleared", "critical"),
    ]
    assert "the network" in found[0].message


def test_undefined_is_no_alarm_where_a_quantity_may_be_undefined():
    assert not Alerts(DEFAULT_RULES).check(0, {"update_angle": {"": math.nan}, "snr": {"w": math.nan}})


def test_nan_between_neither_raises_nor_clears_the_rule():
    alerts = Alerts([Rule(name="hot", quantity="rrc", limit=1.0, release=0.5)])
    assert changes(alerts, [2.0, math.nan, 0.7], quantity="rrc") == [(0, "raised")]


def test_bad_rules():
    with pytest.raises(ValueError, match=r"release of rule 'r' must be <= limit=1\.0, got 2\.0"):
        Rule(name="r", quantity="q", limit=1.0, release=2.0)
    with pytest.raises(ValueError, match="must be >= limit"):
        Rule(name="r", quantity="q", limit=1.0, release=0.5, above=False)
    with pytest.raises(ValueError, match="patience"):
        Rule(name="r", quantity="q", limit=1.0, release=0.5, patience=0)
    rule = Rule(name="r", quantity="q", limit=1.0, release=0.5)
    with pytest.raises(ValueError, match="two rules are called 'r'"):
        Alerts([rule, rule])


@given(
    st.lists(st.floats(0, 100), max_size=60),
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
)
def test_states_alternate_whatever_comes(values, above, relative, patience):
    limits = (3.0, 1.5) if above else (0.3, 0.6)
    rule = Rule(
        name="r",
        quantity="q",
        limit=limits[0],
        release=limits[1],
        above=above,
        relative=relative,
        patience=patience,
    )
    states = [state for _, state in changes(Alerts([rule]), values, quantity="q")]
    assert states == ["raised", "cleared"] * (len(states) // 2) + ["raised"] * (len(states) % 2)


def test_every_default_rule_can_write_its_message():
    for rule in DEFAULT_RULES:
        said = rule.says.format(value=1.0, limit=2.0, layer="blocks.0", step=3, quantity=rule.quantity)
        assert "{" not in said
