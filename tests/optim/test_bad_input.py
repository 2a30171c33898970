"""Bad input: a clear error, and nothing changed."""

import copy
import math

import pytest
import torch
from problems import OPTIMIZERS, WRAPPED, assert_equal, make_model, train, weights
from torch import nn

import warmfree
from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer, parameter_groups, wrap
from warmfree.optim import Adam, AngularControl, Lion, NoiseControl, NonFiniteGradientError, SpectralBound


def matrix():
    return [nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW2(matrix(), -1.0), "lr must be finite and >= 0, got -1"),
        (lambda: AdamW2(matrix(), math.nan), "lr must be finite"),
        (lambda: AdamW2(matrix(), torch.tensor(-1.0)), "lr must be"),
        (lambda: AdamW2(matrix(), betas=(0.9, 1.0)), r"betas must be two numbers in \[0, 1\)"),
        (lambda: AdamW2(matrix(), eps=-1e-8), "eps must be"),
        (lambda: AdamW2(matrix(), weight_decay=-0.1), "weight_decay must be"),
        (lambda: AdamW2(matrix(), tau=0.0), "tau must be > 0, got 0.0"),
        (lambda: AdamW2(matrix(), tau=-1.0), "tau must be > 0, got -1.0"),
        (lambda: AdamW2(matrix(), tau=math.nan), "tau must be > 0"),
        (lambda: AdamW2(matrix(), power_iterations=0), "power_iterations must be an integer >= 1"),
        (lambda: LionA(matrix(), momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: LionAR(matrix(), momentum=-0.1), "momentum must be"),
        (lambda: LionAR(matrix(), weight_decay=0.0), "derives the angle of its steps from weight_decay"),
        (lambda: RotationalAdamW(matrix(), weight_decay=0.0), "derives the angle"),
        (lambda: RotationalAdamW(matrix(), update_norm_decay=1.0), "update_norm_decay must be"),
        (lambda: LionAR(matrix(), angle_schedule="cubic"), "angle_schedule must be 'sqrt' or 'linear'"),
        (lambda: GIAdamW([]), "empty parameter list"),
        (lambda: GIAdamW(matrix(), nonfinite="explode"), "nonfinite must be 'skip', 'raise' or 'ignore'"),
        (lambda: SizedOptimizer(matrix(), "adamm"), "direction must be one of adam, lion, sgd"),
        (lambda: SizedOptimizer(matrix(), "adam", [SpectralBound(), SpectralBound()]), "different kinds"),
        (lambda: SizedOptimizer(matrix(), "adam", [NoiseControl(batch_size=0)]), "batch_size must be >= 1"),
        (
            lambda: SizedOptimizer(matrix(), "adam", [NoiseControl(batch_size=1, input_overlap=2)]),
            "input_overlap must be",
        ),
        (lambda: AdamW2([{"params": matrix(), "role": "matrixx"}]), "role must be one of matrix, embedding"),
        (lambda: AdamW2([{"params": matrix(), "split": 3}]), "split must divide the 4 outputs"),
        (lambda: AdamW2([{"params": matrix(), "split": (1, 2)}]), "split must add up to the 4 outputs"),
        (lambda: AdamW2([{"params": matrix(), "out_dim": 2}]), "out_dim must be a dimension"),
        (lambda: AdamW2([{"params": matrix(), "tau": -3.0}]), "tau must be > 0, got -3"),
        (lambda: wrap(torch.optim.SGD(matrix(), lr=0.1), [NoiseControl(batch_size=4)]), "use SizedOptimizer"),
        (lambda: wrap(torch.optim.SGD(matrix(), lr=0.1), [SpectralBound(tau=-1)]), "tau must be > 0"),
        (lambda: parameter_groups(nn.ReLU()), "no trainable parameter"),
    ],
)
def test_options_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)), "real floating-point"),
        (nn.Parameter(torch.ones(2, 2, dtype=torch.int32), requires_grad=False), "real floating-point"),
        (nn.Parameter(torch.eye(2).to_sparse()), "dense"),
    ],
)
def test_complex_integer_and_sparse_parameters_are_refused(parameter, message):
    with pytest.raises(TypeError, match=message):
        AdamW2([parameter])


