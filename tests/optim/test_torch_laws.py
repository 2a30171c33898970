"""The laws of PyTorch's own optimizer suite, run for the optimizers of this package.

PyTorch tests its optimizers by a database (`torch.testing._internal.common_optimizers`) and by generic laws over its
entries (`TestOptimRenewed` in `test/test_optim.py`, which is not in the wheel). Here are the same laws under the
same names over entries of ours (`torch_db`), in stricter form where we promise more, on the CPU. Laws without a test
are in `EXCLUDED`, each with its reason; `test_every_law_is_here_or_excluded` keeps the books. Laws of ours that the
database makes cheap to state are at the end.
"""

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_db import AT_STEP, CASES, CLIQUEY, ERRORS, INFOS, laws_named_by_torch

from warmfree import AdamW2, LionA

_NOT_OURS = "tests one optimizer of torch.optim, or a feature of it, not a law for all"
_NO_COMPLEX = "complex parameters are refused with a TypeError (test_errors)"
_NO_SPARSE = "sparse gradients are refused with a TypeError (test_errors)"
_NO_FUSED = (
    "about torch's fused kernels; ours are for the CPU alone and held to the eager step in test_kernels"
)
_NO_DIFFERENTIABLE = "no step is differentiable; differentiable=True is refused (test_errors)"
_ACCELERATOR = "needs an accelerator; the laws here run on the CPU"

_DIFFERENTIABLE = (
    *("sgd", "adam", "rmsprop", "adadelta", "adagrad", "adamax", "asgd", "rprop", "adamw", "nadam", "radam"),
    *(f"adam_differentiable_{of}" for of in ("lr", "weight_decay", "betas", "all_hyperparams")),
    *(f"adamw_differentiable_{of}" for of in ("lr", "weight_decay", "betas", "all_hyperparams")),
    *("differentiable_lr", "differentiable_weight_decay", "differentiable_weight_decay_and_lr"),
)

# As of torch 2.13. Laws renamed between the releases around it ("# ->") stand under both names.
LAWS_OF_TORCH = {
    "TestOptimRenewed": (
        "test_optim_infos_do_not_specify_global_cliquey_kwargs",
        "test_errors",
        "test_forloop_goes_right_direction",
        "test_forloop_goes_right_direction_multigpu",
        "test_param_group_with_lrscheduler_goes_right_direction",
        "test_tensor_lr",
        "test_rosenbrock_sparse",
        "test_complex",
        "test_complex_2d",
        "test_adamw_serialization",
        "test_foreach_matches_forloop",
        "test_mixed_device_dtype",
        "test_set_default_dtype_works_with_foreach",
        "test_foreach_large_tensor",
        "test_peak_memory_foreach",
        "test_fused_matches_forloop",
        "test_fused_error_on_params_on_meta",
        "test_fused_large_tensor",
        "test_fused_does_not_step_if_foundinf",
        "test_cpu_load_state_dict",
        "test_param_groups_weight_decay",
        "test_param_groups_lr",
        "test_step_is_noop_when_params_have_no_grad",
        "test_step_is_noop_for_zero_grads",
        "test_grads_are_never_inplaced_into",
        "test_optimizer_can_be_printed",
        "test_state_dict_deterministic",
        "test_can_load_older_state_dict",
        "test_can_load_from_to_named_state_dict",
        "test_save_load_equality_with_weights_only",
        "test_load_nontensor_step",
        "test_state_dict_with_cuda_params",  # -> test_state_dict_cross_device
        "test_state_dict_cross_device",
        "test_state_dict_pre_hook",
        "test_state_dict_post_hook",
        "test_state_dict_pre_post_hook",
        "test_load_state_dict_pre_hook_and_prepend",
        "test_load_state_dict_post_hook",
        "test_load_state_dict_pre_post_hook",
        "test_step_post_hook",
        "test_step_pre_hook",
        "test_step_all_hooks",
        "test_deepcopy_copies_all_public_attrs",
        "test_second_order_optims_return_consistent_types",
        "test_fused_cpu_matches_cuda",  # -> test_fused_cpu_matches_device
        "test_fused_cpu_matches_device",
        "test_defaults_changed_to_foreach",
        "test_non_empty_state",
        "test_fused_mixed_precision_state_init",
        "test_fused_mixed_precision_hook_skips_existing_state",
        "test_fused_mixed_precision_numerics",
        "test_step_iteration",
    ),
    "TestDifferentiableOptimizer": tuple(f"test_{name}" for name in _DIFFERENTIABLE),
}

