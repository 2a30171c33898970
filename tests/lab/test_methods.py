import json

import pytest
import torch

from warmfree.lab.methods import METHODS, Method, find_methods
from warmfree.lab.models.gpt import GPT, GPTConfig


def model() -> GPT:
    return GPT(GPTConfig(vocabulary=19, context=8, layers=1, width=16, heads=2, bias=True))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_is_well_formed(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.kind in ("baseline", "warmup-free")
    assert method.label
    assert method.description
    assert "\n" not in method.description
    assert list(method.lrs) == sorted(set(method.lrs))
    assert len(method.lrs) >= 2
    assert all(lr > 0 for lr in method.lrs)
    if method.kind == "warmup-free":
        assert method.warmup == 0
    assert json.loads(json.dumps(method.settings())) == method.settings()
    assert "lr" not in method.settings()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_trains_in_the_middle_of_its_grid(method: Method) -> None:
    torch.manual_seed(0)
    net, tokens = model(), torch.randint(0, 19, (4, 8))
    optimizer = method.build(net, lr=method.lrs[len(method.lrs) // 2], weight_decay=0.1, betas=(0.9, 0.95))
    first = net.loss(tokens, tokens).item()
    for _ in range(30):
        optimizer.zero_grad()
        net.loss(tokens, tokens).backward()
        optimizer.step()
    assert net.loss(tokens, tokens).item() < first - 0.05
    assert {id(weight) for group in optimizer.param_groups for weight in group["params"]} == set(
        map(id, net.parameters())
    )


@pytest.mark.parametrize("name", ["adamw", "adamw-warmup", "radam"])
def test_baselines_are_torchs_with_the_tasks_betas_and_decay_on_matrices_only(name: str) -> None:
    net = model()
    optimizer = METHODS[name].build(net, lr=0.5, weight_decay=0.1, betas=(0.8, 0.9))
    assert type(optimizer) is (torch.optim.RAdam if name == "radam" else torch.optim.AdamW)
    assert optimizer.defaults["decoupled_weight_decay"] is True
    decay = {
        id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]
    }
    for weight in net.parameters():
        assert decay[id(weight)] == (0.1 if weight.ndim >= 2 else 0.0)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_only_the_warmup_method_warms_up() -> None:
    assert {name for name, method in METHODS.items() if method.warmup} == {"adamw-warmup"}
    assert METHODS["adamw-warmup"].warmup == 0.2


def test_settings_tell_methods_and_their_parts_apart() -> None:
    settings = [json.dumps(method.settings(), sort_keys=True) for method in METHODS.values()]
    assert len(set(settings)) == len(settings)
    assert METHODS["lionar"].settings()["groups"][1]["weight_decay"] == 1.0
    assert METHODS["lionar"].settings()["groups"][0]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["adam-w"],
            "unknown optimizer 'adam-w'; did you mean 'adamw' or .* Known: adamw, adamw-warmup, radam",
        ),
        (["quux"], "unknown optimizer 'quux'; known: adamw"),
        (["adamw", "radam", "adamw"], "optimizer 'adamw' is given twice"),
    ],
)
def test_unknown_and_repeated_names(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_methods(names)


def test_order_is_as_asked() -> None:
    assert [method.name for method in find_methods(["radam", "adamw"])] == ["radam", "adamw"]
