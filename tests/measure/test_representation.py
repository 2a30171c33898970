"""Representation changes against modules run with new and old weights; predictions against simulated steps."""

import copy
import math
from typing import Any

import pytest
import torch
from cases import CASES
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from processes import spawn
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.representation import (
    input_overlap,
    mean_square_cosine,
    predicted_rrc,
    relative_change,
    representation_changes,
)
from warmfree.measure.undisturbed import undisturbed
from warmfree.measure.updates import UpdateProbe

EVERYTHING = 1_000_000


class Conv1D(nn.Module):
    """Transformers' linear layer: weight (in, out)."""

    def __init__(self, out: int, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features, out)), nn.Parameter(torch.ones(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


def stir(model: nn.Module, size: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise.to(weight.dtype), alpha=size)


def exact(before: nn.Module, after: nn.Module, inputs: Tensor) -> float:
    """Run both modules; of the outputs the bias is taken off again."""
    with torch.no_grad():
        old, new = before(inputs), after(inputs)
        for module, outputs in ((before, old), (after, new)):
            if getattr(module, "bias", None) is not None:
                convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
                dims = module.weight.ndim - 2 if convolution else 0
                outputs -= module.bias.view(-1, *[1] * dims)
    return float((new - old).norm() / old.norm())


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "linear-vector": (nn.Linear(6, 1, bias=False), (6,)),
    "Conv1D": (Conv1D(5, 4), (2, 3, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=2, padding_mode="circular"), (2, 3, 7, 8)),
    "conv2d-same": (nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="reflect"), (2, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), bias=False), (2, 2, 3, 4, 3)),
    "conv1d-unbatched": (nn.Conv1d(4, 6, 3), (4, 9)),
    "embedding": (nn.Embedding(7, 4, padding_idx=2), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rrc_is_the_change_of_the_modules_outputs(name: str) -> None:
    layer, shape = LAYERS[name]
    before = copy.deepcopy(layer).double()
    after = copy.deepcopy(before)
    stir(after)
    inputs = torch.randn(shape, dtype=torch.float64)
    if name == "embedding":
        inputs = torch.randint(5, shape)
    expected = exact(before, after, inputs)
    with torch.no_grad(), watch_inputs(before, tokens=EVERYTHING) as seen:
        before(inputs)
    old = before.weight.detach()
    change = after.weight.detach() - old
    assert relative_change(change, old, seen[""], before) == pytest.approx(expected, rel=1e-12)
    model = nn.Sequential(copy.deepcopy(before))
    probe = UpdateProbe(model)
    probe.snapshot()
    model[0].load_state_dict(after.state_dict())
    found = representation_changes(model, {"0": seen[""]}, probe)["0"]
    assert found.rrc == pytest.approx(expected, rel=1e-12)
    assert found.relative == pytest.approx(float(change.norm() / old.norm()), rel=1e-12)


@pytest.mark.parametrize("shape", [{}, {"kdim": 5, "vdim": 6}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_projections_have_queries_keys_and_values_of_their_own(
    shape: dict[str, int], batch_first: bool
) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, **shape).double()
    sizes = (8, shape.get("kdim", 8), shape.get("vdim", 8))
    given = [torch.randn(3, 4, size, dtype=torch.float64) for size in sizes]
    probe = UpdateProbe(layer)
    with torch.no_grad(), watch_inputs(layer, tokens=EVERYTHING) as seen:
        layer(given[0], given[1], value=given[2], need_weights=False)
    probe.snapshot()
    old = copy.deepcopy(layer)
    stir(layer)
    found = representation_changes(layer, seen, probe)
    assert found.keys() == {"[q]", "[k]", "[v]"}
    for index, (letter, inputs) in enumerate(zip("qkv", given, strict=True)):
        pair = [getattr(module, f"{letter}_proj_weight") for module in (old, layer)]
        if not shape:
            pair = [module.in_proj_weight[8 * index : 8 * index + 8] for module in (old, layer)]
        before, after = (inputs @ weight.detach().mT for weight in pair)
        expected = float((after - before).norm() / before.norm())
        assert found[f"[{letter}]"].rrc == pytest.approx(expected, rel=1e-12)
        assert found[f"[{letter}]"].fan_in == inputs.shape[-1]


@pytest.mark.parametrize("name", CASES)
def test_rrc_is_exact_in_whole_models(name: str) -> None:
    case = CASES[name]()
    full: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: full.setdefault(name, []).append(given[0])
        )
        for name, module in case.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) or type(module).__name__ == "Conv1D"
    ]
    with undisturbed(case.model), torch.no_grad(), watch_inputs(case.model, tokens=EVERYTHING) as seen:
        case.forward()
    for handle in handles:
        handle.remove()
    probe, old = UpdateProbe(case.model), copy.deepcopy(case.model)
    probe.snapshot()
    stir(case.model)
    found = representation_changes(case.model, seen, probe)
    old_modules, modules = dict(old.named_modules()), dict(case.model.named_modules())
    expected = dict[str, float]()
    for layer, given in full.items():
        inputs = torch.cat(
            [part.flatten(0, -2) if part.is_floating_point() and part.ndim < 4 else part for part in given]
        )
        if found.keys() & {layer + "[q]"}:
            for index, letter in enumerate("qkv"):
                weights = [modules_[layer].weight for modules_ in (old_modules, modules)]
                outs = [
                    inputs @ (weight if type(modules[layer]).__name__ == "Conv1D" else weight.mT)
                    for weight in weights
                ]
                old_out, new_out = (out.detach().chunk(3, dim=-1)[index] for out in outs)
                expected[f"{layer}[{letter}]"] = float((new_out - old_out).norm() / old_out.norm())
        else:
            expected[layer] = exact(old_modules[layer], modules[layer], inputs)
    assert expected
    assert expected.keys() <= found.keys()
    assert all(
        key.endswith(("[q]", "[k]", "[v]")) for key in found.keys() - expected.keys()
    )  # nn.MultiheadAttention
    for key, value in expected.items():
        assert found[key].rrc == pytest.approx(value, rel=1e-12)
        assert found[key].predicted(samples=30) > 0