# Two more classes run with these in torch, TestLRScheduler and TestSWAUtils. They test schedulers and averaged models
# on torch's SGD, and hold of no optimizer in particular.
EXCLUDED = {
    **dict.fromkeys(LAWS_OF_TORCH["TestDifferentiableOptimizer"], _NO_DIFFERENTIABLE),
    "test_forloop_goes_right_direction_multigpu": _ACCELERATOR,
    "test_rosenbrock_sparse": _NO_SPARSE,
    "test_complex": _NO_COMPLEX,
    "test_complex_2d": _NO_COMPLEX,
    "test_adamw_serialization": _NOT_OURS,
    "test_foreach_large_tensor": "needs an accelerator with 72 GB",
    "test_peak_memory_foreach": "needs an accelerator: the CPU's allocator keeps no statistics",
    "test_fused_matches_forloop": _NO_FUSED,
    "test_fused_error_on_params_on_meta": _NO_FUSED,
    "test_fused_large_tensor": _NO_FUSED,
    "test_fused_does_not_step_if_foundinf": _NO_FUSED,
    "test_cpu_load_state_dict": "for fused and capturable state on an accelerator, which we have not",
    "test_load_nontensor_step": "no version has saved `step` as a number; what is no tensor is refused as corrupt",
    "test_state_dict_with_cuda_params": _ACCELERATOR,
    "test_state_dict_cross_device": _ACCELERATOR,
    "test_second_order_optims_return_consistent_types": "for optimizers that need a closure (LBFGS)",
    "test_fused_cpu_matches_cuda": _NO_FUSED,
    "test_fused_cpu_matches_device": _NO_FUSED,
    "test_defaults_changed_to_foreach": "patches torch's private functions, on an accelerator",
    "test_fused_mixed_precision_state_init": _NO_FUSED,
    "test_fused_mixed_precision_hook_skips_existing_state": _NO_FUSED,
    "test_fused_mixed_precision_numerics": _NO_FUSED,
    "test_step_iteration": _NOT_OURS,
}

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_info = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
float32_and_narrow = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
loop_and_foreach = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])


def test_every_law_is_here_or_excluded():
    here = {name for name in globals() if name.startswith("test_")}
    listed = [name for names in LAWS_OF_TORCH.values() for name in names]
    assert len(listed) == len(set(listed))
    assert EXCLUDED.keys() <= set(listed)
    assert not EXCLUDED.keys() & here
    assert set(listed) <= EXCLUDED.keys() | here
    assert all(EXCLUDED.values())


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the list is that of torch 2.13")
def test_the_list_has_every_law_that_torch_names():
    assert laws_named_by_torch() <= set(LAWS_OF_TORCH["TestOptimRenewed"])


def _centred(weight):
    """Rows without a mean: it is what zero_mean=True would make of them, uphill or not, in its first step."""
    return weight.sub_(weight.mean(1, keepdim=True))


class Affine:
    """The loss |Wx + b|^2 of a matrix and a vector."""

    def __init__(self, *, dtype=torch.float32, contiguous=True, shape=(10, 5)):
        rows, columns = shape
        if contiguous:
            weight, bias = torch.randn(rows, columns, dtype=dtype), torch.randn(rows, dtype=dtype)
        else:
            weight = torch.randn(rows, columns, 2, dtype=dtype)[..., 0]
            bias = torch.randn(rows, 2, dtype=dtype)[..., 0]
        self.weight, self.bias = nn.Parameter(_centred(weight)), nn.Parameter(bias)
        self.x = torch.randn(columns, dtype=dtype)

    @property
    def parameters(self):
        return [self.weight, self.bias]

    def named(self):
        return [("the weight", self.weight), ("the bias", self.bias)]

    def twin(self):
        return copy.deepcopy(self)

    def backward(self):
        for parameter in self.parameters:
            parameter.grad = None
        loss = (self.weight @ self.x + self.bias).square().sum()
        loss.backward()
        return loss

    def loss(self):
        return self.backward().item()

    def train(self, optimizer, steps):
        for _ in range(steps):
            self.backward()
            optimizer.step()


