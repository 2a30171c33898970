"""The probe batch: given, or captured from training without a trace."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from warmfree.monitor.batch import ProbeBatch, loss_in, plain
from warmfree.monitor.capture import Capture


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, labels=None):
        y = self.linear(x)
        return {"logits": y, "loss": None if labels is None else (y - labels).square().mean()}


def test_the_first_training_call_is_kept_and_narrowed():
    model = WithLoss()
    capture = Capture(model, samples=2, keep_batch=True)
    x, labels = torch.randn(5, 3), torch.randn(5, 2)
    model.eval()
    model(torch.zeros(5, 3))
    model.train()
    with torch.no_grad():
        model(torch.zeros(5, 3))
    assert capture.batch is None
    assert capture.calls == 0
    expected = model(x, labels=labels)["loss"]
    model(torch.zeros(5, 3), labels=labels)
    batch = capture.batch
    first = x[:2].clone()
    x.zero_()  # a loader may reuse its buffers
    assert torch.equal(batch.run(model)["logits"], model(first)["logits"])
    assert batch.loss(model).item() == pytest.approx(model(first, labels=labels[:2])["loss"].item())
    losses = capture.take_losses()
    assert len(losses) == 5  # the calls just above too: the model is in training mode
    assert losses[0] == expected
    assert not losses[0].requires_grad
    capture.close()
    assert not model._forward_hooks
    assert not model._forward_hooks_with_kwargs


def test_nested_inputs_and_other_objects():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1))
    seen = []
    model.forward = lambda pair, *, mask, flag: seen.append((pair, mask, flag)) or pair[0].sum()
    capture = Capture(model, samples=1, keep_batch=True)
    model([torch.ones(4, 2), (torch.ones(4), "text")], mask=torch.ones(7), flag=True)
    capture.close()
    seen.clear()
    capture.batch.run(model)
    (pair, mask, flag) = seen[0]
    assert pair[0].shape == (1, 2)
    assert pair[1][0].shape == (1,)
    assert pair[1][1] == "text"
    assert mask.shape == (7,)  # not the batch's size: left whole
    assert flag is True


def test_autocast_is_repeated():
    model = nn.Linear(3, 2)
    capture = Capture(model, samples=1, keep_batch=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(2, 3))
    capture.close()
    with capture.batch.precision():
        assert capture.batch.run(model).dtype == torch.bfloat16


def test_given_batches():
    model = nn.Linear(3, 2)
    x = torch.randn(9, 3)
    for given in (x, (x,), [x], {"input": x}):
        batch = ProbeBatch.given(given, None, samples=4)
        assert batch.run(model).shape == (4, 2)
        with pytest.raises(ValueError, match="pass loss_fn="):
            batch.loss(model)
    batch = ProbeBatch.given("anything", lambda m, b: m(x).sum() * len(b), samples=4)
    assert batch.loss(model) == batch.run(model) == model(x).sum() * 8


def test_losses_in_outputs():
    loss = torch.tensor(1.0)
    assert loss_in(loss) is loss
    assert loss_in({"loss": loss}) is loss
    assert loss_in(SimpleNamespace(loss=loss)) is loss
    for output in (
        torch.ones(2),
        torch.tensor(3),
        {"logits": loss},
        None,
        (loss,),
        SimpleNamespace(loss=None),
    ):
        assert loss_in(output) is None


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_models_are_seen_from_outside(how):
    model = WithLoss()
    torch._dynamo.reset()
    called = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how == "in place":
        model.compile(backend="eager")
    x, labels = torch.randn(5, 3), torch.randn(5, 2)
    called(x, labels=labels)
    with torch.compiler.set_stance("fail_on_recompile"):
        capture = Capture(called, samples=2, keep_batch=True)
        called(x, labels=labels)
        capture.close()
        called(x, labels=labels)
    assert capture.calls == 1
    assert plain(called) is model
    if how == "in place":
        assert model._compiled_call_impl.__name__ != "_enter"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_module_that_was_compiled_behind_our_back_still_trains(when):
    model = WithLoss()
    torch._dynamo.reset()
    if when == "before":
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(5, 3), labels=torch.randn(5, 2))
    capture = Capture(model, samples=2, keep_batch=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x, labels = torch.randn(5, 3), torch.randn(5, 2)
    compiled(x, labels=labels)
    assert capture.calls == 0
    capture.close()
