"""Hooks come off whatever happens, and modules that take none are passed over."""

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from warmfree.measure.activations import watch_activations
from warmfree.measure.attention import watch_attention
from warmfree.measure.blocks import BlockQuantities
from warmfree.measure.health import gradient_norms, weight_norms
from warmfree.measure.hooks import hooked
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.microbatches import watch_microbatches
from warmfree.measure.undisturbed import undisturbed


def encoder():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers)


def measure_outputs(model):
    batch = torch.randn(2, 3, 8)
    BlockQuantities(model).measure(lambda: model(batch).square().mean())
    return undisturbed(model)


WATCHES = {
    "activations": watch_activations,
    "attention": watch_attention,
    "inputs": watch_inputs,
    "blocks": measure_outputs,
    "microbatches": lambda model: watch_microbatches(model.named_parameters()),
}


def count_hooks(model):
    of_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return of_modules + sum(len(weight._backward_hooks or ()) for weight in model.parameters())


@pytest.mark.parametrize("name", WATCHES)
def test_an_interrupt_while_hooks_are_registered_leaves_none(name, monkeypatch):
    model, calls = encoder(), []

    def interrupted(register):
        def run(*args, **kwargs):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return register(*args, **kwargs)

        return run

    for owner, method in (
        (nn.Module, "register_forward_hook"),
        (nn.Module, "register_forward_pre_hook"),
        (torch.Tensor, "register_hook"),
    ):
        monkeypatch.setattr(owner, method, interrupted(getattr(owner, method)))
    with pytest.raises(KeyboardInterrupt), WATCHES[name](model):
        pass
    assert len(calls) == 2
    assert count_hooks(model) == 0


@pytest.mark.parametrize("name", ["activations", "attention", "inputs", "microbatches"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_hooks_are_removed_leaves_none(name, when, monkeypatch):
    model, calls, remove = encoder(), [], RemovableHandle.remove

    def interrupted(handle):
        calls.append(None)
        if when == "after" or len(calls) != 3:
            remove(handle)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt), WATCHES[name](model):
        assert count_hooks(model) > 0
    assert count_hooks(model) == 0


@pytest.mark.parametrize("name", WATCHES)
def test_an_exception_inside_leaves_none(name):
    model = encoder()
    with pytest.raises(ValueError, match="mine"), WATCHES[name](model):  # noqa: PT012
        assert name == "blocks" or count_hooks(model) > 0
        raise ValueError("mine")
    assert count_hooks(model) == 0


def test_a_module_that_refuses_one_hook_has_none_and_others_have_theirs():
    class Proud(nn.Identity):
        def register_forward_hook(self, *args, **kwargs):
            raise TypeError("no hooks here")

    model, seen = nn.Sequential(Proud(), nn.Identity()), []

    def register(name, module):
        yield module.register_forward_pre_hook(lambda *_: seen.append(f"into {name}"))
        yield module.register_forward_hook(lambda *_: seen.append(f"out of {name}"))

    with hooked(dict(model.named_modules()), register):
        model(0)
    assert seen == ["into ", "into 1", "out of 1", "out of "]
    assert count_hooks(model) == 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj = nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8))

    def forward(self, x):
        query, key = (project(x).unflatten(-1, (2, 4)).mT for project in (self.q_proj, self.k_proj))
        return nn.functional.scaled_dot_product_attention(query, key, key).mT.flatten(2)


def test_what_is_around_torchscript_is_seen():
    script = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model, batch = nn.Sequential(nn.Linear(8, 8), script, nn.ReLU(), Attention()), torch.randn(2, 3, 8)
    expected = model(batch)
    with (
        undisturbed(model),
        torch.no_grad(),
        watch_activations(model) as activations,
        watch_attention(model) as attention,
        watch_inputs(model) as inputs,
    ):
        found = model(batch)
    assert torch.equal(found, expected)
    assert list(activations.dead_units()) == ["2"]
    assert activations.first_nonfinite() is None
    assert list(attention) == ["3"]
    assert list(inputs) == ["0", "3.q_proj"]
    with watch_microbatches(model.named_parameters()) as seen:
        for _ in range(2):
            model(batch).square().mean().backward()
    assert seen.estimate(samples=1).keys() == dict(model.named_parameters()).keys()
    assert gradient_norms(model.named_parameters()).keys() == weight_norms(model.named_parameters()).keys()
    assert count_hooks(model) == 0