def convolution():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 2, 1, stride=2), nn.BatchNorm2d(2))
    images = torch.rand(1, 4, 16, 16, generator=generator)

    def train(optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()

    return model, train


def assert_same(left, right):
    """Same structure, same types, same bits."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def assert_better(case, after, before):
    assert (after > before) if case.maximize else (after < before)


# Configurations and errors.


@each_case
def test_optim_infos_do_not_specify_global_cliquey_kwargs(case):
    assert not case.kwargs().keys() & set(CLIQUEY)


@pytest.mark.parametrize(
    ("info", "error"),
    [pytest.param(*pair, id=f"{pair[0].name}-{pair[1].optimizer_error_input.desc}") for pair in ERRORS],
)
def test_errors(info, error):
    given = error.optimizer_error_input
    build = functools.partial(info.optim_cls, given.params, **given.kwargs)
    act = build().step if error.error_on == AT_STEP else build
    expect = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with expect(error.error_type, match=error.error_regex):
        act()


# Steps.


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@each_case
def test_forloop_goes_right_direction(case, contiguous, scheduled):
    for build_schedulers in case.info.scheduler_inputs if scheduled else [()]:
        problem = Affine(contiguous=contiguous)
        optimizer = case.build(problem.parameters, foreach=False)
        schedulers = [build(optimizer) for build in build_schedulers]
        before = problem.loss()
        for _ in range(20):
            loss = problem.loss()
            optimizer.step()
            _advance(schedulers, loss)
        assert_better(case, problem.loss(), before)


def _advance(schedulers, loss):
    for scheduler in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss)
        else:
            scheduler.step()


@each_info
def test_param_group_with_lrscheduler_goes_right_direction(info):
    for build_schedulers in info.scheduler_inputs:
        problem = Affine()
        optimizer = info.optim_cls([{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}])
        schedulers = [build(optimizer) for build in build_schedulers]
        before = problem.loss()
        for _ in range(20):
            _advance(schedulers, optimizer.step(problem.loss))
        assert problem.loss() < before


@loop_and_foreach
@each_case
def test_tensor_lr(case, foreach):
    lr = 2.0**-10  # the same number as a tensor in float32
    problem = Affine()
    twins = [problem.twin() for _ in range(3)]
    problem.train(case.build(problem.parameters, lr=lr, foreach=foreach), 5)
    for dimensions, twin in enumerate(twins):
        tensor = torch.tensor(lr).reshape([1] * dimensions)
        twin.train(case.build(twin.parameters, lr=tensor, foreach=foreach), 5)
        assert_same(problem.parameters, twin.parameters)
        assert tensor.item() == lr


def _train_frozen_for_a_while(case, dtype, *, foreach):
    """Seven steps of a small network and a scalar, without gradients in the third, a layer frozen from the fourth."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, dtype=torch.float64, generator=generator) - 0.5)
    scalar = nn.Parameter(torch.tensor(0.5, dtype=dtype))
    inputs = torch.linspace(0.1, 0.6, 6, dtype=dtype).reshape(3, 2)
    optimizer = case.build([*model.parameters(), scalar], foreach=foreach)
    trajectory = []
    for step in range(7):
        optimizer.zero_grad()
        model[2].requires_grad_(step not in (3, 4))
        if step != 2:
            (model(inputs).sum() * scalar).backward()
        optimizer.step()
        trajectory += [parameter.detach().clone() for parameter in (*model.parameters(), scalar)]
        trajectory += copy.deepcopy([optimizer.state[p] for p in (*model.parameters(), scalar)])
    return trajectory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_foreach_matches_forloop(case, dtype):
    assert_same(
        _train_frozen_for_a_while(case, dtype, foreach=False),
        _train_frozen_for_a_while(case, dtype, foreach=True),
    )


@each_case
def test_mixed_device_dtype(case):
    """Of one device; types mixed in one group."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16) * 2
    values = [torch.rand(2, 3, dtype=dtype) for dtype in dtypes]
    gradients = [torch.rand(2, 3, dtype=dtype) for dtype in dtypes]

    def run(foreach):
        parameters = [nn.Parameter(value.clone()) for value in values]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer = case.build(parameters, foreach=foreach)
        for _ in range(7):
            optimizer.step()
        return parameters, [optimizer.state[parameter] for parameter in parameters]

    assert_same(run(False), run(True))


@pytest.fixture
def set_default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@each_case
def test_set_default_dtype_works_with_foreach(case, dtype, set_default_dtype):
    """Torch's counters follow a wide default; ours are float32, and nothing depends on the default."""
    expected = _train_frozen_for_a_while(case, torch.float64, foreach=True)
    set_default_dtype(dtype)
    # assert_same compares types, too: those of the state are among what must not change.
    assert_same(expected, _train_frozen_for_a_while(case, torch.float64, foreach=True))
    assert_same(expected, _train_frozen_for_a_while(case, torch.float64, foreach=False))


@loop_and_foreach
@each_case
def test_param_groups_weight_decay(case, foreach):
    problem, other = Affine(), nn.Parameter(_centred(torch.randn(10, 5)))
    problem.bias = nn.Parameter(torch.zeros(10))
    optimizer = case.info.optim_cls(
        [
            {"params": [problem.weight], **case.kwargs(foreach=foreach)},
            {"params": [other, problem.bias], **case.kwargs(foreach=foreach, weight_decay=0.0)},
        ]
    )

    def backward():
        optimizer.zero_grad()
        loss = (problem.weight @ problem.x + other @ problem.x + problem.bias).square().sum()
        loss.backward()
        return loss.item()

    before = backward()
    for _ in range(20):
        optimizer.step()
        after = backward()
    assert_better(case, after, before)


@loop_and_foreach
@each_case
def test_param_groups_lr(case, foreach):
    problem, still = Affine(), nn.Parameter(torch.randn(2, 2))
    kwargs = {"lr": 1e-3, **case.kwargs(foreach=foreach)}
    optimizer = case.info.optim_cls([{"params": problem.parameters, **kwargs}, {"params": [still]}], lr=1e-28)
    before, place = problem.loss(), still.detach().clone()
    for _ in range(20):
        problem.backward()
        still.grad = torch.rand_like(still)
        optimizer.step()
    assert_better(case, problem.loss(), before)
    torch.testing.assert_close(still.detach(), place)


@loop_and_foreach
@each_case
def test_step_is_noop_when_params_have_no_grad(case, foreach):
    parameters = [torch.randn(2, 3) for _ in range(2)]
    optimizer = case.build(parameters, foreach=foreach)
    before = copy.deepcopy([parameters, optimizer.state_dict()])
    assert optimizer.step(lambda: torch.tensor([1.0])) == 1
    assert_same(before, [parameters, optimizer.state_dict()])


@loop_and_foreach
@each_case
def test_step_is_noop_for_zero_grads(case, foreach):
    """At lr 0, and else for whatever has no weight decay."""
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((5, 1), (5, 3), (4,))]
    decayed = nn.Parameter(torch.ones(2, 2))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(parameters)
    still = case.build(parameters, foreach=foreach, lr=0.0)
    state = copy.deepcopy(still.state_dict())
    still.step()
    assert_same(state, still.state_dict())
    assert_same(before, parameters)

    groups = [{"params": [decayed]}, {"params": parameters, "weight_decay": 0.0}]
    moving = case.build(groups, foreach=foreach, weight_decay=0.1)
    for _ in range(3):
        moving.step()
    assert_same(before, parameters)


