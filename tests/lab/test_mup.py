"""Maximal update parametrisation: what width does to a step, with it and without it."""

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.lab.models.blocks import initialise
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.lab.models.mup import Scaling, adam_groups, parametrise
from warmfree.lab.models.vit import ViT, ViTConfig
from warmfree.measure.curvature import sharpness

WIDTHS = (32, 64, 128, 256)
BASE = 32


def gpt(width: int, *, heads: int = 4, qk_norm: bool = False, bias: bool = False) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(
        vocabulary=32, context=16, layers=2, width=width, heads=heads, qk_norm=qk_norm, bias=bias
    )
    model = GPT(config)
    initialise(model, layers=2, std=width**-0.5)  # by fan-in: with 0.02 SP would not be right at any width
    return model


def vit(width: int) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=8, patch=4, classes=3, layers=2, width=width, heads=4))


def mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


def conv_net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


MODELS: dict[str, Callable[[int], nn.Module]] = {"gpt": gpt, "vit": vit, "mlp": mlp, "conv": conv_net}


def batch(name: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    if name == "gpt":
        tokens = torch.randint(32, (8, 17), generator=random)
        return tokens[:, :-1], tokens[:, 1:]
    classes = {"vit": 3, "mlp": 4, "conv": 3}[name]
    shape = {"vit": (32, 8, 8), "mlp": (32, 16), "conv": (32, 1, 8, 8)}[name]
    return torch.randn(*shape, generator=random), torch.randint(classes, (32,), generator=random)


def loss(model: nn.Module, name: str) -> Tensor:
    inputs, targets = batch(name)
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def optimizer(
    model: nn.Module, scales: dict[str, Scaling] | None, kind: str, lr: float
) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr)
    if scales is None:
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    return torch.optim.AdamW(adam_groups(model, scales, lr=lr), lr=lr)


def logits_change(name: str, width: int, *, mup: bool, kind: str, lr: float, steps: int = 4) -> float:
    """Return the RMS of what a few steps change in the logits."""
    model = MODELS[name](width)
    scales = parametrise(model, MODELS[name](BASE)) if mup else None
    chosen = optimizer(model, scales, kind, lr)
    with torch.no_grad():
        before = model(batch(name)[0])
    for _ in range(steps):
        chosen.zero_grad()
        loss(model, name).backward()
        chosen.step()
    with torch.no_grad():
        return float((model(batch(name)[0]) - before).square().mean().sqrt())


def growth(name: str, *, mup: bool, kind: str, lr: float) -> float:
    """Return the exponent with which the change grows with the width, by least squares over four widths."""
    changes = torch.tensor([logits_change(name, width, mup=mup, kind=kind, lr=lr) for width in WIDTHS]).log()
    widths = torch.tensor([float(width) for width in WIDTHS]).log()
    widths = widths - widths.mean()
    return float((widths * changes).sum() / widths.square().sum())


SMALL_LR = {"adam": 3e-4, "sgd": 3e-3}


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("name", list(MODELS))
def test_the_step_of_the_function_does_not_depend_on_width(name: str, kind: str) -> None:
    """The coordinate check: over widths 32 to 256, the logits' change is width^p with p near 0, and above 0 in SP."""
    mup, standard = (growth(name, mup=mup, kind=kind, lr=SMALL_LR[kind]) for mup in (True, False))
    assert abs(mup) < 0.35  # 0 for wide models: 32 is not wide
    assert standard > 0.4
    assert standard - abs(mup) > 0.2


def hidden_change(name: str, width: int, *, mup: bool) -> float:
    """Return the relative change of the residual stream before the last norm after four steps of Adam."""
    model = MODELS[name](width)
    scales = parametrise(model, MODELS[name](BASE)) if mup else None
    chosen = optimizer(model, scales, "adam", 1e-3)
    seen: list[Tensor] = []
    model.get_submodule("norm").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    for _ in range(5):
        chosen.zero_grad()
        loss(model, name).backward()
        chosen.step()
    return float((seen[4] - seen[0]).square().mean().sqrt() / seen[0].square().mean().sqrt())


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_hidden_features_are_learned_at_every_width(name: str) -> None:
    mup, standard = ([hidden_change(name, width, mup=mup) for width in (32, 256)] for mup in (True, False))
    assert 0.5 < mup[1] / mup[0] < 2.0
    assert standard[1] / standard[0] > 2.0


def test_at_the_base_width_it_is_the_standard_parametrisation() -> None:
    for name, make in MODELS.items():
        for kind in ("sgd", "adam"):
            plain, ours = make(BASE), make(BASE)
            scales = parametrise(ours, make(BASE))
            pairs = [
                (model, optimizer(model, given, kind, 1e-2))
                for model, given in ((plain, None), (ours, scales))
            ]
            for _ in range(3):
                for model, chosen in pairs:
                    chosen.zero_grad()
                    loss(model, name).backward()
                    chosen.step()
            assert list(ours.state_dict()) == list(plain.state_dict())
            for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