def test_names_of_what_is_measured() -> None:
    case = CASES["gpt"]()
    with undisturbed(case.model), torch.no_grad(), watch_inputs(case.model) as seen:
        case.forward()
    probe = UpdateProbe(case.model)
    probe.snapshot()
    found = representation_changes(case.model, seen, probe)
    assert set(found) == {"tokens"} | {
        f"blocks.{block}.{layer}"
        for block in range(2)
        for layer in (
            "attention.qkv[q]",
            "attention.qkv[k]",
            "attention.qkv[v]",
            "attention.out",
            "mlp.up",
            "mlp.out",
        )
    }
    assert all(change.rrc == change.relative == 0.0 for change in found.values())


def test_what_was_not_called_or_not_copied_is_not_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    probe = UpdateProbe(model, names=["1.weight"])
    probe.snapshot()
    assert representation_changes(model, {"0": torch.ones(1, 2)}, probe) == {}
    assert representation_changes(model, {"1": torch.ones(1, 2)}, probe)["1"].rrc == 0.0
    assert representation_changes(nn.LayerNorm(2), {}, probe) == {}


def test_tied_weights_change_both_layers() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    probe = UpdateProbe(model)
    with torch.no_grad(), watch_inputs(model) as seen:
        model(torch.arange(7))
    probe.snapshot()
    model[0].weight.data.mul_(1.25)
    found = representation_changes(model, seen, probe)
    assert {name: pytest.approx(change.rrc) for name, change in found.items()} == {"0": 0.25, "1": 0.25}
    assert (found["0"].fan_in, found["1"].fan_in) == (7, 4)


def test_zero_weights_and_numbers_that_are_not() -> None:
    layer, inputs = nn.Linear(3, 2), torch.ones(4, 3)
    zero, some = torch.zeros(2, 3), torch.ones(2, 3)
    assert relative_change(zero, zero, inputs, layer) == 0.0
    assert relative_change(some, zero, inputs, layer) == math.inf
    assert math.isnan(relative_change(zero, some, inputs * math.nan, layer))
    assert math.isnan(relative_change(some * math.nan, some, inputs, layer))
    model = nn.Sequential(layer)
    probe = UpdateProbe(model)
    probe.snapshot()
    found = representation_changes(model, {"0": inputs * math.nan}, probe)["0"]
    assert math.isnan(found.rrc)
    assert math.isnan(found.overlap)
    assert found.relative == 0.0
    for bad in (torch.zeros(5, 3), torch.ones(1, 3), torch.ones(2, 3, 4, 4)):
        assert math.isnan(input_overlap(bad))


def test_half_precision_activations_are_read_in_the_weights_precision() -> None:
    layer = nn.Linear(8, 8).bfloat16()
    inputs, change = torch.randn(5, 8).bfloat16(), torch.randn(8, 8).bfloat16() * 0.01
    wide = relative_change(change.double(), layer.weight.detach().double(), inputs.double(), layer)
    assert relative_change(change, layer.weight, inputs, layer) == pytest.approx(wide, rel=1e-5)


def test_overlap_is_the_mean_over_pairs() -> None:
    for shape in ((6, 20), (20, 6)):
        inputs = torch.randn(shape, dtype=torch.float64) + 0.5
        pairs = [(a @ b) ** 2 for i, a in enumerate(inputs) for j, b in enumerate(inputs) if i != j]
        expected = torch.stack(pairs).mean() / inputs.square().sum(1).mean() ** 2
        assert input_overlap(inputs) == pytest.approx(float(expected), rel=1e-12)
    indices = torch.tensor([0, 3, 3, 1, 3])
    assert input_overlap(indices) == pytest.approx(input_overlap(F.one_hot(indices).double()))
    wide = torch.randn(4000, 50, dtype=torch.float64)
    assert input_overlap(wide) == pytest.approx(1 / 50, rel=0.02)