@loop_and_foreach
@each_case
def test_grads_are_never_inplaced_into(case, foreach):
    kinds = [
        (shape, dtype) for shape in ((5, 3), (5,)) for dtype in (torch.float32, torch.float64, torch.bfloat16)
    ]
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in kinds]
    for parameter in parameters:
        parameter.grad = torch.rand_like(parameter)
    before = [(parameter.grad._version, parameter.grad.clone()) for parameter in parameters]
    optimizer = case.build(parameters, foreach=foreach)
    for _ in range(5):
        optimizer.step()
    assert_same(before, [(parameter.grad._version, parameter.grad) for parameter in parameters])


@each_case
def test_optimizer_can_be_printed(case):
    text = repr(case.build(Affine().parameters))
    assert text.startswith(f"{case.info.name} (")
    assert "weight_decay" in text


@each_case
def test_non_empty_state(case):
    problem = Affine()
    optimizer = case.build(problem.parameters)
    problem.train(optimizer, 1)
    assert [*optimizer.state] == problem.parameters
    assert all("step" in entries for entries in optimizer.state.values())


# State dicts.


def _without_names(state_dict):
    groups = [
        {key: value for key, value in group.items() if key != "param_names"}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


@pytest.mark.parametrize("named_there", [False, True], ids=["from plain", "from named"])
@pytest.mark.parametrize("named_here", [False, True], ids=["to plain", "to named"])
@each_case
def test_state_dict_deterministic(case, named_there, named_here):
    problem, foreach = Affine(shape=(2, 3)), named_there == named_here  # both ways, with names and without
    optimizer = case.build(problem.named() if named_there else problem.parameters, foreach=foreach)
    problem.train(optimizer, 10)
    twin = problem.twin()
    other = case.build(twin.named() if named_here else twin.parameters, foreach=foreach)
    saved = copy.deepcopy(optimizer.state_dict())
    passed = copy.deepcopy(saved)
    other.load_state_dict(passed)
    assert_same(saved, passed)
    for _ in range(10):
        problem.train(optimizer, 1)
        twin.train(other, 1)
        assert_same(problem.parameters, twin.parameters)
    assert_same(_without_names(optimizer.state_dict()), _without_names(other.state_dict()))
    other.param_groups.extend(other.param_groups)  # the same parameters again get the same numbers
    assert_same(
        _without_names(optimizer.state_dict())["param_groups"][-1],
        _without_names(other.state_dict())["param_groups"][-1],
    )


@each_case
def test_can_load_older_state_dict(case):
    """Flags that came after the first release may be missing: there are none yet."""
    model, train = convolution()
    optimizer = case.build(model.parameters())
    train(optimizer, 3)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in case.info.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(old)
    train(optimizer, 1)
    assert all(entries["step"] == 4 for entries in optimizer.state.values())


@pytest.mark.parametrize("named_there", [False, True], ids=["from plain", "from named"])
@pytest.mark.parametrize("named_here", [False, True], ids=["to plain", "to named"])
@each_case
def test_can_load_from_to_named_state_dict(case, named_there, named_here):
    model, train = convolution()

    def build(named):
        return case.build(model.named_parameters() if named else model.parameters())

    first, second = build(named_there), build(named_here)
    train(first, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, 1)
    (group,) = second.state_dict()["param_groups"]
    names = [name for name, _ in model.named_parameters()]
    assert group.get("param_names") == (names if named_there or named_here else None)


@pytest.mark.parametrize("named", [False, True], ids=["plain", "named"])
@each_case
def test_save_load_equality_with_weights_only(case, named):
    problem = Affine(shape=(2, 3))
    optimizer = case.build(problem.named() if named else problem.parameters)
    problem.train(optimizer, 3)
    state_dict = optimizer.state_dict()
    for weights_only in (None, True, False):
        file = io.BytesIO()
        torch.save(state_dict, file)
        file.seek(0)
        assert_same(state_dict, torch.load(file, weights_only=weights_only))


# Hooks of state dicts.


def _mark_state(optimizer):
    optimizer.state["mark"] = 1


def _take_mark(optimizer, state_dict):
    state_dict["marked"] = state_dict["state"].pop("mark", None) is not None
    return state_dict


@each_case
def test_state_dict_pre_hook(case):
    optimizer = case.build([torch.rand(2, 3)])
    optimizer.register_state_dict_pre_hook(_mark_state)
    assert optimizer.state_dict()["state"]["mark"] == 1


@each_case
def test_state_dict_post_hook(case):
    optimizer = case.build([torch.rand(2, 3)])
    optimizer.register_state_dict_post_hook(_take_mark)
    assert optimizer.state_dict()["marked"] is False


@each_case
def test_state_dict_pre_post_hook(case):
    optimizer = case.build([torch.rand(2, 3)])
    optimizer.register_state_dict_pre_hook(_mark_state)
    optimizer.register_state_dict_post_hook(_take_mark)
    state_dict = optimizer.state_dict()
    assert state_dict["marked"] is True
    assert "mark" not in state_dict["state"]


def _set_lr_to_2(optimizer, state_dict):
    state_dict["param_groups"][0]["lr"] = 0.002


def _return_lr_of_3(optimizer, state_dict):
    new = copy.deepcopy(state_dict)
    new["param_groups"][0]["lr"] = 0.003
    return new


def _note_what_was_loaded(optimizer):
    optimizer.state["saw lr of 3"] = optimizer.param_groups[0]["lr"] == 0.003
    optimizer.state["ran"] = True


@each_case
def test_load_state_dict_pre_hook_and_prepend(case):
    optimizer = case.build([torch.rand(2, 3)])
    state_dict = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(_set_lr_to_2)
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.002
    handle = optimizer.register_load_state_dict_pre_hook(_return_lr_of_3, prepend=True)
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.002  # the first one's 0.003 was overwritten by the second
    handle.remove()
    optimizer.register_load_state_dict_pre_hook(_return_lr_of_3)
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.003


@each_case
def test_load_state_dict_post_hook(case):
    optimizer = case.build([torch.rand(2, 3)])
    optimizer.register_load_state_dict_post_hook(_note_what_was_loaded)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["ran"]
    assert not optimizer.state["saw lr of 3"]


@each_case
def test_load_state_dict_pre_post_hook(case):
    optimizer = case.build([torch.rand(2, 3)])
    optimizer.register_load_state_dict_pre_hook(_return_lr_of_3)
    optimizer.register_load_state_dict_post_hook(_note_what_was_loaded)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["ran"]
    assert optimizer.state["saw lr of 3"]


# Hooks of steps.


def _counting(register):
    seen = []
    handle = register(lambda *_: seen.append(1))
    return seen, handle


@each_case
def test_step_post_hook(case):
    optimizer = case.build([torch.ones(1, 2)])
    seen, handle = _counting(optimizer.register_step_post_hook)
    optimizer.step()
    optimizer.step()
    assert len(seen) == 2
    handle.remove()
    optimizer.step()
    assert len(seen) == 2


@each_case
def test_step_pre_hook(case):
    optimizer = case.build([torch.ones(1, 2)])
    seen, handle = _counting(optimizer.register_step_pre_hook)
    optimizer.step()
    optimizer.step()
    assert len(seen) == 2
    handle.remove()
    optimizer.step()
    assert len(seen) == 2


@each_case
def test_step_all_hooks(case):
    parameters = [torch.ones(1, 2)]
    optimizers = case.build(parameters), torch.optim.SGD(parameters)
    seen = []
    order = ["before any", "before", "after", "after any"]

    def note(what):
        return lambda *_: seen.append(what)

    handles = [
        register_optimizer_step_pre_hook(note("before any")),
        register_optimizer_step_post_hook(note("after any")),
    ]
    try:
        for optimizer in optimizers:
            handles.append(optimizer.register_step_post_hook(note("after")))
            handles.append(optimizer.register_step_pre_hook(note("before")))
        for times, optimizer in enumerate((*optimizers, optimizers[0]), start=1):
            optimizer.step()
            assert seen == order * times
    finally:
        for handle in handles:
            handle.remove()
    for optimizer in optimizers:
        optimizer.step()
    assert seen == order * 3


# Copies.


def _public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


@each_case
def test_deepcopy_copies_all_public_attrs(case):
    problem = Affine(shape=(2, 3))
    optimizer = case.build(problem.parameters)
    problem.train(optimizer, 3)
    assert _public(optimizer) == _public(copy.deepcopy(optimizer))
    assert _public(optimizer) == _public(pickle.loads(pickle.dumps(optimizer)))


# Laws of ours, over the same entries.


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
@each_case
def test_copies_go_on_alike(case, clone):
    problem = Affine()
    optimizer = case.build(problem.parameters)
    problem.train(optimizer, 3)
    twin, other = clone((problem, optimizer))
    problem.train(optimizer, 3)
    twin.train(other, 3)
    assert_same(problem.parameters, twin.parameters)
    assert_same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_case
def test_a_shallow_copy_is_loaded_as_a_deep_one(case, dtype):
    problem = Affine(dtype=dtype)
    optimizer = case.build(problem.parameters)
    problem.train(optimizer, 3)
    results = []
    for duplicate in (copy.deepcopy, copy.copy):
        twin = problem.twin()
        other = case.build(twin.parameters)
        other.load_state_dict(duplicate(optimizer.state_dict()))
        twin.train(other, 3)
        results.append([twin.parameters, copy.deepcopy(other.state_dict())])
    assert_same(*results)


@each_case
def test_a_closure_is_called_once_with_gradients_enabled_and_its_loss_returned(case):
    problem = Affine()
    optimizer = case.build(problem.parameters)
    losses = []

    def closure():
        losses.append(problem.backward())
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert optimizer.step() is None


@loop_and_foreach
@each_case
def test_groups_are_as_optimizers_of_their_own(case, foreach):
    """And a group that is added later is as one that was there."""
    together, apart, later = (Affine() for _ in range(3))
    for problem in (apart, later):
        problem.weight.data.copy_(together.weight.data)
        problem.bias.data.copy_(together.bias.data)
        problem.x = together.x
    quick = {"lr": 0.01, "foreach": foreach}
    one = case.build([{"params": [together.weight]}, {"params": [together.bias], **quick}])
    two = [case.build([apart.weight]), case.build([apart.bias], **quick)]
    added = case.build([later.weight])
    added.add_param_group({"params": [later.bias], **quick})
    for _ in range(4):
        together.train(one, 1)
        later.train(added, 1)
        apart.backward()
        for optimizer in two:
            optimizer.step()
    assert_same(together.parameters, apart.parameters)
    assert_same(together.parameters, later.parameters)


@loop_and_foreach
@each_case
def test_options_edited_in_a_group_hold_from_the_next_step_on(case, foreach):
    edited = Affine()
    built = edited.twin()
    changed = {"lr": 0.004, "weight_decay": 0.3, "maximize": not case.maximize}
    first = case.build(edited.parameters, foreach=foreach)
    second = case.build(built.parameters, **{"foreach": foreach, **changed})
    first.param_groups[0].update(changed)
    if "peak_lr" in first.param_groups[0]:  # an option, too, which the first lr gave
        second.param_groups[0]["peak_lr"] = first.param_groups[0]["peak_lr"]
    edited.train(first, 4)
    built.train(second, 4)
    assert_same(edited.parameters, built.parameters)


@loop_and_foreach
@each_case
def test_a_parameter_without_gradient_stays_and_the_rest_does_not_notice(case, foreach):
    problem = Affine()
    alone = problem.twin()
    optimizer = case.build(problem.parameters, foreach=foreach)
    other = case.build([alone.weight], foreach=foreach)
    bias = problem.bias.detach().clone()
    for _ in range(3):
        problem.backward()
        problem.bias.grad = None
        optimizer.step()
        alone.train(other, 1)
    assert_same(bias, problem.bias.detach())
    assert optimizer.state[problem.bias]["step"] == 0
    assert_same(problem.weight, alone.weight)


@float32_and_narrow
@each_info
def test_what_a_load_hook_makes_of_the_state_is_what_is_loaded(info, dtype):
    problem = Affine(dtype=dtype)
    optimizer = info.optim_cls(problem.parameters)
    problem.train(optimizer, 2)

    def set_momentum(optimizer, state_dict):
        new = copy.deepcopy(state_dict)
        for entries in new["state"].values():
            entries["exp_avg"].fill_(0.3)
        return new

    optimizer.register_load_state_dict_pre_hook(set_momentum)
    optimizer.load_state_dict(optimizer.state_dict())
    for entries in optimizer.state.values():
        assert entries["exp_avg"].dtype == torch.float32
        assert torch.equal(entries["exp_avg"], torch.full_like(entries["exp_avg"], 0.3))


@float32_and_narrow
@each_info
def test_what_a_load_hook_writes_afterwards_stays(info, dtype):
    problem = Affine(dtype=dtype)
    optimizer = info.optim_cls(problem.parameters)
    problem.train(optimizer, 2)

    def set_momentum(optimizer):
        for entries in optimizer.state.values():
            entries["exp_avg"].fill_(0.3)

    optimizer.register_load_state_dict_post_hook(set_momentum)
    optimizer.load_state_dict(optimizer.state_dict())
    for entries in optimizer.state.values():
        assert entries["exp_avg"].dtype == torch.float32
        assert torch.equal(entries["exp_avg"], torch.full_like(entries["exp_avg"], 0.3))


def test_a_load_hook_may_adapt_a_foreign_state_dict():
    """What torch's hooks are for: a state_dict that would not do is made one that does before it is looked at."""
    problem = Affine()
    optimizer = LionA(problem.parameters)
    problem.train(optimizer, 2)
    foreign = copy.deepcopy(optimizer.state_dict())
    for entries in foreign["state"].values():
        entries["momentum_buffer"] = entries.pop("exp_avg")

    def rename(optimizer, state_dict):
        new = copy.deepcopy(state_dict)
        for entries in new["state"].values():
            entries["exp_avg"] = entries.pop("momentum_buffer")
        return new

    other = LionA(problem.twin().parameters)
    other.register_load_state_dict_pre_hook(rename)
    other.load_state_dict(foreign)
    assert_same(optimizer.state_dict(), other.state_dict())


def test_a_hook_cannot_load_what_would_be_refused():
    optimizer = AdamW2(Affine().parameters)

    def spoil(optimizer, state_dict):
        new = copy.deepcopy(state_dict)
        new["param_groups"][0]["tau"] = -1.0
        return new

    optimizer.register_load_state_dict_pre_hook(spoil)
    with pytest.raises(ValueError, match="tau"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["tau"] > 0


@pytest.mark.parametrize("remade", [lambda same: same, copy.deepcopy], ids=["again", "by a copy"])
@each_info
def test_a_state_dict_can_be_loaded_again_and_by_a_copy(info, remade):
    problem = Affine()
    optimizer = info.optim_cls(problem.parameters)
    problem.train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    other = info.optim_cls(problem.twin().parameters)
    other.load_state_dict(copy.deepcopy(saved))
    other = remade(other)
    other.load_state_dict(copy.deepcopy(saved))
    assert_same(saved, other.state_dict())


@each_info
def test_state_that_belongs_to_no_parameter_is_kept(info):
    """torch.optim copies it, and hooks of its own suite write it."""
    problem = Affine()
    optimizer = info.optim_cls(problem.parameters)
    optimizer.state["mark"] = 1
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        problem.train(optimizer, 1)
    assert optimizer.state["mark"] == 1
    other = info.optim_cls(problem.twin().parameters)
    other.load_state_dict(optimizer.state_dict())
    assert other.state["mark"] == 1


@each_info
def test_a_generator_of_parameters_and_names_do(info):
    model, train = convolution()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        optimizer = info.optim_cls(named for named in model.named_parameters())
        train(optimizer, 1)
    assert not raised
    assert set(optimizer.step_report.values) <= {name for name, _ in model.named_parameters()}