@torch.no_grad()
def acting(model: nn.Module, base: nn.Module) -> dict[str, float]:
    """Return the standard deviation of the weights as they act, over that of the base's."""
    theirs = dict(base.named_parameters())
    stds = {}
    for name in theirs:
        weight = functools.reduce(getattr, name.split("."), model)
        stds[name] = float(weight.square().mean().sqrt() / theirs[name].square().mean().sqrt())
    return stds


def test_initial_weights_are_those_of_table_9() -> None:
    model, base = gpt(128), gpt(32)  # 4 times as wide
    scales = parametrise(model, base)
    stds = acting(model, base)
    assert stds["tokens.weight"] == pytest.approx(1.0, rel=1e-5)
    assert stds["blocks.0.attention_norm.weight"] == pytest.approx(1.0, rel=1e-5)
    assert stds["blocks.0.attention.qkv.weight"] == pytest.approx(0.5, rel=1e-5)
    assert stds["blocks.1.mlp.out.weight"] == pytest.approx(0.5, rel=1e-5)
    for name, stored in model.named_parameters():
        plain = name.replace("parametrizations.", "").replace(".original", "")
        theirs = base.get_parameter(plain).detach()
        size = stored.detach().square().mean().sqrt() / theirs.square().mean().sqrt()
        assert float(size) == pytest.approx(0.5, rel=1e-5), name
        factor = {"tokens": 0.5, "positions": 0.5}.get(plain.split(".")[0], 0.25 if stored.ndim > 1 else 0.5)
        assert scales[name].adam_lr == factor

    classifier, small = mlp(128), mlp(32)
    parametrise(classifier, small)
    stds = acting(classifier, small)
    assert [stds[f"{layer}.weight"] for layer in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.25], rel=1e-5)


def test_the_scaling_of_every_kind() -> None:
    kinds = {
        "input": Scaling(wider_in=1, wider_out=4),
        "hidden": Scaling(wider_in=4, wider_out=4),
        "readout": Scaling(wider_in=4, wider_out=1),
    }
    assert [kind.multiplier for kind in kinds.values()] == [2.0, 1.0, 0.5]
    assert [kind.std for kind in kinds.values()] == [0.5, 0.5, 0.5]
    assert [kind.adam_lr for kind in kinds.values()] == [0.5, 0.25, 0.5]
    # as they act: std 1, 1/sqrt n, 1/n; Adam's step 1, 1/n, 1/n; SGD's (multiplier squared) n, 1, 1/n
    assert [kind.multiplier * kind.std for kind in kinds.values()] == [1.0, 0.5, 0.25]
    assert [kind.multiplier * kind.adam_lr for kind in kinds.values()] == [1.0, 0.25, 0.25]
    assert [kind.multiplier**2 for kind in kinds.values()] == [4.0, 1.0, 0.25]


def test_tied_logits_are_those_of_the_stored_embedding_over_the_root_of_the_width() -> None:
    model, base = gpt(128), gpt(32)
    parametrise(model, base)
    seen: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    tokens, _ = batch("gpt")
    stored = model.get_parameter("tokens.parametrizations.weight.original")
    with torch.no_grad():
        logits = model(tokens)
        torch.testing.assert_close(logits, 0.5 * seen[0] @ stored.T)
        torch.testing.assert_close(model.tokens(tokens), 2.0 * stored[tokens])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_divided_by_the_size_of_a_head(qk_norm: bool) -> None:
    model, base = gpt(128, qk_norm=qk_norm), gpt(32, qk_norm=qk_norm)  # heads of 32 and 8
    parametrise(model, base)
    attention = model.get_submodule("blocks.0.attention")
    random = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 128, generator=random)
    with torch.no_grad():
        query, key, value = attention.qkv(x).view(2, 5, 3, 4, 32).permute(2, 0, 3, 1, 4).unbind()
        if qk_norm:
            query, key = (F.rms_norm(each, (32,)) for each in (query, key))
        logits = query @ key.transpose(-1, -2) * math.sqrt(8) / 32
        masked = logits.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        expected = attention.out((masked.softmax(-1) @ value).transpose(1, 2).reshape(2, 5, 128))
        torch.testing.assert_close(attention(x), expected)


def test_more_heads_of_the_same_size_keep_their_scale() -> None:
    model, base = gpt(128, heads=16), gpt(32, heads=4)
    parametrise(model, base)
    assert not model.get_submodule("blocks.0.attention.query_norm")._forward_hooks


