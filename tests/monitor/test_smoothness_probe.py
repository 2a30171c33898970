"""The smoothness probe: what it reports, that training does not notice, and over processes."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn
from watched import Net, gpt_batch, gpt_loss, records, tiny_gpt, train, watch

import warmfree
from optim.sharded import CLASSES, VOCABULARY, make_transformer, spread, whole
from processes import spawn
from warmfree.measure.curvature import LocalSmoothness
from warmfree.monitor import Monitor, Probe
from warmfree.monitor.probes import resolve
from warmfree.report.runs import load_run, write_run_report

QUANTITIES = {"local_smoothness", "preconditioned_local_smoothness", "smoothness_rounding", "probe_loss"}


def quadratic(model, x):
    return model(x).square().sum()


def test_a_quadratic_has_its_eigenvalue_and_its_loss():
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # curvatures 2 and 18
    nn.init.constant_(model.weight, 1.0).data[0, 0] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, probes=("smoothness",), batch=x, loss_fn=quadratic) as monitor:
        quadratic(model, x).backward()
        optimizer.step()
    latest = {quantity: values[""] for quantity, values in monitor.latest.items()}
    assert latest.keys() == QUANTITIES
    assert latest["local_smoothness"] == pytest.approx(18.0, rel=1e-4)
    assert latest["preconditioned_local_smoothness"] == pytest.approx(18.0, rel=1e-4)
    assert latest["probe_loss"] == pytest.approx(9.0)  # before the step
    assert 0 < latest["smoothness_rounding"] < 1e-4


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, warmfree.AdamW2, warmfree.LionAR])
def test_a_watched_run_is_the_same_bit_for_bit(make, tmp_path):
    results = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Net()
        optimizer = make([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
        if watched:
            with watch(model, optimizer, tmp_path, probes=("smoothness", "curvature")) as monitor:
                found = train(model, optimizer, range(8))
            assert not records(tmp_path, "notice")
            assert monitor.latest["local_smoothness"][""] > 0
            has_preconditioner = make is not warmfree.LionAR
            assert ("preconditioned_local_smoothness" in monitor.latest) == has_preconditioner
        else:
            found = train(model, optimizer, range(8))
        results.append((found, copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(*(result[1].values() for result in results), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(result[2]["state"].values() for result in results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_it_finds_what_one_would_find_by_hand_and_curvature_reports_the_same_loss(tmp_path):
    torch.manual_seed(0)
    model, held = tiny_gpt(), gpt_batch(99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"probes": ("curvature", "smoothness"), "batch": held, "loss_fn": gpt_loss}
    expected = []
    with watch(model, optimizer, tmp_path, **settings):
        for number in range(4):
            optimizer.zero_grad()
            gpt_loss(model, gpt_batch(number)).backward()
            with LocalSmoothness(model, lambda: gpt_loss(model, held), optimizer) as probe:
                optimizer.step()
            expected.append(probe.found)
    found = {(record["step"], record["probe"]): record["values"] for record in records(tmp_path, "values")}
    for step, one in enumerate(expected):
        smoothness, curvature = found[step, "smoothness"], found[step, "curvature"]
        assert smoothness["local_smoothness"][""] == one.value
        assert smoothness["preconditioned_local_smoothness"][""] == one.preconditioned
        assert smoothness["probe_loss"][""] == one.loss
        assert smoothness["smoothness_rounding"][""] == one.rounding
        assert curvature["probe_loss"][""] == pytest.approx(one.loss, rel=1e-6)
        # Steps of a small lr do not leave the place at which the eigenvalue was found far behind.
        top = curvature["preconditioned_sharpness"][""]
        assert smoothness["preconditioned_local_smoothness"][""] < 2 * top


def test_curvature_by_differences_reports_the_loss_of_the_weights_as_they_are():
    model = tiny_gpt()
    with torch.no_grad():  # a top eigenvalue that is worth a long difference
        for weight in model.parameters():
            weight.mul_(3)
    model.blocks[0].register_forward_hook(lambda module, inputs, output: Once.apply(output))
    optimizer = torch.optim.Muon([w for w in model.parameters() if w.ndim == 2], lr=0.01)
    settings = {"probes": ("curvature",), "batch": gpt_batch(99), "loss_fn": gpt_loss}
    with watch(model, optimizer, **settings) as monitor:
        expected = gpt_loss(model, gpt_batch(99))
        expected.backward()
        optimizer.step()
    assert monitor.latest["probe_loss"][""] == pytest.approx(expected.item(), rel=1e-6)


class Once(torch.autograd.Function):
    """Differentiable once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_a_step_that_moves_nothing_has_a_loss_alone(tmp_path):
    model = tiny_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    settings = {"probes": ("smoothness",), "batch": gpt_batch(99), "loss_fn": gpt_loss}
    with watch(model, optimizer, tmp_path, **settings) as monitor:
        for number in range(2):
            gpt_loss(model, gpt_batch(number)).backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.01  # the second step of a warmup
    first, second = (record["values"].keys() for record in records(tmp_path, "values"))
    assert first == {"probe_loss"}
    assert second == QUANTITIES
    assert monitor.latest["local_smoothness"][""] > 0


def test_several_optimizers_and_one_that_is_not_known():
    for pair in (("SGD", "AdamW"), ("Muon", "AdamW")):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        kinds = [getattr(torch.optim, name) for name in pair]
        both = [
            kinds[0]([model[0].weight, model[1].weight], lr=0.01),
            kinds[1]([model[0].bias, model[1].bias], lr=0.02),
        ]
        settings = {"batch": torch.randn(5, 4), "loss_fn": quadratic}
        with watch(model, both, probes=("smoothness",), **settings) as monitor:
            for _ in range(2):
                quadratic(model, torch.randn(5, 4)).backward()
                for optimizer in both:
                    optimizer.step()
                    optimizer.zero_grad()
        assert monitor.latest["local_smoothness"][""] > 0
        assert ("preconditioned_local_smoothness" in monitor.latest) == (pair[0] == "SGD")