def unit_inputs(count: int, dim: int, *, mean: float) -> Tensor:
    """Inputs of length 1, of which the fraction `mean` of the squared length is their common mean."""
    x = F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1)
    shared = F.normalize(torch.randn(dim, dtype=torch.float64), dim=0)
    return F.normalize(math.sqrt(mean) * shared + math.sqrt(1 - mean) * x, dim=1)


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("dim", "batch"), [(64, 32), (64, 512), (256, 512)])
def test_prediction_for_noise_holds_within_5_percent_with_the_measured_overlap(
    mean: float, dim: int, batch: int
) -> None:
    """Steps along the mean of gradients delta_b x_b^T of 40 neurons, delta_b white noise."""
    squares, overlaps, steps, neurons = [], [], 20, 40
    for _ in range(steps):
        x = unit_inputs(batch, dim, mean=mean)
        gradient = torch.randn(neurons, batch, dtype=torch.float64) @ x
        # Of random weights of norm 1 the mean |W x|^2 is |x|^2 / C = 1 / C.
        squares.append(float((x @ gradient.mT).square().sum(1).mean() / gradient.square().sum() * dim))
        overlaps.append(input_overlap(x))
    rrc = math.sqrt(sum(squares) / steps)
    overlap = sum(overlaps) / steps
    assert predicted_rrc(1.0, fan_in=dim, samples=batch, overlap=overlap) == pytest.approx(rrc, rel=0.05)
    isotropic = predicted_rrc(1.0, fan_in=dim, samples=batch)
    if mean == 0:
        assert isotropic == pytest.approx(rrc, rel=0.05)
    else:
        assert isotropic < rrc


@pytest.mark.parametrize("snr", [0.0, 0.01, 1.0, 10.0])
@pytest.mark.parametrize("batch", [16, 256])
def test_cosines_of_isotropic_gradients(snr: float, batch: int) -> None:
    dim, trials = 128, 60
    signal = math.sqrt(snr * dim) * F.normalize(torch.ones(dim, dtype=torch.float64), dim=0)
    found = [mean_square_cosine(signal + torch.randn(batch, dim, dtype=torch.float64)) for _ in range(trials)]
    expected = (snr + 1 / batch + 1 / dim) / (1 + snr)
    assert sum(found) / trials == pytest.approx(expected, rel=0.04)
    rrc = predicted_rrc(1.0, fan_in=dim, samples=batch, snr=snr)
    assert rrc == pytest.approx(math.sqrt(dim * expected), rel=1e-12)


def test_the_cosine_identity_is_exact() -> None:
    """RRC^2 = (eta^2 |x|^2 / E[y^2]) E[cos^2(g_B, g_b)] for |delta_b| = 1 and inputs of one length."""
    layer = nn.Linear(20, 1, bias=False).double()
    x = 3 * unit_inputs(30, 20, mean=0.4)
    gradients = (torch.randint(2, (30, 1)).double() * 2 - 1) * x
    mean = gradients.mean(0)
    step = 0.01
    change = -step * mean / mean.norm()
    outputs = layer(x).detach().square().mean()
    expected = math.sqrt(step**2 * 9 / float(outputs) * mean_square_cosine(gradients))
    assert relative_change(change[None], layer.weight, x, layer) == pytest.approx(expected, rel=1e-12)


def test_limits_of_the_prediction() -> None:
    options: dict[str, Any] = {"fan_in": 64, "samples": 32}
    assert predicted_rrc(0.0, **options) == 0.0
    assert predicted_rrc(0.1, **options, snr=math.inf) == pytest.approx(0.1 * 8)
    assert predicted_rrc(0.1, **options, snr=1e12, overlap=0.0) == pytest.approx(0.1 * 8)
    values = [predicted_rrc(0.1, **options, snr=snr) for snr in (0.0, 0.01, 0.1, 1.0, 10.0)]
    assert values == sorted(values)
    assert math.isnan(predicted_rrc(math.nan, **options))
    assert math.isnan(mean_square_cosine(torch.zeros(3, 4)))
    assert mean_square_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == 1.0


def _sharded(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    results = []
    for way in ("none", "fsdp", "tp"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).double()
        if way == "fsdp":
            fully_shard(model, mesh=mesh)
        elif way == "tp":
            parallelize_module(model, mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})
        probe, optimizer = UpdateProbe(model), torch.optim.SGD(model.parameters(), lr=0.1)
        with undisturbed(model), torch.no_grad(), watch_inputs(model, tokens=6) as seen:
            model(torch.arange(14) % 7)
        model.zero_grad()
        model(torch.arange(14) % 7).square().mean().backward()
        probe.snapshot()
        optimizer.step()
        results.append(representation_changes(model, seen, probe))
    assert results[0].keys() == {"0", "1", "3"}
    for found in results[1:]:
        assert found.keys() == results[0].keys()
        for name, change in results[0].items():
            assert found[name].rrc == pytest.approx(change.rrc, rel=1e-9)
            assert found[name].relative == pytest.approx(change.relative, rel=1e-9)
            assert found[name].overlap == pytest.approx(change.overlap, rel=1e-9)


def test_sharded_layers_measure_as_whole_ones() -> None:
    spawn(_sharded, 2)