def test_a_checkpoint_goes_round(tmp_path) -> None:
    for name, kind in itertools.product(("gpt", "vit"), ("sgd", "adam")):
        models = [MODELS[name](64) for _ in range(2)]
        with torch.no_grad():
            models[1].get_parameter("blocks.0.mlp.up.weight").add_(1.0)
        runs = []
        for model in models:
            scales = parametrise(model, MODELS[name](BASE))
            runs.append((model, optimizer(model, scales, kind, 1e-2)))

        def steps(model: nn.Module, chosen: torch.optim.Optimizer, name: str = name) -> None:
            for _ in range(2):
                chosen.zero_grad()
                loss(model, name).backward()
                chosen.step()

        steps(*runs[0])
        path = tmp_path / f"{name}-{kind}.pt"
        torch.save({"model": runs[0][0].state_dict(), "optimizer": runs[0][1].state_dict()}, path)
        saved = torch.load(path)
        runs[1][0].load_state_dict(saved["model"])
        runs[1][1].load_state_dict(saved["optimizer"])
        for run in runs:
            steps(*run)
        with torch.no_grad():
            torch.testing.assert_close(runs[0][0](batch(name)[0]), runs[1][0](batch(name)[0]), rtol=0, atol=0)


def test_copies_are_models_of_their_own() -> None:
    model = gpt(64)
    parametrise(model, gpt(BASE))
    copied = copy.deepcopy(model)
    tokens, _ = batch("gpt")
    with torch.no_grad():
        before = model(tokens)
        copied.get_parameter("tokens.parametrizations.weight.original").zero_()
        torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)
        assert not copied(tokens).any()
    hooks = list(model._forward_hooks.values())
    assert pickle.loads(pickle.dumps(hooks))[0].multiplier == 0.5


def test_curvature_is_measured_as_in_any_model() -> None:
    model = mlp(64)
    parametrise(model, mlp(BASE))
    found = sharpness(model, lambda: loss(model, "mlp"), max_products=50, tolerance=1e-4)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss(model, "mlp"), weights, create_graph=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, found.vector or [], strict=True))
    again = torch.autograd.grad(slope, weights)
    value = sum(float((g.detach() * v).sum()) for g, v in zip(again, found.vector or [], strict=True))
    assert value == pytest.approx(found.value, rel=1e-3)


def test_adams_groups_hold_every_parameter_once_and_decay_alike() -> None:
    model = gpt(128, bias=True)
    scales = parametrise(model, gpt(BASE, bias=True))
    groups = adam_groups(model, scales, lr=0.1, weight_decay=0.2)
    ids = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    assert groups[0]["lr"] == max(group["lr"] for group in groups)
    for group in groups:
        vectors = all(weight.ndim < 2 for weight in group["params"])
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.0 if vectors else 0.02)


def test_zeros_stay_zero() -> None:
    model, base = mlp(64), mlp(BASE)
    for net in (model, base):
        nn.init.zeros_(net[4].weight)
    parametrise(model, base)
    with torch.no_grad():
        assert not model[4].weight.any()


def test_a_model_that_is_refused_is_left_as_it_was() -> None:
    model, base = (nn.Sequential(nn.Linear(8, width), nn.LSTM(width, 8)) for width in (64, 16))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="LSTM"):
        parametrise(model, base)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_gpt_within_another_module_is_scaled_alike() -> None:
    alone, within = gpt(64), nn.Sequential(gpt(64))
    parametrise(alone, gpt(BASE))
    parametrise(within, nn.Sequential(gpt(BASE)))
    tokens, _ = batch("gpt")
    torch.testing.assert_close(within(tokens), alone(tokens))


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture"):
        parametrise(mlp(64), vit(BASE))
    with pytest.raises(ValueError, match="architecture"):
        parametrise(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.LayerNorm(4)))
    model = mlp(64)
    parametrise(model, mlp(BASE))
    with pytest.raises(ValueError, match="already"):
        parametrise(model, mlp(BASE))
    with pytest.raises(TypeError, match="LSTM"):
        parametrise(nn.LSTM(4, 8), nn.LSTM(4, 4))
    shared = [nn.Sequential(nn.Embedding(8, width), nn.Linear(width, 8, bias=False)) for width in (64, 16)]
    for net in shared:
        net[1].weight = net[0].weight  # the head would need 1/sqrt(n) where the embedding needs sqrt(n)
    with pytest.raises(ValueError, match=r"1\.weight: also the parameter of another module"):
        parametrise(*shared)
    with pytest.raises(TypeError, match="Conv2d"):
        parametrise(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(4, 4, 3, groups=4))
