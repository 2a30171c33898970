"""What every optimizer of torch.optim does: one table of optimizers, every law over all of them."""

import copy
import pickle

import pytest
import torch
from problems import OPTIMIZERS, WRAPPED, assert_equal, backward, make_model, train, weights
from torch import nn

from warmfree import GIAdamW, parameter_groups
from warmfree.optim import NonFiniteGradientError

ALL = {**OPTIMIZERS, **WRAPPED}


@pytest.fixture(params=ALL)
def build(request):
    return ALL[request.param]


@pytest.fixture(params=OPTIMIZERS)
def build_own(request):
    return OPTIMIZERS[request.param]


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def assert_same_state(left, right):
    assert left["state"].keys() == right["state"].keys()
    for key, entries in left["state"].items():
        for name, value in entries.items():
            assert torch.equal(value, right["state"][key][name]), name


def test_goes_down(build):
    model = make_model()
    losses = train(model, build(model.parameters(), lr=3e-2), 60)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_state_exists_after_the_constructor_and_after_adding_a_group(build_own):
    model, extra = make_model(), nn.Linear(3, 4)
    optimizer = build_own(model.parameters())
    assert all(parameter in optimizer.state for parameter in model.parameters())
    before = {p: set(optimizer.state[p]) for p in model.parameters()}
    optimizer.add_param_group({"params": extra.parameters(), "lr": 0.5})
    assert "step" in optimizer.state[extra.weight]
    assert optimizer.param_groups[1]["lr"] == 0.5
    train(model, optimizer, 1)
    assert before == {p: set(optimizer.state[p]) for p in model.parameters()}


def test_resume_from_state_dict_is_bitwise(build, tmp_path):
    model = make_model()
    optimizer = build(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(model, optimizer, 7, scheduler=scheduler)
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], tmp_path / "x.pt")
    train(model, optimizer, 5, start=7, scheduler=scheduler)

    resumed = make_model()
    again = build(resumed.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(again, 20)
    for part, saved in zip((resumed, again, schedule), torch.load(tmp_path / "x.pt"), strict=True):
        part.load_state_dict(saved)
    train(resumed, again, 5, start=7, scheduler=schedule)
    assert_equal(weights(model), weights(resumed))
    assert_same_state(optimizer.state_dict(), again.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copy_and_pickle_go_on_alike(build, clone):
    model = make_model()
    optimizer = build(model.parameters())
    train(model, optimizer, 3)
    other_model, other = clone((model, optimizer))
    train(model, optimizer, 3, start=3)
    train(other_model, other, 3, start=3)
    assert_equal(weights(model), weights(other_model))


def test_foreach_and_loop_are_the_same_bits(build_own):
    models = make_model(), make_model()
    for model, foreach in zip(models, (False, True), strict=True):
        train(model, build_own(model.parameters(), foreach=foreach), 10)
    assert_equal(weights(models[0]), weights(models[1]))


def test_maximize_is_minimize_of_the_negative(build_own):
    models = make_model(), make_model()
    for model, maximize in zip(models, (False, True), strict=True):
        optimizer = build_own(model.parameters(), maximize=maximize)
        for step in range(5):
            backward(model, step)
            if maximize:
                for parameter in model.parameters():
                    parameter.grad.neg_()
            optimizer.step()
    assert_equal(weights(models[0]), weights(models[1]))


def test_tensor_lr_equals_float_lr(build):
    models = make_model(), make_model()
    for model, lr in zip(models, (0.03125, torch.tensor(0.03125)), strict=True):
        train(model, build(model.parameters(), lr=lr), 6)
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_groups_have_their_own_options_and_schedulers_reach_them(build):
    model = make_model()
    halves = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizer = build([{"params": halves[0], "lr": 0.0}, {"params": halves[1]}, {"params": []}])
    before = weights(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[1e-9, 1e-2, 1.0], total_steps=10, cycle_momentum=False
    )
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    after = weights(model)
    assert_equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])
    scheduler.step()
    assert optimizer.param_groups[1]["lr"] > 0


def test_missing_gradients_are_skipped(build):
    model = make_model()
    optimizer = build(model.parameters())
    frozen = model[0].weight
    backward(model, 0)
    frozen.grad = None
    before = frozen.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)
    assert optimizer.state[frozen]["step"] == 0


