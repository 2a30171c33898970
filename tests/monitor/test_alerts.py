"""Alerts: hysteresis, patience, relative limits, heads, values that are not finite."""

import math
import random

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
    first = alerts.check(0, {"logit": {"a": [0.0, 2.0], "b": [0.0, 0.0]}})
    assert [(a.layer, a.head, a.state) for a in first] == [("a", 1, "raised")]
    second = alerts.check(1, {"logit": {"a": [2.0, 0.0], "b": [0.7, 0.0]}})
    assert [(a.layer, a.head, a.state) for a in second] == [("a", 1, "cleared"), ("a", 0, "raised")]
    assert "a, head 0" in second[1].message
    assert "step 1" in second[1].message


def test_places_that_go_beyond_together_have_one_alert_named_after_the_worst():
    alerts = Alerts([Rule(name="hot", quantity="logit", limit=1.0, release=0.5)])
    (raised,) = alerts.check(0, {"logit": {"a": [0.0, 2.0], "b": [3.0, 1.5], "c": 0.0}})
    assert (raised.layer, raised.head, raised.value, raised.others) == ("b", 0, 3.0, 2)
    assert raised.message.endswith("(and 2 more)")
    assert raised.as_record()["others"] == 2
    # One more at a later step has an alert of its own; the first goes on while one of its places is beyond.
    (joined,) = alerts.check(1, {"logit": {"a": [0.0, 0.7], "b": [0.0, 0.0], "c": 9.0}})
    assert (joined.state, joined.layer, joined.others) == ("raised", "c", 0)
    assert "more" not in joined.message
    # A place that comes back while its alert is up belongs to it.
    assert alerts.check(2, {"logit": {"a": [0.0, 0.7], "b": [5.0, 0.0], "c": 9.0}}) == []
    assert alerts.check(3, {"logit": {"a": [0.0, 0.0]}}) == []
    (cleared,) = alerts.check(4, {"logit": {"b": [0.1, 0.0]}})
    assert (cleared.state, cleared.layer, cleared.head, cleared.others) == ("cleared", "b", 0, 2)
    assert (cleared.value, cleared.threshold) == (0.1, 0.5)
    (cleared,) = alerts.check(5, {"logit": {"c": 0.2}})
    assert (cleared.state, cleared.layer) == ("cleared", "c")


def test_below_the_worst_is_the_lowest():
    alerts = Alerts([Rule(name="cold", quantity="logit", limit=0.1, release=0.2, above=False)])
    (alert,) = alerts.check(0, {"logit": {"a": [0.05, 0.01, 0.09]}})
    assert (alert.head, alert.others) == (1, 2)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.7, 2.0, math.nan]), min_size=4, max_size=4), max_size=30))
def test_every_alert_that_is_raised_is_cleared_once_under_its_name(steps):
    alerts, up = Alerts([Rule(name="hot", quantity="logit", limit=1.0, release=0.5)]), set()
    for step, values in enumerate([*steps, [0.0] * 4]):
        found = alerts.check(step, {"logit": {"a": values[:2], "b": values[2:]}})
        raised = [alert.rule for alert in found if alert.state == "raised"]
        assert len(raised) == len(set(raised))  # at most one a rule and step
        for alert in found:
            name = alert.rule, alert.layer, alert.head
            assert (name in up) == (alert.state == "cleared")
            up ^= {name}
    assert not up


def test_one_bad_weight_is_one_alert_a_quantity():
    alerts = Alerts(DEFAULT_RULES)
    good = {"grad_norm": {f"block.{k}": 1.0 + k for k in range(99)}, "weight_norm": {"block.5": 1.0}}
    assert alerts.check(0, good) == []
    bad = {
        "grad_norm": dict.fromkeys(good["grad_norm"], math.nan) | {"block.0": 1.0},
        "weight_norm": {"block.5": math.nan},
    }
    found = alerts.check(1, bad)
    assert [(a.rule, a.quantity, a.layer, a.others) for a in found] == [
        ("non-finite", "grad_norm", "block.1", 97),
        ("non-finite", "weight_norm", "block.5", 0),
    ]
    assert found[0].message == "step 1: grad_norm of block.1 is nan (and 97 more)"
    assert alerts.check(2, bad) == []
    assert alerts.check(3, {"grad_norm": good["grad_norm"] | {"block.98": math.inf}}) == []
    assert [(a.quantity, a.layer, a.state) for a in alerts.check(4, good)] == [
        ("grad_norm", "block.1", "cleared"),
        ("weight_norm", "block.5", "cleared"),
    ]


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
    resting = {
        "stability_threshold": math.inf,
        "instability": 0.0,
        "critical_batch": math.inf,
    }  # learning rate 0
    resting["instability_early"] = math.nan
    assert not Alerts(DEFAULT_RULES).check(0, {quantity: {"": value} for quantity, value in resting.items()})


