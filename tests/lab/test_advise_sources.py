"""The lab's tasks, optimizers by name, and which options go with which source."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from warmfree.lab.advise.lab_tasks import gpt_source, vit_source
from warmfree.lab.advise.muon import MuonAndAdamW
from warmfree.lab.advise.recipes import OPTIMIZERS, Recipe
from warmfree.lab.advise.source import check_options, choose_device, kind_of
from warmfree.lab.data import load_shakespeare
from warmfree.lab.images import load_mnist
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.lab.vision import ImageTaskConfig
from warmfree.lab.vision import prepare_run as prepare_image_run
from warmfree.optim import parameter_groups

RUN = {"steps": None, "batch_size": None, "device": "cpu"}


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 11))


def test_the_gpt_is_the_one_that_compare_trains() -> None:
    source = gpt_source(Recipe(lr=2e-3), **RUN, seed=3, text=None)
    run = prepare_run(ByteGPTConfig(), load_shakespeare(), METHODS["adamw"], lr=2e-3, seed=3)
    ours, theirs = dict(source.model.named_parameters()), dict(run.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs | ours)
    for step, batch in enumerate(itertools.islice(source.batches, 3)):
        assert torch.equal(source.loss_fn(source.model, batch), run.loss(step))
    assert (source.steps, source.batch_size) == (300, 16)
    assert source.optimizer.defaults["betas"] == (0.9, 0.95)
    assert {group["lr"] for group in source.optimizer.param_groups} == {2e-3}
    first, again = (next(iter(source.batches)) for _ in range(2))
    assert torch.equal(first[0], again[0])


def test_the_vit_is_the_one_that_dissect_trains() -> None:
    source = vit_source(Recipe(), steps=40, batch_size=8, device="cpu", seed=1, images=None)
    task = ImageTaskConfig(batch_size=8)
    run = prepare_image_run(task, load_mnist(), METHODS["adamw"], lr=1e-3, seed=1)
    assert torch.equal(source.loss_fn(source.model, next(iter(source.batches))), run.loss(0))
    assert (source.steps, source.batch_size) == (40, 8)


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    source = gpt_source(Recipe(), **RUN, seed=0, text=tmp_path / "fox.txt")
    assert source.title == "byte GPT on fox.txt"
    with pytest.raises(FileNotFoundError, match=r"text file not found: .*cat\.txt"):
        gpt_source(Recipe(), **RUN, seed=0, text=tmp_path / "cat.txt")
    with pytest.raises(FileNotFoundError, match="folder of images not found"):
        vit_source(Recipe(), **RUN, seed=0, images=tmp_path / "cats")


@pytest.mark.parametrize("changed", [{"steps": 0}, {"batch_size": 0}, {"seed": -1}])
def test_numbers_out_of_range(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changed))} must be >= "):
        gpt_source(Recipe(), **(RUN | {"seed": 0, "text": None} | changed))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_every_parameter_at_the_learning_rate_asked(name: str) -> None:
    made = model()
    optimizer = Recipe(name=name, lr=3e-3).build(made)
    assert {float(group["lr"]) for group in optimizer.param_groups} == {3e-3}
    before = [weight.detach().clone() for weight in made.parameters()]
    nn.functional.cross_entropy(made(torch.arange(11)), torch.arange(11).flip(0)).backward()
    optimizer.step()
    for weight, old in zip(made.parameters(), before, strict=True):
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, old)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_reach_the_optimizer_or_are_refused(name: str) -> None:
    given = {"weight_decay": 0.03, "beta1": 0.8, "beta2": 0.97}
    for option in OPTIMIZERS[name].ignores:
        with pytest.raises(
            ValueError, match=f"--{option.replace('_', '-')} has no effect on the optimizer {name}"
        ):
            Recipe(name=name, **{option: given.pop(option)})
    groups = Recipe(name=name, **given).build(model()).param_groups
    if "weight_decay" in given:
        assert {group["weight_decay"] for group in groups} == {0.03, 0.0}
    betas = {group["betas"] for group in groups if "betas" in group}
    if "beta2" in given:
        assert {beta2 for _, beta2 in betas} == {0.97}
    if "beta1" in given and name != "muon":
        assert {beta1 for beta1, _ in betas} | {
            group["momentum"] for group in groups if group.get("momentum") is not None
        } == {0.8}


def test_coupled_weight_decay_is_off_unless_asked_for() -> None:
    assert {group["weight_decay"] for group in Recipe(name="adam").build(model()).param_groups} == {0.0}
    assert max(group["weight_decay"] for group in Recipe().build(model()).param_groups) == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "adam-w"},
            r"unknown optimizer 'adam-w'; did you mean 'adamw' or 'adamw2'\? Known: adamw, adam,",
        ),
        ({"name": "adamw-warmup"}, "adamw-warmup has a warmup, and whether it needs one is the question"),
        ({"name": "zzz"}, "unknown optimizer 'zzz'; known: adamw"),
        ({"lr": 0.0}, "lr must be finite and > 0, got 0"),
        ({"lr": math.nan}, "lr must be finite and > 0, got nan"),
        ({"weight_decay": -0.1}, r"weight_decay must be finite and >= 0, got -0\.1"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1\.0"),
        ({"beta2": -0.5}, r"beta2 must be in \[0, 1\), got -0\.5"),
    ],
)
def test_bad_recipes(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_muon_steps_hidden_matrices_and_adamw_the_rest() -> None:
    made, alone = model(), model()
    alone.load_state_dict(made.state_dict())
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    both = MuonAndAdamW(made, **settings, momentum=0.9, betas=(0.9, 0.95))
    muon = torch.optim.Muon([alone[1].weight], **settings, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    hidden = {id(alone[1].weight)}
    groups = [
        {
            "params": [weight for _, weight in group["params"] if id(weight) not in hidden],
            "weight_decay": decay,
        }
        for group, decay in ((g, g["weight_decay"]) for g in parameter_groups(alone, weight_decay=0.1))
    ]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, betas=(0.9, 0.95))
    for step in range(4):
        if step == 2:  # what a checkpoint holds is enough to go on
            state = both.state_dict()
            both = MuonAndAdamW(made, **settings, momentum=0.5, betas=(0.5, 0.5))
            both.load_state_dict(state)
            both.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = 5e-3
        for each in (made, alone):
            each.zero_grad()
            nn.functional.cross_entropy(each(torch.arange(11)), torch.arange(11).roll(step)).backward()
        both.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), alone.parameters(), strict=True))


def test_muon_says_which_torch_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"muon needs torch 2\.9 or later"):
        Recipe(name="muon").build(model())


def test_kinds_of_sources() -> None:
    assert [kind_of(name) for name in ("gpt", "vit", "hf", "a.b:c", "d/e.py:f")] == [
        "gpt",
        "vit",
        "hf",
        "function",
        "function",
    ]
    with pytest.raises(
        ValueError, match=r"unknown source 'gtp'; did you mean 'gpt'\? It is gpt, vit, hf, or"
    ):
        kind_of("gtp")
    with pytest.raises(ValueError, match="unknown source 'function'; it is gpt"):
        kind_of("function")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gpt", {"config": Path()}, "--config is for the source hf, and has no effect on gpt"),
        ("vit", {"text": Path()}, "--text is for the source gpt, hf, and has no effect on vit"),
        ("gpt", {"context": 3}, "--context is for the source hf"),
        ("function", {"lr": 1e-3}, "--lr has no effect: your function returns its own model and optimizer"),
        ("function", {"weight_decay": 0.0}, "--weight-decay has no effect"),
        ("function", {"text": Path()}, "--text is for the source gpt, hf"),
    ],
)
def test_options_for_another_source(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(kind, options)
    check_options(kind, dict.fromkeys(options))


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=rf"device '{name}' cannot be used \(.*\); try --device cpu"):
            choose_device(name)
