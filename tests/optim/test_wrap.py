"""Size controls around optimizers that know nothing of them."""

import copy

import pytest
import torch
from problems import assert_equal, backward, make_model, train, weights
from torch import nn

from warmfree import AdamW2, wrap
from warmfree.optim import AngularControl, NonFiniteGradientError, SpectralBound


def sigma(tensor):
    return torch.linalg.matrix_norm(tensor.detach().flatten(1), ord=2).item()


@pytest.mark.parametrize("tau", [0.01, 0.2])
def test_muon_is_bounded(tau):
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    optimizer = wrap(torch.optim.Muon(model.parameters(), lr=5.0, weight_decay=0.0), [SpectralBound(tau=tau)])
    for step in range(8):
        before = [sigma(weight) for weight in model.parameters()]
        torch.manual_seed(step)
        loss = model(torch.randn(16, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for weight, old in zip(model.parameters(), before, strict=True):
            assert sigma(weight) <= old * (1 + tau) * 1.002
        assert all(entries["factor"] < 1 for entries in optimizer.step_report.fetch().values())


def test_around_adamw_it_is_adamw2_without_decay():
    ours, theirs = make_model(torch.float64), make_model(torch.float64)
    train(
        ours,
        wrap(torch.optim.AdamW(ours.parameters(), 0.05, weight_decay=0.0), [SpectralBound(tau=0.01)]),
        10,
    )
    train(theirs, AdamW2(theirs.parameters(), 0.05, weight_decay=0.0, tau=0.01), 10)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_angular_control_keeps_norms_of_what_decays():
    model = make_model()
    norms = model[3].weight.detach().norm(dim=1)
    optimizer = wrap(torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1), [AngularControl()])
    train(model, optimizer, 10)
    torch.testing.assert_close(model[3].weight.detach().norm(dim=1), norms, rtol=1e-5, atol=0)


class Exploding(torch.optim.SGD):
    """Finite gradients, a non-finite step: an optimizer whose state has overflowed."""

    def step(self, closure=None):
        result = super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return result


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_nonfinite_update_is_undone_exactly(nonfinite):
    model = make_model()
    optimizer = wrap(Exploding(model.parameters(), lr=0.1), [SpectralBound()], nonfinite=nonfinite)
    before = weights(model)
    backward(model, 0)
    if nonfinite == "raise":
        with pytest.raises(NonFiniteGradientError, match=r"update in 0\.0"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
    assert_equal(before, weights(model))


def test_schedulers_and_groups_are_shared_with_the_wrapped_optimizer():
    model = make_model()
    inner = torch.optim.SGD(model[0].parameters(), lr=1.0)
    optimizer = wrap(inner, [SpectralBound()])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    train(model, optimizer, 1, scheduler=scheduler)
    assert inner.param_groups[0]["lr"] == pytest.approx(0.1)
    optimizer.add_param_group({"params": model[3].parameters(), "tau": 0.5})
    assert len(inner.param_groups) == len(optimizer.param_groups) == 2
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.01)
    train(model, optimizer, 1)


def test_a_checkpoint_through_dcp_holds_the_wrapped_state():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def build(model):
        return wrap(torch.optim.AdamW(model.parameters(), 0.05), [SpectralBound(tau=0.01)])

    model = make_model()
    optimizer = build(model)
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, optimizer)))
    train(model, optimizer, 3, start=4)
    resumed = make_model()
    again = build(resumed)
    resumed.load_state_dict(saved[0])
    set_optimizer_state_dict(resumed, again, saved[1])
    train(resumed, again, 3, start=4)
    assert_equal(weights(model), weights(resumed))


def test_a_checkpoint_read_into_a_template_without_the_wrapped_state_is_refused():
    model, other = make_model(), make_model()
    optimizer = wrap(torch.optim.AdamW(model.parameters(), 0.05), [SpectralBound(tau=0.01)])
    train(model, optimizer, 2)
    fresh = wrap(torch.optim.AdamW(other.parameters(), 0.05), [SpectralBound(tau=0.01)])
    saved, template = optimizer.state_dict(), fresh.state_dict()
    for key, entries in template[
        "state"
    ].items():  # what a sharded load does: it fills the entries that are there
        entries.update({name: saved["state"][key][name] for name in entries})
    with pytest.raises(ValueError, match="lacks entries of the wrapped AdamW"):
        fresh.load_state_dict(template)
    assert fresh.state[other[0].weight]["step"] == 0


def test_a_load_that_fails_halfway_changes_nothing():
    model = make_model()
    optimizer = wrap(AdamW2(model.parameters(), 1e-2), [AngularControl()])
    train(model, optimizer, 1)
    bad = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    bad["state"][0]["inner_entries"] -= 1
    del bad["state"][0]["inner.exp_avg"]
    with pytest.raises(ValueError, match="AdamW2"):
        optimizer.load_state_dict(bad)
    assert optimizer.state[model[0].weight]["turns"] == 2
    assert optimizer.inner.state[model[0].weight]["step"] == 2


def test_the_peak_is_the_lr_before_a_scheduler_lowered_it():
    model = make_model()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    torch.optim.lr_scheduler.LinearLR(inner, start_factor=0.01)
    assert wrap(inner, [AngularControl(schedule="linear")]).param_groups[0]["peak_lr"] == 1e-2


def test_a_refused_group_is_added_to_neither():
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model[0].parameters(), lr=1.0), [SpectralBound()])
    for options in ({"tau": -1.0}, {"split": 5}):
        with pytest.raises(ValueError, match=r"tau|split"):
            optimizer.add_param_group({"params": model[3].parameters(), **options})
        assert len(optimizer.param_groups) == len(optimizer.inner.param_groups) == 1
    optimizer.add_param_group({"params": model[3].parameters()})
    train(model, optimizer, 1)


def test_a_load_into_the_wrapped_optimizer_keeps_groups_shared():
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1), [SpectralBound()])
    optimizer.inner.load_state_dict(optimizer.inner.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = weights(model)
    train(model, optimizer, 1)
    assert_equal(before, weights(model))


def test_a_trained_optimizer_keeps_its_state_when_it_is_wrapped():
    model = make_model()
    inner = AdamW2(model.parameters(), 1e-2, tau=1e9)
    train(model, inner, 3)
    optimizer = wrap(inner, [AngularControl()])
    assert inner.state[model[0].weight]["step"] == 3
    train(model, optimizer, 1)
    assert inner.state[model[0].weight]["step"] == 4


def test_what_cannot_work_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="different kinds"):
        wrap(torch.optim.SGD(model.parameters(), lr=0.1), [SpectralBound(), SpectralBound()])
    with pytest.raises(ValueError, match="different kinds"):
        wrap(AdamW2(model.parameters(), tau=0.5), [SpectralBound()])
    with pytest.raises(ValueError, match="weight_decay"):
        wrap(torch.optim.SGD(model.parameters(), lr=0.1), [AngularControl()])
    with pytest.raises(ValueError, match="LBFGS"):
        wrap(torch.optim.LBFGS(model.parameters()), [SpectralBound()])
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1), [SpectralBound()])
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["tau"] = -1.0
    with pytest.raises(ValueError, match="tau"):
        optimizer.load_state_dict(bad)
    assert optimizer.param_groups[0]["tau"] > 0


def test_only_an_optimizer_can_be_wrapped():
    with pytest.raises(TypeError, match=r"needs a torch\.optim\.Optimizer, got Linear"):
        wrap(nn.Linear(2, 2), [SpectralBound()])