@pytest.mark.parametrize("sign", [1, -1])
def test_a_series_that_never_changes_is_no_spike(sign):
    for rule in DEFAULT_RULES:
        if rule.relative:
            assert changes(Alerts([rule]), [sign * 5.0] * 40, quantity=rule.quantity) == []


def test_relative_limits_of_negative_values():
    rule = Rule(name="jump", quantity="logit", limit=1.2, release=1.1, relative=True)
    assert changes(Alerts([rule]), [-5.0] * 6 + [-3.9, -4.4, -4.6]) == [(6, "raised"), (8, "cleared")]
    rule = Rule(name="drop", quantity="logit", limit=0.5, release=0.9, relative=True, above=False)
    assert changes(Alerts([rule]), [-4.0] * 6 + [-5.9, -6.1, -4.5, -4.3]) == [(7, "raised"), (9, "cleared")]


def test_what_has_always_been_zero_has_no_relative_limit():
    rule = Rule(name="jump", quantity="logit", limit=10.0, release=3.0, relative=True)
    assert changes(Alerts([rule]), [0.0] * 8 + [1e-12, 1.0, 0.0, 5.0]) == []
    # Once most are not zero it has.
    assert changes(Alerts([rule]), [0.0] * 4 + [1.0] * 6 + [11.0, 0.0]) == [(10, "raised"), (11, "cleared")]


def around(level, noise, steps, seed):
    generator = random.Random(seed)
    return [level * math.exp(noise * generator.gauss(0, 1)) for _ in range(steps)]


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_a_noisy_loss_that_stays_where_it_is_is_no_spike(noise):
    found = [
        changes(Alerts(DEFAULT_RULES), around(3, noise, 3000, seed), quantity="loss") for seed in range(3)
    ]
    assert found == [[], [], []]


@pytest.mark.parametrize(("noise", "factor"), [(0.0, 1.2), (0.02, 1.4), (0.2, 4.0)])
def test_a_spike_above_the_noise_is_seen_as_soon_as_patience_allows(noise, factor):
    for seed in range(5):
        losses = around(3, noise, 200, seed)
        losses[100:106] = [factor * loss for loss in losses[100:106]]
        (raised, cleared) = changes(Alerts(DEFAULT_RULES), losses, quantity="loss")
        assert raised == (102, "raised")
        assert cleared[0] in range(106, 112)
        assert cleared[1] == "cleared"


def test_a_drop_below_the_noise():
    rule = Rule(name="drop", quantity="logit", limit=0.9, release=0.95, relative=True, above=False)
    still = around(3, 0.01, 60, seed=1)
    assert changes(Alerts([rule]), still) == []
    assert changes(Alerts([rule]), [*still, 2.5]) == [(60, "raised")]


def test_limits_that_the_noise_sets_and_limits_that_the_median_sets():
    rule = Rule(name="jump", quantity="logit", limit=1.5, release=1.2, relative=True)
    assert rule.limits([2.0] * 4) is None
    assert rule.limits([2.0] * 5) == pytest.approx((3.0, 2.4))
    noisy = [0.0, 1.0, 2.0, 3.0, 4.0]  # median 2, median absolute deviation 1
    assert rule.limits(noisy) == pytest.approx((2 + 6 * 1.4826, 2 + 3 * 1.4826))
    assert rule.limits([x - 2 for x in noisy]) == pytest.approx((6 * 1.4826, 3 * 1.4826))
    absolute = Rule(name="hot", quantity="logit", limit=1.5, release=1.2)
    assert absolute.limits([]) == (1.5, 1.2)


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
    with pytest.raises(ValueError, match=r"multiple of the median with 1 <= release, got 0\.5"):
        Rule(name="r", quantity="q", limit=2.0, release=0.5, relative=True)
    rule = Rule(name="r", quantity="q", limit=1.0, release=0.5)
    with pytest.raises(ValueError, match="two rules are called 'r'"):
        Alerts([rule, rule])


@pytest.mark.parametrize(
    "says", ["{foo} high", "{} high", "{value", "{layer:.3g} high", "{value.foo}", "{value[0]}"]
)
def test_a_message_that_cannot_be_written_is_refused_at_once(says):
    with pytest.raises(ValueError, match=r"says of rule 'r' must be .*\{value\}, \{limit\}, \{layer\}"):
        Rule(name="r", quantity="q", limit=1.0, release=0.5, says=says)


@given(
    st.lists(st.floats(-100, 100), max_size=60),
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
