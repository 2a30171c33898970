import math

import pytest
import torch
from cases import CASES
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.measure.activations import watch_activations
from warmfree.measure.undisturbed import undisturbed


def look(model, *inputs, **options):
    with torch.no_grad(), watch_activations(model, **options) as seen:
        outputs = model(*inputs)
    return seen, outputs


class Calls(nn.Module):
    """A function between two uses of its input, so that work in place would show."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        x = x * 1.0
        y = self.function(x)
        return y, x


FUNCTIONS = {
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "F.relu": F.relu,
    "F.relu inplace": lambda x: F.relu(x, inplace=True),
    "F.relu inplace positional": lambda x: F.relu(x, True),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "F.relu6": F.relu6,
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
    "F.elu": lambda x: F.elu(x, alpha=0.5),
    "F.elu inplace": lambda x: F.elu(x, inplace=True),
    "F.selu": F.selu,
    "F.celu": F.celu,
    "F.gelu": F.gelu,
    "F.gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": F.silu,
    "F.silu inplace": lambda x: F.silu(x, inplace=True),
    "F.mish": F.mish,
    "F.hardswish": F.hardswish,
    "F.hardtanh": F.hardtanh,
    "F.hardsigmoid": F.hardsigmoid,
    "F.softplus": F.softplus,
    "torch.tanh": torch.tanh,
    "Tensor.tanh_": lambda x: x.tanh_(),
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "input by keyword": lambda x: F.gelu(input=x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_units_are_dead_where_the_derivative_is_small_at_every_token(name):
    x = 8 * torch.randn(2, 3, 40, dtype=torch.float64) + torch.linspace(-20, 20, 40, dtype=torch.float64)
    seen, (outputs, kept) = look(Calls(FUNCTIONS[name]), x)
    point = x.clone().requires_grad_()
    expected = FUNCTIONS[name](point * 1.0)
    (slopes,) = torch.autograd.grad(expected.sum(), point)
    dead = (slopes.abs() < 1e-3).all(0).all(0).double().mean().item()
    assert seen.dead_units() == {"": pytest.approx(dead)}
    assert torch.equal(outputs, expected.detach())
    inplace = name.endswith("_") or "inplace" in name
    assert torch.equal(kept, outputs if inplace else x)
    if "leaky" in name:
        assert dead == 0
    if name == "torch.relu":
        assert 0.1 < dead < 0.5


def test_a_unit_that_one_token_wakes_is_alive():
    x = torch.full((4, 5, 3), -1.0)
    x[2, 3, 0] = 0.5
    assert look(Calls(torch.relu), x)[0].dead_units() == {"": pytest.approx(2 / 3)}


def test_the_threshold():
    x = torch.full((2, 1), -4.0)
    slope = abs(float(torch.autograd.functional.jacobian(F.gelu, x[0])))
    assert look(Calls(F.gelu), x, flat=slope * 1.01)[0].dead_units() == {"": 1.0}
    assert look(Calls(F.gelu), x, flat=slope * 0.99)[0].dead_units() == {"": 0.0}
    for flat in (0.0, 1.5):
        with pytest.raises(ValueError, match="flat must be a slope"):
            look(Calls(F.gelu), x, flat=flat)


def test_units_of_a_convolution_are_its_channels():
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 5), nn.ReLU(), nn.Tanh())
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-50.0, 0.0, 0.0, 0.0]))
        model[4].bias.copy_(torch.tensor([-50.0, -50.0, 50.0, 0.0, 0.0]))
    seen, _ = look(model, torch.randn(7, 1, 6, 6))
    found = seen.dead_units()
    assert (found["2"], found["5"]) == (0.25, 0.4)
    assert found["6"] == pytest.approx(0.2)  # saturated; a unit dead before it sits at tanh's steepest point
    line = nn.Sequential(nn.Conv1d(2, 3, 1), nn.SiLU())
    with torch.no_grad():
        line[0].bias.copy_(torch.tensor([-50.0, 0.0, 0.0]))
    assert look(line, torch.randn(5, 2, 8))[0].dead_units() == {"1": pytest.approx(1 / 3)}


def test_calls_of_one_module_count_together_and_passes_as_one_batch():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x), self.act(-x[..., :2])

    x = torch.tensor([[-1.0, -1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])
    model = Twice()
    assert look(model, x)[0].dead_units() == {"act": pytest.approx(2 / 6)}
    with torch.no_grad(), watch_activations(model) as seen:
        for row in x:
            model(row[None])
    assert seen.dead_units() == {"act": pytest.approx(2 / 6)}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_same_to_the_last_bit_and_nothing_stays(name):
    case = CASES[name](torch.float32)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undisturbed(case.model), torch.no_grad():
            plain = case.forward()
            with watch_activations(case.model) as seen:
                watched = case.forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert torch.equal(plain, watched)
    assert seen.dead_units()
    assert seen.first_nonfinite() is None
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_always_called


PLACES = {
    "gpt": ["blocks.0.mlp", "blocks.1.mlp"],
    "fused": ["blocks.0.mlp.1", "blocks.1.mlp.1"],
    "encoder": ["blocks.0", "blocks.1"],
    "hf_gpt2": ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"],
    "hf_llama": ["model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn"],
    "hf_vit": ["vit.layers.0.mlp.activation_fn", "vit.layers.1.mlp.activation_fn"],
    "mlp": ["1", "3"],
    "convnet": ["2", "4"],
}


@pytest.mark.parametrize("name", PLACES)
def test_activations_are_named_by_the_innermost_module(name):
    """Also under torch's fused paths, which would hide them."""
    case = CASES[name](torch.float32)
    with undisturbed(case.model), torch.no_grad(), watch_activations(case.model) as seen:
        case.forward()
    assert list(seen.dead_units()) == PLACES[name]


