"""The optimizer that takes another's place: its groups, and that it trains."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from processes import spawn
from warmfree import AdamW2, LionA, LionAR, RotationalAdamW, SizedOptimizer, parameter_groups
from warmfree.advice.translated import translated
from warmfree.advice.translation import translate_lr

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
TARGETS = ("AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW")


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs)),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6), Conv1D(6, 3))


def shape_of(optimizer: Optimizer) -> list[list[tuple[int, ...]]]:
    return [[tuple(weight.shape) for weight in group["params"]] for group in optimizer.param_groups]


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    wide = [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1]
    thin = [(name, weight) for name, weight in model.named_parameters() if weight.ndim < 2]
    return [
        {"params": wide, "lr": 4e-3, "betas": (0.8, 0.95), "maximize": True},
        {"params": thin, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("match", ["both", "rms", "angle"])
@pytest.mark.parametrize("to", TARGETS)
def test_groups_stay_and_each_is_translated_by_itself(to: str, match: Any) -> None:
    model = make_model()
    old = AdamW(two_groups(model), **ADAMW)
    new = translated(old, to, match=match, momentum=0.9)
    assert shape_of(new) == shape_of(old)
    for one, other in zip(old.param_groups, new.param_groups, strict=True):
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))
        assert one["param_names"] == other["param_names"]
        assert one["maximize"] == other["maximize"]
        settings = {name: one[name] for name in ADAMW}
        kept = match if one["weight_decay"] else "rms"
        kind = to if one["weight_decay"] else {"LionAR": "LionA", "RotationalAdamW": "AdamW2"}.get(to, to)
        expected = translate_lr(settings, kind, match=kept, momentum=0.9)
        assert {**expected.options, "lr": expected.lr}.items() <= other.items()
    assert new.param_groups[1]["weight_decay"] == 0.0
    if match != "angle":
        sizes = [math.sqrt(0.2 / 1.8) * 4, math.sqrt(0.1 / 1.9)]  # of steps, under the betas of each
        ratio = new.param_groups[0]["lr"] / new.param_groups[1]["lr"]
        assert ratio == pytest.approx(sizes[0] / sizes[1])


@pytest.mark.parametrize("to", TARGETS)
def test_it_trains_and_resumes(to: str) -> None:
    model, tokens = make_model(), torch.arange(6)
    optimizer = translated(AdamW(parameter_groups(model), **{**ADAMW, "lr": 1e-2}), to, model=model)
    assert type(optimizer).__name__ == to
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens % 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = translated(AdamW(parameter_groups(model), **ADAMW), to, model=model)
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]


def test_what_is_not_rotated_is_translated_as_for_liona() -> None:
    model = make_model()
    new = translated(AdamW(model.parameters(), **ADAMW), "LionAR", model=model, momentum=0.95)
    assert shape_of(new) == [[(6, 4)], [(6, 3)], [(7, 4), (6,), (6,), (6,), (3,)]]
    assert [group["out_dim"] for group in new.param_groups] == [0, 1, 0]
    turned, rest = translate_lr(ADAMW, "LionAR", momentum=0.95), translate_lr(ADAMW, "LionA", momentum=0.95)
    for group, expected in zip(new.param_groups, (turned, turned, rest), strict=True):
        assert {**expected.options, "lr": expected.lr}.items() <= group.items()
    # At a given weight decay the rotation has an lr of its own; the rest keeps the size of its steps.
    lab = translated(
        AdamW(model.parameters(), **ADAMW), "LionAR", model=model, match="angle", weight_decay=1.0
    )
    assert [group["lr"] for group in lab.param_groups] == pytest.approx([1e-4, 1e-4, 1e-3])
    assert [group["weight_decay"] for group in lab.param_groups][:2] == [1.0, 1.0]
    norms = model[0].weight.detach().norm(dim=1)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    rows, columns = model[1].weight.detach().norm(dim=1), model[3].weight.detach().norm(dim=0)
    new.step()
    assert not torch.allclose(model[0].weight.detach().norm(dim=1), norms, rtol=1e-5)
    torch.testing.assert_close(model[1].weight.detach().norm(dim=1), rows)
    torch.testing.assert_close(model[3].weight.detach().norm(dim=0), columns)


def test_without_a_model_embeddings_are_known_by_role_alone() -> None:
    model = make_model()
    flat = translated(AdamW(model.parameters(), **ADAMW), "RotationalAdamW")
    assert shape_of(flat)[0] == [(7, 4), (6, 4), (6, 3)]
    by_role = translated(AdamW(parameter_groups(model), **ADAMW), "RotationalAdamW")
    assert shape_of(by_role) == [[(7, 4)], [(6, 3)], [(6, 4)], [(6,), (6,), (6,), (3,)]]
    assert [group["role"] for group in by_role.param_groups] == ["vector", "matrix", "head", "vector"]
    assert by_role.param_groups[1]["out_dim"] == 1


@pytest.mark.parametrize("to", ["LionAR", "RotationalAdamW"])
def test_present_angles_are_those_of_each_group(to: str) -> None:
    model = make_model()
    adam = Adam(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="Ask for angle='present'"):
        translated(adam, to, model=model)
    new = translated(adam, to, model=model, angle="present")
    assert shape_of(new) == [[(6, 4)], [(6, 3)], [(7, 4), (6,), (6,), (6,), (3,)]]
    for group in new.param_groups[:2]:
        (weight,) = group["params"]
        spread = weight.detach().square().mean(dim=1 - group["out_dim"]).sqrt()
        angles = torch.atan(1e-3 * math.sqrt(0.1 / 1.9) / spread)
        product = angles.square().mean() / (2 * 0.1 / 1.9)
        assert group["lr"] * group["weight_decay"] == pytest.approx(float(product), rel=1e-5)
    assert (new.param_groups[2]["lr"], new.param_groups[2]["weight_decay"]) == (1e-3, 0.0)
    # Groups without decay stay unturned where another has some.
    some = translated(AdamW(two_groups(model), **ADAMW), to, model=model, angle="present")
    assert some.param_groups[-1]["weight_decay"] == 0.0


def test_weight_decay_goes_to_the_groups_that_have_it_or_to_all() -> None:
    model = make_model()
    some = translated(AdamW(two_groups(model), **ADAMW), LionA, match="rms", weight_decay=0.3)
    assert [group["weight_decay"] for group in some.param_groups] == [0.3, 0.0]
    every = translated(Adam(model.parameters()), LionA, match="rms", weight_decay=0.3)
    assert [group["weight_decay"] for group in every.param_groups] == [0.3]
    turned = translated(Adam(model.parameters()), LionAR, match="rms", weight_decay=0.3)
    assert [group["weight_decay"] for group in turned.param_groups] == [0.3, 0.3]


def test_options_for_the_constructor() -> None:
    model = make_model()
    optimizer = translated(AdamW(model.parameters(), **ADAMW), AdamW2, tau=0.01, nonfinite="raise")
    assert (optimizer.param_groups[0]["tau"], optimizer.nonfinite) == (0.01, "raise")
    assert optimizer.defaults["weight_decay"] == 0.1
    for options in ({"lr": 1.0}, {"betas": (0.9, 0.9)}):
        with pytest.raises(ValueError, match="come from the given optimizer"):
            translated(AdamW(model.parameters(), **ADAMW), AdamW2, **options)
    with pytest.raises(ValueError, match="optimizers that rotate"):
        translated(AdamW(model.parameters(), **ADAMW), AdamW2, angle="present")


class Accelerated(Optimizer):
    """As Accelerate wraps an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


def test_wrapped_optimizers_and_optimizers_of_this_package() -> None:
    model = make_model()
    expected = translated(AdamW(model.parameters(), **ADAMW), LionA).param_groups[0]
    for source in (
        Accelerated(AdamW(model.parameters(), **ADAMW)),
        RotationalAdamW(model.parameters(), **ADAMW),
    ):
        found: SizedOptimizer = translated(source, LionA)
        assert found.param_groups[0]["lr"] == expected["lr"]
        assert found.param_groups[0]["weight_decay"] == pytest.approx(expected["weight_decay"])


def compare_present_angles(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weights = [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    whole = translate_lr(
        AdamW([nn.Parameter(weight) for weight in weights], **ADAMW), "LionAR", angle="present"
    )
    parts = [
        nn.Parameter(distribute_tensor(weight, mesh, [Shard(dim)]))
        for weight, dim in zip(weights, (0, 1, 0), strict=True)
    ]
    found = translate_lr(AdamW(parts, **ADAMW), "LionAR", angle="present")
    assert found.options["weight_decay"] == pytest.approx(whole.options["weight_decay"], rel=1e-6)


@pytest.mark.slow
def test_present_angles_of_sharded_weights() -> None:
    spawn(compare_present_angles, 2)
