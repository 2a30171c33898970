"""The monitor: sees what there is, changes nothing, and outlives what goes wrong."""

import copy
import math
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from watched import EVERYTHING, Net, gpt_batch, gpt_loss, net_batch, records, tiny_gpt, train, watch

import warmfree
from warmfree.monitor import PROBES, Monitor, Probe, Rule, Updates
from warmfree.record import read_records


def fingerprint(model):
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    ]
    flags = [module.training for module in model.modules()]
    return hooks, flags, [len(weight._backward_hooks or ()) for weight in model.parameters()]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, warmfree.AdamW2, warmfree.LionAR])
def test_a_watched_run_is_the_same_bit_for_bit(make, tmp_path):
    options = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.9} if make is torch.optim.SGD else {})
    results = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Net()
        optimizer = make([p for p in model.parameters() if p.requires_grad], **options)
        before = fingerprint(model)
        if watched:
            with watch(model, optimizer, tmp_path, probes=(*EVERYTHING, "curvature")) as monitor:
                found = train(model, optimizer, range(12))
            assert not [notice["message"] for notice in records(tmp_path, "notice")]
            assert monitor.step == 12
        else:
            found = train(model, optimizer, range(12))
        assert fingerprint(model) == before
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        results.append((found, copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(*(result[1].values() for result in results), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(result[2]["state"].values() for result in results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_everything_is_measured_where_it_should_be(tmp_path):
    model = tiny_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    everything = {"probes": PROBES, "batch": gpt_batch(99), "loss_fn": gpt_loss}
    with watch(model, optimizer, tmp_path, **everything) as monitor:
        for step in range(6):
            loss = model.loss(*gpt_batch(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss)
    named = dict(model.named_parameters())
    matrices = {name for name, weight in named.items() if weight.ndim > 1}
    layers = {f"blocks.{index}.attention" for index in range(2)}
    latest = monitor.latest
    assert set(latest["update_rms"]) == set(named)
    assert (
        set(latest["update_angle"]) == matrices == set(latest["stable_rank"]) == set(latest["spectral_ratio"])
    )
    assert set(latest["grad_norm"]) == {*named, ""}
    assert set(latest["critical_batch"]) >= {""}
    for quantity in ("attention_entropy", "attention_logit", "attention_rank", "collapse", "qk_energy"):
        assert set(latest[quantity]) == layers
        assert all(len(heads) == 2 for heads in latest[quantity].values())
    assert set(latest["rrc"]) >= {"blocks.0.attention.qkv[q]", "blocks.1.mlp.up", "tokens"}
    assert latest["instability"][""] == pytest.approx(
        latest["preconditioned_sharpness"][""] / latest["stability_threshold"][""]
    )
    assert set(latest["output_norm"]) == {"blocks.0", "blocks.1"} == set(latest["sigma_query_key"])
    assert set(latest["dead_units"]) == {"blocks.0.mlp", "blocks.1.mlp"}
    steps = records(tmp_path, "step")
    assert [(record["step"], record["lr"]) for record in steps] == [(step, 0.01) for step in range(6)]
    assert steps[0]["loss"] == pytest.approx(math.log(17), rel=0.05)
    start, end = records(tmp_path, "start")[0], records(tmp_path, "end")[0]
    assert start["layers"] == list(named)
    assert start["parameters"] == sum(weight.numel() for weight in named.values())
    assert start["quantities"]["rrc"]["title"] == "representation change"
    assert end["step"] == 6
    assert end["probes"]["updates"]["runs"] == 6
    written = {quantity for record in records(tmp_path, "values") for quantity in record["values"]}
    assert written <= set(start["quantities"])


def test_values_are_those_of_the_estimators(tmp_path):
    model = tiny_gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with watch(model, optimizer, probes=("updates", "gradients")) as monitor:
        model.loss(*gpt_batch(0)).backward()
        optimizer.step()
    for name, weight in model.named_parameters():
        norm = weight.grad.norm().item()
        assert monitor.latest["grad_norm"][name] == pytest.approx(norm, rel=1e-6)
        assert monitor.latest["update_l2"][name] == pytest.approx(0.5 * norm, rel=1e-3)
    total = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()]).item()
    assert monitor.latest["grad_norm"][""] == pytest.approx(total, rel=1e-6)


def test_nan_activations_are_named_and_training_goes_on(tmp_path):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def poison(step, monitor):
        if step == 3:
            with torch.no_grad():
                model.first.weight[0, 0] = math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(model, optimizer, tmp_path) as monitor:
            losses, _ = train(model, optimizer, range(6), monitor=monitor, after=poison)
    assert not math.isfinite(losses[-1])
    critical = [alert for alert in records(tmp_path, "alert") if alert["severity"] == "critical"]
    first = next(alert for alert in critical if alert["rule"] == "nonfinite-output")
    assert (first["step"], first["layer"]) == (4, "first")
    assert any(alert["quantity"] == "loss" and alert["step"] == 4 for alert in critical)
    assert monitor.latest["grad_norm"][""] != monitor.latest["grad_norm"][""]
    assert monitor.step == 6


def test_a_model_without_attention(tmp_path):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watch(model, optimizer, tmp_path) as monitor:
        for _ in range(3):
            model(torch.randn(5, 3)).square().mean().backward()
            optimizer.step()
    assert "attention_entropy" not in monitor.latest
    assert "qk_energy" not in monitor.latest
    assert monitor.latest["rrc"].keys() == {"0", "2"}
    assert not records(tmp_path, "notice")


def test_parameters_added_and_thawed_while_running(tmp_path):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def grow(step, monitor):
        if step == 2:
            model.frozen.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.frozen.parameters())})
        if step == 4:
            model.head = nn.Sequential(model.head, nn.Linear(4, 4))
            optimizer.add_param_group({"params": list(model.head[1].parameters())})

    with watch(model, optimizer, tmp_path) as monitor:
        train(model, optimizer, range(8), monitor=monitor, after=grow)
    assert not records(tmp_path, "notice")
    by_step = {
        record["step"]: set(record["values"]["update_l2"])
        for record in records(tmp_path, "values")
        if record["probe"] == "updates"
    }
    assert "frozen.weight" not in by_step[2]
    assert "frozen.weight" in by_step[3]
    assert "head.1.weight" in by_step[5]
    assert "first.weight" in by_step[0]
    assert "second.weight" not in by_step[0]  # shared: once, under its first name