def test_a_composed_activation_of_transformers_is_taken_as_a_whole():
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-20, 20, 41, dtype=torch.float64)[None]
    for kind in ("NewGELUActivation", "QuickGELUActivation"):
        model = nn.Sequential(getattr(activations, kind)())
        point = x.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(model(point).sum(), point)
        assert look(model, x)[0].dead_units() == {"0": pytest.approx((slopes.abs() < 1e-3).double().mean())}


def test_dead_units_of_a_gpt_that_was_broken_on_purpose():
    case = CASES["gpt"](torch.float64)
    with torch.no_grad():
        case.model.blocks[1].mlp.up.bias[:16] = -1e3
    with undisturbed(case.model), torch.no_grad(), watch_activations(case.model) as seen:
        case.forward()
    assert seen.dead_units() == {"blocks.0.mlp": 0.0, "blocks.1.mlp": 0.25}


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_first_module_that_is_not_finite(value):
    case = CASES["gpt"](torch.float64)
    with torch.no_grad():
        case.model.blocks[1].mlp.up.weight[3, 2] = value
    with undisturbed(case.model), torch.no_grad(), watch_activations(case.model) as seen:
        case.forward()
    assert seen.first_nonfinite() == "blocks.1.mlp.up"


def test_after_an_exception_nothing_stays_and_the_watch_goes_on():
    class Fails(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                raise KeyError("no")
            return torch.relu(x)

    model = nn.Sequential(nn.ReLU(), nn.Sequential(Fails()))
    with torch.no_grad(), watch_activations(model) as seen:
        with pytest.raises(KeyError):
            model(torch.ones(1, 2))
        model(-torch.ones(1, 2))
    assert seen.dead_units() == {"0": 0.0, "1.0": 1.0}
    with pytest.raises(KeyError), watch_activations(model):
        model(torch.ones(1, 2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_watches_nest():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with torch.no_grad(), watch_activations(model) as outer, watch_activations(model[1]) as inner:
        model(torch.randn(5, 3))
    assert inner.dead_units()[""] == outer.dead_units()["1"]


def test_outside_of_the_model_nothing_is_seen():
    model = nn.Linear(2, 2)
    with torch.no_grad(), watch_activations(model) as seen:
        torch.relu(model(-torch.ones(1, 2)))
    assert seen.dead_units() == {}
    assert seen.first_nonfinite() is None