def test_sparse_gradients_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    for build in (*OPTIMIZERS.values(), WRAPPED["wrapped-SGD"]):
        optimizer = build(model.parameters())
        before = weights(model)
        optimizer.zero_grad()
        model(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(TypeError, match="sparse"):
            optimizer.step()
        assert_equal(before, weights(model))


def test_a_group_that_is_refused_is_not_added():
    optimizer = AdamW2(matrix())
    for group in (
        {"params": matrix(), "tau": -1.0},
        {"params": [nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]},
        {"params": [nn.Parameter(torch.ones(5, 2))], "split": 2},
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
        assert len(optimizer.state) == 1


@pytest.mark.parametrize("name", [*OPTIMIZERS, *WRAPPED])
def test_foreign_and_corrupt_state_dicts_are_refused_and_nothing_changes(name):
    build = {**OPTIMIZERS, **WRAPPED}[name]
    model = make_model()
    optimizer = build(model.parameters())
    train(model, optimizer, 2)
    good = copy.deepcopy(optimizer.state_dict())

    foreign = [torch.optim.Adagrad(model.parameters()).state_dict()]
    foreign += [
        other(model.parameters()).state_dict()
        for other_name, other in {**OPTIMIZERS, **WRAPPED}.items()
        if other_name.split("-")[0] != name.split("-")[0]
    ]
    lacking = copy.deepcopy(good)
    del lacking["state"][3]["step"]
    misshapen = copy.deepcopy(good)
    misshapen["state"][2]["step"] = torch.zeros(3)
    short = copy.deepcopy(good)
    short["param_groups"][0]["params"] = short["param_groups"][0]["params"][:-1]
    not_tensor = copy.deepcopy(good)
    not_tensor["state"][0]["step"] = "7"
    for bad in (*foreign, lacking, misshapen, short, not_tensor, {}, {"state": {}}, None):
        with pytest.raises(ValueError, match="state_dict"):
            optimizer.load_state_dict(bad)
        now = optimizer.state_dict()
        for key, entries in good["state"].items():
            for entry, value in entries.items():
                assert torch.equal(value, now["state"][key][entry])
        assert now["param_groups"] == good["param_groups"]


def test_a_state_dict_with_an_option_out_of_range_is_refused():
    optimizer = AdamW2(matrix())
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["tau"] = -1.0
    with pytest.raises(ValueError, match="tau"):
        optimizer.load_state_dict(bad)
    assert optimizer.param_groups[0]["tau"] > 0


def test_prime_is_for_those_that_start_from_a_gradient_and_once():
    parameters = matrix()
    parameters[0].grad = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="nothing to prime"):
        AdamW2(parameters).prime()
    optimizer = GIAdamW(parameters)
    parameters[0].grad[0, 0] = math.inf
    with pytest.raises(NonFiniteGradientError):
        optimizer.prime()
    assert optimizer.state[parameters[0]]["started"] == 0
    parameters[0].grad[0, 0] = 1.0
    optimizer.prime()
    with pytest.raises(RuntimeError, match="already started"):
        optimizer.prime()


def test_a_closure_that_raises_changes_nothing():
    for build in (*OPTIMIZERS.values(), *WRAPPED.values()):
        model = make_model()
        optimizer = build(model.parameters())
        before = weights(model)

        def closure():
            raise KeyError("data loader")

        with pytest.raises(KeyError):
            optimizer.step(closure)
        assert_equal(before, weights(model))


def test_controls_compose_in_the_order_given():
    weight = nn.Parameter(torch.randn(6, 6))
    controls = [AngularControl(), SpectralBound(tau=1e-4)]
    optimizer = SizedOptimizer([weight], Lion(), controls, lr=0.1, weight_decay=0.1)
    before = torch.linalg.matrix_norm(weight.detach(), ord=2).item()
    weight.grad = torch.randn(6, 6)
    start = weight.detach().clone()
    optimizer.step()
    assert torch.linalg.matrix_norm(weight.detach() - start, ord=2) < 1.2e-4 * before
    assert isinstance(optimizer.direction, Lion)
    assert isinstance(SizedOptimizer([weight]).direction, Adam)


def test_public_names():
    assert set(warmfree.__all__) >= {
        "AdamW2",
        "GIAdamW",
        "LionA",
        "LionAR",
        "RotationalAdamW",
        "SizedOptimizer",
        "wrap",
    }
    assert all(hasattr(warmfree, name) for name in warmfree.__all__)
    assert all(hasattr(warmfree.optim, name) for name in warmfree.optim.__all__)


def test_parameters_that_fsdp1_flattened_are_refused():
    weight = torch.nn.Parameter(torch.ones(12))
    weight._fsdp_flattened = True
    with pytest.raises(TypeError, match="fully_shard"):
        AdamW2([weight])


def test_a_parameter_that_was_exchanged_in_its_group_gets_state_of_its_own():
    optimizer = AdamW2([torch.nn.Parameter(torch.ones(3, 4))])
    other = torch.nn.Parameter(torch.ones(5, 2))
    optimizer.param_groups[0]["params"] = [other]
    other.grad = torch.ones(5, 2)
    optimizer.step()
    assert optimizer.state[other]["step"] == 1
    assert other.max() < 1


def test_frozen_parameters_whose_state_torch_leaves_out_keep_theirs():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    optimizer = AdamW2(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, saved)
    assert optimizer.state[model[0].weight]["step"] == 0
    assert optimizer.state[model[1].weight]["step"] == 1