class Failing(Probe):
    name = "failing"
    every = 1

    def __init__(self, stage, error):
        self.stage, self.error = stage, error

    def before(self, moment):
        if self.stage == "before" and moment.step == 1:
            raise self.error
        return {}

    def after(self, moment):
        if self.stage == "after" and moment.step == 1:
            raise self.error
        return {"step": {"": float(moment.step)}}


@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_probe_that_fails_is_switched_off_alone(stage, tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Failing(stage, ValueError("no good")), Updates(every=1)]
    with Monitor(model, optimizer, tmp_path, probes=probes, budget=math.inf) as monitor:
        for step in range(4):
            model(torch.ones(1, 2)).sum().backward()
            if step == 1:
                with pytest.warns(
                    RuntimeWarning, match="probe failing was switched off: ValueError: no good"
                ):
                    optimizer.step()
            else:
                optimizer.step()
    assert monitor.latest["step"] == {"": 0.0}
    steps = [record["step"] for record in records(tmp_path, "values") if record["probe"] == "updates"]
    assert steps == [0, 1, 2, 3]


def test_interrupts_pass_through_and_the_next_step_is_fine(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(
        model,
        optimizer,
        tmp_path,
        probes=[Failing("before", KeyboardInterrupt()), "updates"],
        budget=math.inf,
    ) as monitor:
        for step in range(4):
            model(torch.ones(1, 2)).sum().backward()
            if step == 1:
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step()
                monitor._probes[0].stage = "never"
            optimizer.step()
    assert [record["step"] for record in records(tmp_path, "step")] == [0, 1, 2, 3]


def test_detached_after_an_exception_in_training(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = fingerprint(model)

    def fail():
        with watch(model, optimizer, tmp_path):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fingerprint(model) == before
    assert records(tmp_path, "end")
    optimizer.step()
    assert len(records(tmp_path, "step")) == 1


def test_gradient_accumulation_is_one_step_and_shows_its_noise(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    target = torch.randn(6)
    with watch(model, optimizer, tmp_path, probes=("microbatches", "gradients"), batch_size=32) as monitor:
        for _ in range(30):
            for _ in range(4):
                x = torch.randn(8, 6)
                y = x @ target + torch.randn(8)
                loss = (model(x).squeeze(1) - y).square().mean() / 4
                loss.backward()
                monitor.log(loss * 4)
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.step == 30
    assert [record["step"] for record in records(tmp_path, "step")] == list(range(30))
    # |G|^2 = 4 |w - w*|^2; tr Sigma of 2 (x.d + e) x is 4 (|d|^2 (dim + 1) + dim) for d = w - w*, |e| = 1
    offset = (model.weight[0] - target).square().sum().item()
    expected = 4 * offset / (4 * (offset * 8 + 7))  # with the bias, an input of 1
    assert monitor.latest["snr"][""] == pytest.approx(expected, rel=0.5)


def test_gradients_are_unscaled_under_grad_scaler():
    model = nn.Linear(4, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for make in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = make(model.parameters(), lr=0.01)
        with watch(model, optimizer, probes=("gradients", "microbatches")) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(torch.ones(3, 4)).float().square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        # The scaler has divided the gradients in place; those of the last step are still there.
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()]).item()
        assert monitor.latest["grad_norm"][""] == pytest.approx(norm, rel=1e-6)
        assert 0 < norm < 10 < norm * 1024


def test_the_fused_step_of_a_grad_scaler_is_unscaled_too():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    with watch(model, optimizer, probes=("gradients",)) as monitor:
        loss = model(torch.ones(3, 4)).square().mean()
        scaler.scale(loss).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() / 4096
        scaler.step(optimizer)
    assert monitor.latest["grad_norm"][""] == pytest.approx(norm, rel=1e-6)


def test_a_step_that_the_scaler_skips_does_not_count():
    model = nn.Linear(4, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, probes=("gradients",)) as monitor:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(3, 4)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert monitor.step == 2


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_code_stays_as_it_is(how, tmp_path):
    torch._dynamo.reset()
    results = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = tiny_gpt()
        called = model
        if how == "wrapped":
            called = torch.compile(model, backend="aot_eager")
        else:
            model.compile(backend="aot_eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def step(number, called=called, optimizer=optimizer):
            tokens, targets = gpt_batch(number)
            loss = nn.functional.cross_entropy(called(tokens).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        step(0)
        with torch.compiler.set_stance("fail_on_recompile"):
            if watched:
                with watch(called, optimizer, tmp_path, probes=EVERYTHING) as monitor:
                    losses = [step(number) for number in range(1, 6)]
                losses.append(step(6))
                assert monitor.latest["attention_entropy"]
                assert not records(tmp_path, "notice")
            else:
                losses = [step(number) for number in range(1, 7)]
        results.append(losses)
    assert results[0] == results[1]


def test_a_model_that_is_not_called_is_noticed_once(tmp_path):
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught, watch(model, optimizer, tmp_path):
        warnings.simplefilter("always")
        for _ in range(6):
            other(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert ["has not called the model" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_measured_after_it_has_made_the_gradients(by_name):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def closure():
        calls.append(None)
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    with watch(model, optimizer, probes=("gradients", "updates")) as monitor:
        for _ in range(3):
            loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert monitor.latest["grad_norm"]["weight"] == pytest.approx(model.weight.grad.norm().item())
        assert monitor.latest["update_l2"]["weight"] == pytest.approx(
            0.1 * model.weight.grad.norm().item(), rel=1e-4
        )
    assert len(calls) == 3
    assert loss.ndim == 0


def test_curvature_without_a_loss_says_what_to_do(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("curvature",)):
        model(torch.ones(2, 3)).sum().backward()
        with pytest.warns(RuntimeWarning, match="curvature needs a loss: pass loss_fn="):
            optimizer.step()


def test_curvature_of_a_quadratic_beside_its_threshold():
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"probes": ("curvature",), "batch": x, "loss_fn": lambda model, x: model(x).square().sum()}
    with watch(model, optimizer, **settings) as monitor:
        model(x).square().sum().backward()
        optimizer.step()
    latest = {quantity: values[""] for quantity, values in monitor.latest.items()}
    assert latest["sharpness"] == pytest.approx(18.0, rel=1e-4)
    assert latest["stability_threshold"] == pytest.approx(20.0)
    assert latest["instability"] == pytest.approx(0.9, rel=1e-4)


def test_a_closure_that_is_called_many_times_makes_one_step():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (model(torch.eye(3)) - 1).square().mean()
        loss.backward()
        return loss

    with watch(model, optimizer, probes=("gradients", "updates")) as monitor:
        for _ in range(2):
            optimizer.step(closure)
    assert monitor.step == 2


def test_several_optimizers_make_one_step(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    pair = [torch.optim.Muon([model[0].weight, model[1].weight], lr=0.01)]
    pair.append(torch.optim.AdamW([model[0].bias, model[1].bias], lr=0.02))
    with watch(model, pair, tmp_path) as monitor:
        for _ in range(4):
            model(torch.randn(5, 4)).square().mean().backward()
            for optimizer in pair:
                optimizer.step()
                optimizer.zero_grad()
    assert monitor.step == 4
    assert set(monitor.latest["update_rms_per_lr"]) == set(dict(model.named_parameters()))
    assert records(tmp_path, "start")[0]["optimizer"] == "Muon + AdamW"
    assert set(monitor.latest["batch_snr"]) == {*dict(model.named_parameters()), ""}


def test_a_resumed_run_appends_and_goes_on_counting(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for first in (0, 3):
        with watch(model, optimizer, tmp_path, first_step=first):
            for _ in range(4):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
    assert [record["first_step"] for record in records(tmp_path, "start")] == [0, 3]
    assert [record["step"] for record in records(tmp_path, "step")] == [0, 1, 2, 3, 3, 4, 5, 6]


def test_own_rules_and_sinks(tmp_path):
    class Sink:
        alerts = ()

        def write(self, step, scalars):
            pass

        def alert(self, alert):
            self.alerts = (*self.alerts, alert)

        def close(self):
            pass

    model, sink = nn.Linear(2, 1), Sink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = Rule(name="any-gradient", quantity="grad_norm", limit=0.0, release=0.0)
    with watch(model, optimizer, tmp_path, rules=[rule], sinks=[sink]) as monitor:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert {alert.rule for alert in monitor.raised} == {"any-gradient"}
    assert [(alert.layer, alert.others) for alert in sink.alerts] == [("", 2)]  # one for all at once


def test_bad_settings(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="there is no probe 'entropy'; known are report, updates"):
        Monitor(model, optimizer, probes=["entropy"])
    with pytest.raises(ValueError, match="probes must be 'default', 'all', 'qi'"):
        Monitor(model, optimizer, probes="everything")
    with pytest.raises(ValueError, match="two probes are called 'updates'"):
        Monitor(model, optimizer, probes=["updates", Updates()])
    with pytest.raises(ValueError, match="probes is empty"):
        Monitor(model, optimizer, probes=[])
    with pytest.raises(ValueError, match="budget must be > 0"):
        Monitor(model, optimizer, budget=0)
    with pytest.raises(ValueError, match="first_step must be an int >= 0, got -1"):
        Monitor(model, optimizer, first_step=-1)
    with pytest.raises(ValueError, match="every of probe 'updates' must be >= 1"):
        Monitor(model, optimizer, probes=[Updates(every=0)])
    with pytest.raises(TypeError, match="got Linear"):
        Monitor(model, model)
    with pytest.raises(ValueError, match="at least one optimizer"):
        Monitor(model, [])
    with pytest.raises(ValueError, match="loss_fn needs a batch"):
        Monitor(model, optimizer, loss_fn=gpt_loss)
    with pytest.raises(ValueError, match="those of another"):
        Monitor(nn.Linear(2, 1), optimizer)
    with pytest.raises(ValueError, match=r"probe_samples must be an int >= 1, got 2\.5"):
        Monitor(model, optimizer, probe_samples=2.5)
    with pytest.raises(TypeError, match="a probe must be a name or a Probe object"):
        Monitor(model, optimizer, probes=[Updates])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        Monitor(model, optimizer, tmp_path / "file").attach()
    monitor = Monitor(model, optimizer)
    with pytest.raises(RuntimeError, match="the monitor is not attached"):
        monitor.log(1.0)
    monitor.attach()
    with pytest.raises(RuntimeError, match="attached once"):
        monitor.attach()
    with pytest.raises(ValueError, match="the loss must be one number, got None"):
        monitor.log(None)
    monitor.detach()
    monitor.detach()
    with pytest.raises(RuntimeError, match="attached once"):
        monitor.attach()


KILLED = """
    import sys, torch
    from watched import Net, train, watch
    torch.set_num_threads(1)
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with watch(model, optimizer, sys.argv[1]):
        print("ready", flush=True)
        train(model, optimizer, range(100_000))
"""


def test_a_record_survives_sigkill(tmp_path):
    path = tmp_path / "monitor.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while path.stat().st_size < 200_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    found = list(read_records(path))
    assert [record["step"] for record in found if record["kind"] == "step"][:3] == [0, 1, 2]
    # the next run goes on in the same file, also if the kill had torn a line
    with open(path, "ab") as file:
        file.write(b'{"kind":"values","step":7,"va')
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with watch(model, optimizer, tmp_path, first_step=2):
        train(model, optimizer, range(2))
    assert len(list(read_records(path))) > len(found)
    assert records(tmp_path, "end")[-1]["step"] == 4


class Doubled(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_its_parents_is_one_step(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = Doubled(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("gradients", "updates")) as monitor:
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert monitor.step == 3
    assert [record["step"] for record in records(tmp_path, "step")] == [0, 1, 2]
    assert monitor.latest["update_l2"]["bias"] == pytest.approx(0.1 * model.bias.grad.norm().item(), rel=1e-5)


def test_an_optimizer_without_a_learning_rate(tmp_path):
    class Bare(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data.sub_(weight.grad)

    model = nn.Linear(2, 1)
    optimizer = Bare(model.parameters())
    with watch(model, optimizer, tmp_path, probes=EVERYTHING) as monitor:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert not records(tmp_path, "notice")
    assert math.isnan(records(tmp_path, "step")[0]["lr"])
    assert monitor.latest["update_l2"]["weight"] == pytest.approx(2**0.5)


class Odd(Probe):
    name = "odd"
    every = 1
    ahead = True

    def __init__(self, gives):
        self.gives = gives

    def begin(self, parameters):
        if self.gives == "begin":
            raise ValueError("no good")

    def before(self, moment):
        return self.gives


@pytest.mark.parametrize("gives", ["begin", None, {"a": {"": "text"}}, {"a": {"": None}}, {"a": 3}])
def test_what_a_probe_gives_is_checked(gives, tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Monitor(
            model, optimizer, tmp_path, probes=[Odd(gives), "gradients"], budget=math.inf
        ) as monitor:
            for _ in range(3):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
    assert ["probe odd was switched off" in str(warning.message) for warning in caught] == [True]
    assert monitor.step == 3


def test_tensors_and_numpy_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Odd({"a": {"": torch.tensor(1.5), "x": [numpy.float32(2.0), 3]}})
    with Monitor(model, optimizer, probes=[probe], budget=math.inf) as monitor:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert monitor.latest == {"a": {"": 1.5, "x": [2.0, 3.0]}}


def test_copies_and_saved_models_have_no_monitor(tmp_path):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with watch(model, optimizer, tmp_path / "run") as monitor:
        train(model, optimizer, range(2))
        average = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        saved = torch.load(tmp_path / "model.pt", weights_only=False)
        seen = monitor._capture.calls
        for other in (average, saved):
            other(*net_batch(9)).__getitem__("logits").sum().backward()
        assert monitor._capture.calls == seen
    for ours, theirs in zip(model.state_dict().values(), saved.state_dict().values(), strict=True):
        assert ours.shape == theirs.shape


def test_a_loss_that_is_scaled_in_place_is_recorded_as_it_was(tmp_path):
    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, probes=("gradients",)):
        loss = model(torch.ones(2, 2))
        value = loss.item()
        loss /= 4
        loss.backward()
        optimizer.step()
    assert records(tmp_path, "step")[0]["loss"] == pytest.approx(value)


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x).square().mean()


def test_each_monitor_of_a_pair_of_networks_sees_its_own(tmp_path):
    pair = nn.ModuleDict({"maker": nn.Linear(2, 2), "judge": nn.Linear(2, 1)})
    first = torch.optim.SGD(pair["maker"].parameters(), lr=0.1)
    with watch(pair, first, tmp_path, probes=("gradients", "updates")) as monitor:
        pair["judge"](pair["maker"](torch.ones(1, 2))).sum().backward()
        first.step()
    assert set(monitor.latest["update_l2"]) == {"maker.weight", "maker.bias"}
    assert set(monitor.latest["grad_norm"]) == {"maker.weight", "maker.bias", ""}


def test_a_compiled_step_stays_one_graph_outside_of_which_the_monitor_is(tmp_path):
    torch._dynamo.reset()
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        @torch.compile(backend="aot_eager")
        def step(optimizer=optimizer):
            optimizer.step()

        def loop(model=model, optimizer=optimizer, step=step):
            for number in range(5):
                optimizer.zero_grad()
                model(torch.full((2, 4), float(number))).square().mean().backward()
                step()

        if watched:
            with watch(model, optimizer, tmp_path, probes=("gradients", "updates", "attention")) as monitor:
                loop()
            assert monitor.step == 5
            assert not records(tmp_path, "notice")
        else:
            loop()
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)


def test_a_batch_that_cannot_be_cut_is_used_whole(tmp_path):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x, lengths):
            assert len(x) == len(lengths)  # a list, of which nobody knows that it goes with the batch
            return self.linear(x).square().mean()

    model = Pairs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("representation", "activations", "curvature")) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 3), [1] * 8).backward()
            optimizer.step()
    assert not records(tmp_path, "notice")
    assert monitor.latest["rrc"].keys() == {"linear"}


def test_a_batch_that_cannot_be_copied_is_noticed_and_training_goes_on(tmp_path):
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

        def __reduce__(self):
            raise RuntimeError("one of a kind")

    class Takes(nn.Linear):
        def forward(self, x, _):
            return super().forward(x)

    model = Takes(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught, watch(model, optimizer, tmp_path) as monitor:
        warnings.simplefilter("always")
        for _ in range(5):
            model(torch.ones(2, 3), Uncopyable()).sum().backward()
            optimizer.step()
    assert ["cannot be copied (RuntimeError: one of a kind)" in str(one.message) for one in caught] == [True]
    assert monitor.step == 5


def test_sparse_inputs_and_arguments_that_the_model_changes(tmp_path):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, adjacency, batch):
            x = batch.pop("x")  # its own to change, as the caller knows
            x.add_(1)
            return self.linear(adjacency @ x).square().mean()

    torch.manual_seed(0)
    model = Graph()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("representation", "curvature")) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.eye(6).to_sparse(), {"x": torch.ones(6, 3)}).backward()
            optimizer.step()
    assert not records(tmp_path, "notice")
    assert monitor.latest["rrc"].keys() == {"linear"}


def test_training_in_eval_mode_is_training(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("representation",)) as monitor:
        for _ in range(6):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert not records(tmp_path, "notice")
    assert monitor.latest["rrc"].keys() == {"0", "1"}


def test_per_sample_gradients_by_vmap_pass_through(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = dict(model.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(model, weights, x).square().sum()

    with watch(model, optimizer, tmp_path, probes=("gradients", "representation")) as monitor:
        for _ in range(3):
            each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, torch.randn(4, 3))
            for name, weight in weights.items():
                weight.grad = each[name].mean(0).detach()
            optimizer.step()
            if monitor.step == 2:
                break
    assert monitor.step == 2


def test_critical_alerts_are_logged(tmp_path, caplog):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("gradients",)) as monitor:
        monitor.log(math.nan)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert any("loss" in record.getMessage() for record in caplog.records if record.name == "warmfree")