def test_gradients_that_are_still_scaled_give_no_preconditioner():
    model = nn.Linear(4, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    settings = {"probes": ("smoothness",), "batch": torch.randn(3, 4), "loss_fn": quadratic}
    for fused in (True, False):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        with watch(model, optimizer, **settings) as monitor:
            scaler.scale(quadratic(model, torch.ones(3, 4))).backward()
            scaler.step(optimizer)
            scaler.update()
        assert monitor.latest["local_smoothness"][""] > 0
        assert ("preconditioned_local_smoothness" in monitor.latest) == (not fused)


def test_a_model_that_has_no_loss_is_told_so_and_the_rest_goes_on(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, probes=("smoothness", "gradients")) as monitor:
        for number in range(2):
            model(torch.ones(2, 3)).sum().backward()
            if number == 0:
                with pytest.warns(RuntimeWarning, match="probe smoothness was switched off: MissingLoss"):
                    optimizer.step()
            else:
                optimizer.step()
    assert set(monitor.latest) == {"grad_norm"}


class Refusing(Probe):
    """Needs the batch, and cannot take a part of it."""

    name, every, needs = "refusing", 1, frozenset(("batch",))

    def after(self, moment):
        if moment.step == 0:
            raise ValueError("the whole batch, please")
        return {}


def test_the_batch_is_the_same_before_and_after_the_step_whatever_others_do(tmp_path):
    found = []
    for others in ([], [Refusing()]):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        smoothness = resolve(["smoothness"])
        with Monitor(model, optimizer, tmp_path, probes=[*others, *smoothness], budget=math.inf) as monitor:
            train(model, optimizer, range(1))
        found.append(monitor.latest)
    assert found[0] == found[1]


class Stumbling(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 0.5:
            raise ZeroDivisionError
        return super().step(closure)


def test_an_exception_in_the_step_leaves_nothing_behind():
    model = nn.Linear(4, 2)
    optimizer = Stumbling(model.parameters(), lr=0.1)
    settings = {"batch": torch.randn(3, 4), "loss_fn": quadratic}
    with watch(model, optimizer, probes=("smoothness",), **settings) as monitor:
        for _ in range(2):
            quadratic(model, torch.randn(3, 4)).backward()
            optimizer.param_groups[0]["lr"] = 0.5
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1
            optimizer.step()
            assert monitor.latest["local_smoothness"][""] > 0
            assert monitor._probes[0]._measured is None
    assert monitor.step == 2


def test_it_is_asked_for_by_name_alone():
    for preset in ("default", "all", "qi"):
        assert "smoothness" not in [probe.name for probe in resolve(preset)]
    (probe,) = resolve(["smoothness"])
    assert set(probe.quantities) == QUANTITIES
    assert probe.needs == {"loss"}


def test_the_page_of_a_run_shows_it(tmp_path):
    model = tiny_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"probes": ("curvature", "smoothness"), "batch": gpt_batch(99), "loss_fn": gpt_loss}
    with watch(model, optimizer, tmp_path, **settings) as monitor:
        for number in range(5):
            optimizer.zero_grad()
            loss = gpt_loss(model, gpt_batch(number))
            loss.backward()
            optimizer.step()
            monitor.log(loss)
    grids = load_run(tmp_path).grids
    for quantity in QUANTITIES:
        assert grids[quantity].is_global
        assert grids[quantity].steps.tolist() == list(range(5))
    page = write_run_report([tmp_path], tmp_path).read_text(encoding="utf-8")
    titles = ("local smoothness", "preconditioned local smoothness", "loss of the probe batch")
    for title in (*titles, "rounding in the local smoothness"):
        assert f"<summary>{title}" in page


def run(way, folder=None, *, rank=0, size=1):
    """Train on batches that are spread over processes; the probe's batch is, too."""
    model = spread(make_transformer(dtype=torch.float64), way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_of(called, tokens):
        return F.cross_entropy(called(tokens).flatten(0, 1), (tokens.roll(1, 1) % CLASSES).flatten())

    def part(number):
        generator = torch.Generator().manual_seed(number)
        return torch.randint(VOCABULARY, (4, 6), generator=generator).chunk(size)[rank]

    def steps():
        for number in range(2):
            optimizer.zero_grad()
            loss_of(model, part(number)).backward()
            optimizer.step()

    if folder is None:
        steps()
        return whole(model), {}
    probes = ("smoothness", "curvature")
    with watch(model, optimizer, folder, probes=probes, batch=part(99), loss_fn=loss_of) as monitor:
        steps()
    return whole(model), monitor.latest


def work(rank, root):
    for way in ("ddp", "fsdp"):
        bare, _ = run(way, rank=rank, size=dist.get_world_size())
        seen, latest = run(way, Path(root, way), rank=rank, size=dist.get_world_size())
        assert all(torch.equal(bare[name], seen[name]) for name in bare), f"{way}: training differs"
        torch.save(latest, Path(root, f"{way}-{rank}.pt"))


@pytest.mark.filterwarnings("default")
def test_many_processes_measure_what_one_does(tmp_path):
    spawn(work, 2, str(tmp_path))
    _, expected = run("none", tmp_path / "one")
    for way in ("ddp", "fsdp"):
        assert not records(tmp_path / way, "notice")
        for rank in range(2):
            found = torch.load(tmp_path / f"{way}-{rank}.pt")
            for quantity in QUANTITIES - {"smoothness_rounding"}:
                assert found[quantity][""] == pytest.approx(expected[quantity][""], rel=1e-5), quantity