def test_hooks_and_closure(build):
    model = make_model()
    optimizer = build(model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        seen.append("closure")
        assert torch.is_grad_enabled()
        return backward(model, 0)

    assert optimizer.step(closure) > 0
    assert seen == ["pre", "closure", "post"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_types_train_and_resume(build, dtype):
    model = make_model(dtype)
    optimizer = build(model.parameters(), lr=1e-2)
    losses = train(model, optimizer, 30)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    clone_model = copy.deepcopy(model)
    clone = build(clone_model.parameters(), lr=1e-2)
    clone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=30)
    train(clone_model, clone, 3, start=30)
    assert_equal(weights(model), weights(clone_model))


def test_half_precision_state_is_kept_in_float32(build_own):
    model = make_model(torch.bfloat16)
    optimizer = build_own(model.parameters())
    for entries in optimizer.state.values():
        assert all(value.dtype in (torch.float32, torch.float64) for value in entries.values())


def test_a_nonfinite_gradient_skips_the_whole_step(build):
    for bad in (float("nan"), float("inf"), -float("inf")):
        model = make_model()
        optimizer = build(model.parameters())
        train(model, optimizer, 2)
        before, state = weights(model), snapshot(optimizer)
        backward(model, 2)
        list(model.parameters())[-1].grad[0] = bad
        optimizer.step()
        assert_equal(before, weights(model))
        assert_same_state(state, optimizer.state_dict())
        assert optimizer.skipped_steps == optimizer.step_report.skipped_steps == 1
        assert optimizer.step_report.skipped
        train(model, optimizer, 1)
        assert not optimizer.step_report.skipped


def test_raise_on_nonfinite_names_the_parameter_and_changes_nothing():
    for build_raising in (
        lambda named: OPTIMIZERS["AdamW2"](named, nonfinite="raise"),
        lambda named: OPTIMIZERS["everything"](named, nonfinite="raise"),
    ):
        model = make_model()
        optimizer = build_raising(list(model.named_parameters()))
        backward(model, 0)
        model[3].weight.grad[1, 2] = float("nan")
        before = weights(model)
        with pytest.raises(NonFiniteGradientError, match=r"3\.weight"):
            optimizer.step()
        assert_equal(before, weights(model))


def test_a_zero_gradient_at_lr_zero_is_inert(build_own):
    """torch.distributed.checkpoint makes such a step to create state; it must not count as the first."""
    models = make_model(), make_model()
    optimizers = [build_own(model.parameters()) for model in models]
    state, before = snapshot(optimizers[0]), weights(models[0])
    for parameter in models[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers[0].param_groups[0]["lr"] = 0.0
    optimizers[0].step()
    assert_same_state(state, optimizers[0].state_dict())
    assert_equal(before, weights(models[0]))
    optimizers[0].param_groups[0]["lr"] = optimizers[1].param_groups[0]["lr"]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    assert_equal(weights(models[0]), weights(models[1]))


def test_a_fresh_optimizer_passed_through_dcp_trains_as_one_that_was_not(build_own):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    models = make_model(), make_model()
    optimizers = [build_own(model.parameters()) for model in models]
    get_optimizer_state_dict(models[0], optimizers[0])
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    assert_equal(weights(models[0]), weights(models[1]))


def test_a_zero_first_gradient_does_not_start_gi_adam():
    late, plain = make_model(), make_model()
    first, second = GIAdamW(late.parameters()), GIAdamW(plain.parameters())
    for parameter in late.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first.step()  # lr > 0: it is the zero that must not be taken for the first gradient
    assert_equal(weights(late), weights(plain))
    train(late, first, 3)
    train(plain, second, 3)
    assert_equal(weights(late), weights(plain))


def test_a_zero_matrix_trains(build):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    nn.init.zeros_(model[2].weight)
    inputs = torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 4)
    optimizer = build(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(150):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model[2].weight.norm() > 0.1
    assert losses[-1] < 0.75 * losses[0]


def test_odd_shapes_stay_finite(build):
    shapes = [(1, 1), (1, 5), (5, 1), (3, 0), (0,), (), (2, 3, 1, 1)]
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = build(parameters)
    for step in range(5):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.1 + step)
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in parameters)
    assert parameters[0].item() != 1.0


def test_strided_weights_train_like_contiguous_ones(build_own):
    def run(layout):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 2)).double()
        model = model.to(memory_format=layout)
        optimizer = build_own(model.parameters())
        for step in range(5):
            torch.manual_seed(step)
            loss = model(torch.randn(4, 3, 4, 4, dtype=torch.float64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return weights(model)

    for a, b in zip(run(torch.contiguous_format), run(torch.channels_last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_step_report_is_by_name_and_fetched_on_request():
    model = make_model()
    optimizer = OPTIMIZERS["everything"](parameter_groups(model))
    assert optimizer.step_report is None
    optimizer.report_norms = True
    train(model, optimizer, 2)
    report = optimizer.step_report
    assert report.step == 2
    assert all(
        isinstance(value, torch.Tensor) for entries in report.values.values() for value in entries.values()
    )
    values = report.fetch()
    assert set(values) == {name for name, _ in model.named_parameters()}
    assert set(values["3.weight"]) == {
        "factor", "snr", "angle", "sigma_weight", "sigma_update", "update_norm", "update_rms", "weight_norm",
    }  # fmt: skip
    assert values["3.bias"]["update_rms"] == pytest.approx(((1 - 0.95) / (1 + 0.95)) ** 0.5, rel=1e-5)


def test_state_is_made_on_the_host_and_the_parameters_device_whatever_the_default(build_own):
    model = make_model()
    with torch.device("meta"):
        optimizer = build_own(model.parameters())
    assert all(
        value.device.type == "cpu" for entries in optimizer.state.values() for value in entries.values()
    )
    train(model, optimizer, 1)


def test_priming_with_gradients_that_have_a_graph():
    weight = nn.Parameter(torch.ones(3, 3))
    (weight.grad,) = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)
    optimizer = GIAdamW([weight])
    optimizer.prime()
    assert not optimizer.state[weight]["exp_avg_sq"].requires_grad
    weight.grad = None


def test_the_global_random_state_is_left_alone(build):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = make_model()
    optimizer = build(model.parameters())
    train(model, optimizer, 2)
    assert torch.equal(torch.get_rng_state(), state)
