"""Sinks: TensorBoard for real, W&B through its run's interface, and one that fails."""

import math

import pytest

from warmfree.monitor.alerts import Alert
from warmfree.monitor.outlet import Outlet
from warmfree.monitor.sinks import TensorBoard, Wandb, as_scalars
from warmfree.record import read_records

VALUES = {"grad_norm": {"": 2.0, "head": 1.0}, "attention_logit": {"block": [1.0, 5.0]}}


class Kept:
    def __init__(self):
        self.written, self.alerts, self.closed = [], [], 0

    def write(self, step, scalars):
        self.written.append((step, dict(scalars)))

    def alert(self, alert):
        self.alerts.append(alert)

    def close(self):
        self.closed += 1


class Broken(Kept):
    def write(self, step, scalars):
        raise ConnectionError("no network")


def test_heads_become_smallest_and_largest():
    assert as_scalars(VALUES) == {
        "grad_norm": 2.0,
        "grad_norm/head": 1.0,
        "attention_logit/block/min": 1.0,
        "attention_logit/block/max": 5.0,
    }
    assert as_scalars({"attention_logit": {"block": []}}) == {}


def test_tensorboard_holds_what_was_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path)
    sink.write(3, {"grad_norm": 2.0})
    sink.write(4, {"grad_norm": math.nan})
    sink.alert(_alert("raised"))
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("warmfree/grad_norm")
    assert [(one.step, one.value) for one in scalars[:1]] == [(3, 2.0)]
    assert math.isnan(scalars[1].value)
    assert "warmfree/alerts/text_summary" in events.Tags()["tensors"]


def test_wandb_logs_at_its_own_step():
    class Run:
        def __init__(self):
            self.logged, self.metrics, self.alerts = [], [], []

        def define_metric(self, name, step_metric=None):
            self.metrics.append((name, step_metric))

        def log(self, values):
            self.logged.append(values)

        def alert(self, *, title, text):
            self.alerts.append((title, text))

    run = Run()
    sink = Wandb(run)
    sink.write(7, {"grad_norm": 2.0})
    sink.alert(_alert("raised"))
    sink.alert(_alert("cleared"))
    sink.close()
    assert run.logged == [{"warmfree/grad_norm": 2.0, "warmfree/step": 7}]
    assert run.metrics == [("warmfree/step", None), ("warmfree/*", "warmfree/step")]
    assert run.alerts == [("warmfree: hot", "too hot")]


def test_a_sink_that_fails_is_dropped_with_one_warning_and_the_others_go_on(tmp_path):
    kept = Kept()
    outlet = Outlet(tmp_path, (), [Broken(), kept], writes=True)
    outlet.open()
    with pytest.warns(RuntimeWarning, match="sink Broken was dropped: ConnectionError: no network"):
        outlet.values(0, "gradients", VALUES, seconds=0.1)
    outlet.values(1, "gradients", VALUES, seconds=0.1)
    outlet.loss(1, 2.5, 0.1)
    outlet.close()
    assert [step for step, _ in kept.written] == [0, 1, 1]
    assert kept.written[-1][1] == {"loss": 2.5, "lr": 0.1}
    assert kept.closed == 1
    kinds = [record["kind"] for record in read_records(tmp_path / "monitor.jsonl")]
    assert kinds == ["values", "notice", "values", "step"]


def test_alerts_reach_record_and_sinks(tmp_path):
    kept = Kept()
    outlet = Outlet(tmp_path, (), [kept], writes=True)
    outlet.open()
    outlet.loss(5, math.nan, 0.1)
    assert [alert.rule for alert in outlet.raised.values()] == ["non-finite"]
    outlet.loss(6, 1.0, 0.1)
    outlet.close()
    assert not outlet.raised
    assert [alert.state for alert in kept.alerts] == ["raised", "cleared"]
    records = [record for record in read_records(tmp_path / "monitor.jsonl") if record["kind"] == "alert"]
    assert [record["step"] for record in records] == [5, 6]


def test_a_process_that_does_not_write_keeps_the_last_values_only(tmp_path):
    kept = Kept()
    outlet = Outlet(tmp_path, (), [kept], writes=False)
    outlet.open()
    outlet.values(0, "gradients", VALUES, seconds=0.1)
    outlet.loss(0, 1.0, 0.1)
    outlet.close()
    assert outlet.latest == VALUES
    assert not kept.written
    assert not list(tmp_path.iterdir())


def _alert(state):
    return Alert(
        step=3,
        state=state,
        rule="hot",
        quantity="logit",
        layer="block",
        head=None,
        value=9.0,
        threshold=5.0,
        severity="warning",
        message="too hot",
    )
