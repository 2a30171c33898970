"""Trial training leaves no trace: not in weights, gradients, hooks, graphs or casts."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import warmfree
from traces import Traces
from warmfree.measure.unchanged import bare, unchanged


def make_run(*, steps=1, momentum=0.9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for _ in range(steps):
        train(model, optimizer)
    return model, optimizer


def train(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, GeneratorExit])
def test_steps_in_it_never_happened(steps, error):
    model, optimizer = make_run(steps=steps)
    before = Traces(model, optimizer)
    try:
        with unchanged(model, optimizer) as session:
            assert all(weight.grad is None for weight in model.parameters())
            assert session.weights == list(model.parameters())
            for _ in range(3):
                train(model, optimizer)
            optimizer.param_groups[0]["lr"] = 3.0
            model.train(False)
            if error is not None:
                raise error
    except BaseException as raised:
        assert type(raised) is error  # noqa: PT017
    assert before.differences(Traces(model, optimizer)) == []


def test_what_cannot_be_kept_is_refused_before_anything_is_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooked = optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="uninitialized parameter"), unchanged(model, optimizer):
        pass
    assert hooked.id in optimizer._optimizer_step_pre_hooks
    assert torch.is_grad_enabled()


def test_graphs_that_were_built_before_can_be_used_afterwards():
    (model, optimizer), (twin, _) = make_run(), make_run()
    model[1].eval(), twin[1].eval()  # its graph holds the buffers
    inputs = torch.randn(5, 4)
    losses = []
    for one in (model, twin):
        torch.manual_seed(3)
        losses.append(one(inputs).square().mean())
    model[1].train()
    with unchanged(model, optimizer):
        for _ in range(2):
            train(model, optimizer)
    model.zero_grad(), twin.zero_grad()
    for loss in losses:
        loss.backward()
    for weight, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight.grad, theirs.grad)


def test_changes_after_it_are_still_found_out_by_graphs():
    model, optimizer = make_run()
    loss = model(torch.randn(5, 4)).square().mean()
    with unchanged(model, optimizer):
        train(model, optimizer)
    with torch.no_grad():
        model[3].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_of_steps_do_not_run_and_are_there_again():
    model, optimizer = make_run()
    wrapped = warmfree.wrap(torch.optim.SGD(model.parameters(), lr=0.1), [warmfree.optim.SpectralBound()])
    several = Several([torch.optim.SGD([weight], lr=0.1) for weight in model.parameters()])
    seen = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    for one in (optimizer, wrapped, wrapped.inner, several, *several.optimizers):
        one.register_step_pre_hook(lambda *_: seen.append("before"))
        one.register_step_post_hook(lambda *_: seen.append("after"))
    try:
        for one in (optimizer, wrapped, several):
            before = Traces(model, one)
            with unchanged(model, one):
                train(model, one)
            assert seen == []
            assert before.differences(Traces(model, one)) == []
        train(model, optimizer)
        assert sorted(seen) == ["after", "before", "global"]
    finally:
        handle.remove()


class Several(torch.optim.Optimizer):
    """Steps several optimizers, as one for matrices and one for the rest."""

    def __init__(self, optimizers):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {"lr": 0.1})
        self.optimizers = optimizers

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


def test_schedulers_do_not_notice():
    model, optimizer = make_run(steps=0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with unchanged(model, optimizer):
        train(model, optimizer)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()  # no step was made


def test_casts_under_autocast_do_not_outlive_it():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x).detach()
        with unchanged(model, optimizer):
            model(x).sum().backward()
            optimizer.step()
            with torch.no_grad():
                torch.clear_autocast_cache()
                model(x)
        after = model(x)
        assert torch.equal(after, expected)
        after.sum().backward()
    assert model.weight.grad is not None


def test_a_copy_is_made_once_as_long_as_nothing_has_moved():
    model, optimizer = make_run()
    other = copy.deepcopy(optimizer)
    with unchanged(model, optimizer) as session:
        first = session.kept_of(optimizer)
        assert session.kept_of(optimizer) is first
        assert session.kept_of(other) is not first
        session.moved = True
        assert session.kept_of(optimizer) is not first


def test_weights_of_no_module_and_modules_of_no_optimizer():
    model, extra = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Parameter(torch.ones(2))
    model[1].weight.grad = torch.ones(2, 2)
    extra.grad = torch.ones(2)
    optimizer = torch.optim.Adam([model[0].weight, extra], lr=0.1)
    gradients = model[1].weight.grad, extra.grad
    before = Traces(model, optimizer)
    with unchanged(model, optimizer) as session:
        assert [id(weight) for weight in session.weights] == [id(model[0].weight), id(extra)]
        (model(torch.ones(1, 2)) * extra).sum().backward()
        optimizer.step()
    assert before.differences(Traces(model, optimizer)) == []
    assert (model[1].weight.grad, extra.grad) == gradients


def test_bare_is_the_module_within_its_replica():
    model = nn.Linear(1, 1)
    assert bare(model) is model
