"""What takes an optimizer's place: the same settings under AdamW2's bound, or nothing."""

import copy

import pytest
import torch
from rehearsal_cases import groups_of, network, train
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import warmfree
from traces import Traces
from warmfree.advice.replacement import replacement_for


def adamw(model, **options):
    return torch.optim.AdamW(groups_of(model), betas=(0.8, 0.95), weight_decay=0.1, **options)


def test_adamw2_has_the_same_settings():
    model = network()
    optimizer = adamw(model)
    traces = Traces(model, optimizer)
    found = replacement_for(optimizer, model)
    assert (found.replacement.optimizer, found.replacement.lr) == ("AdamW2", 0.01)
    assert found.replacement.options == {"betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    first, second = found.build(), found.build()
    assert type(first) is warmfree.AdamW2
    assert first is not second
    for new, own in zip(first.param_groups, optimizer.param_groups, strict=True):
        assert all(map(lambda a, b: a is b, new["params"], own["params"]))
        assert {key: new[key] for key in ("lr", "betas", "eps", "weight_decay")} == {
            key: own[key] for key in ("lr", "betas", "eps", "weight_decay")
        }
    # Its options are those of its constructor.
    warmfree.AdamW2(model.parameters(), lr=found.replacement.lr, **found.replacement.options)
    assert traces.differences(Traces(model, optimizer)) == []


def second_with(**options):
    def build(model):
        first, second = groups_of(model)
        return torch.optim.AdamW([first, {**second, **options}])

    return build


KNOWN = {
    "Adam": lambda m: torch.optim.Adam(groups_of(m)),
    "AdamW": adamw,
    "RAdam": lambda m: torch.optim.RAdam(groups_of(m)),
    "NAdam": lambda m: torch.optim.NAdam(groups_of(m)),
    "GIAdamW": lambda m: warmfree.GIAdamW(groups_of(m)),
    "AdamW, Tensor lr": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.01)),
}
NONE = {
    "SGD": lambda m: torch.optim.SGD(groups_of(m)),
    "RMSprop": lambda m: torch.optim.RMSprop(groups_of(m)),
    "Muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2]),
    "Adam with L2 decay": lambda m: torch.optim.Adam(groups_of(m), weight_decay=0.1),
    "AdamW with amsgrad": lambda m: torch.optim.AdamW(groups_of(m), amsgrad=True),
    "amsgrad in the second group": second_with(amsgrad=True),
    "a second group at 0": second_with(lr=0.0),
    "AdamW2": lambda m: warmfree.AdamW2(groups_of(m)),
    "AdamW2 in parts": lambda m: warmfree.SizedOptimizer(
        groups_of(m), "adam", [warmfree.optim.SpectralBound()]
    ),
    "wrap(AdamW)": lambda m: warmfree.wrap(adamw(m), [warmfree.optim.SpectralBound()]),
    "LionA": lambda m: warmfree.LionA(groups_of(m)),
    "LionAR": lambda m: warmfree.LionAR(groups_of(m), weight_decay=0.1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_optimizers_of_adams_kind_have_one_until_they_step(name):
    model = network()
    optimizer = KNOWN[name](model)
    assert replacement_for(optimizer, model).replacement.optimizer == "AdamW2"
    fresh = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    assert replacement_for(optimizer, model) is None
    loaded = KNOWN[name](model)
    loaded.load_state_dict(optimizer.state_dict())
    assert replacement_for(loaded, model) is None
    loaded = KNOWN[name](model)
    loaded.load_state_dict(fresh)
    assert replacement_for(loaded, model) is not None


@pytest.mark.parametrize("name", NONE)
def test_others_have_none(name):
    model = network()
    assert replacement_for(NONE[name](model), model) is None


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_it_is_at_the_learning_rate_that_is_asked_about():
    model = network()
    optimizer = adamw(model)
    LambdaLR(optimizer, lambda step: 0.25)  # now at a quarter
    found = replacement_for(optimizer, model)
    assert rates(found.build()) == rates(optimizer) == [0.0025, 0.00125]
    assert found.replacement.lr == 0.0025

    optimizer = adamw(model)
    OneCycleLR(optimizer, max_lr=[0.1, 0.05], total_steps=100, cycle_momentum=False)
    found = replacement_for(optimizer, model)
    assert rates(found.build()) == pytest.approx(rates(optimizer), rel=1e-12)
    assert found.replacement.lr == pytest.approx(0.1 / 25)


def test_before_a_warmup_from_zero_it_is_at_the_full_one():
    model = network()
    optimizer = adamw(model)
    LambdaLR(optimizer, lambda step: step / 10)
    found = replacement_for(optimizer, model)
    assert rates(optimizer) == [0.0, 0.0]
    assert rates(found.build()) == [0.01, 0.005]
    assert found.replacement.lr == 0.01
