"""The five optimizers as entries of torch's own optimizer database, for the laws of `test_torch_laws`.

The only file that imports from `torch.testing._internal`; without it, whatever imports this file is skipped.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import Parameter

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW

common = pytest.importorskip("torch.testing._internal.common_optimizers", exc_type=ImportError)

CLIQUEY = ("foreach", "fused", "differentiable")
AT_STEP = common.OptimizerErrorEnum.STEP_ERROR


def _named(kwargs):
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in kwargs.items())


def _inputs(*own):
    """What every optimizer takes, and the configurations of one, as a function that makes them afresh."""

    def make(device, dtype=None):
        shared = {
            "default": {},
            "lr": {"lr": 0.004},
            "weight_decay": {"weight_decay": 0.1},
            "maximize": {"weight_decay": 0.01, "maximize": True},
            "Tensor lr": {"lr": torch.tensor(0.001, dtype=torch.float32)},
        }
        configurations = [*shared.items(), *((_named(kwargs), dict(kwargs)) for kwargs in own)]
        return [
            common.OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in configurations
        ]

    return make


def _error(desc, message, *, params=None, at_step=False, error=ValueError, **kwargs):
    on = AT_STEP if at_step else common.OptimizerErrorEnum.CONSTRUCTION_ERROR
    what = common.OptimizerInput(params=params, kwargs=kwargs, desc=desc)
    return common.ErrorOptimizerInput(what, error_on=on, error_type=error, error_regex=message)


def _errors(*own):
    """What no optimizer of torch takes, what none of ours does, and what one of ours does not."""

    def make(device, dtype):
        embedded = Parameter(torch.ones(3, 2, device=device, dtype=dtype))
        embedded.grad = torch.ones(3, 2, device=device, dtype=dtype).to_sparse()
        imaginary = Parameter(torch.ones(3, 2, device=device, dtype=torch.complex64))
        counts = torch.ones(3, 2, device=device, dtype=torch.int64)
        switches = [
            _error(f"no {name}", f"unexpected keyword argument '{name}'", error=TypeError, **{name: True})
            for name in ("differentiable",)
        ]
        return [
            *common.get_error_inputs_for_all_optims(device, dtype),
            *switches,
            _error("lr below 0", "lr must be finite and >= 0, got -1", lr=-1.0),
            _error("Tensor lr below 0", "lr must be finite and >= 0, got -1", lr=torch.tensor(-1.0)),
            _error("lr is NaN", "lr must be finite and >= 0, got nan", lr=float("nan")),
            _error("weight_decay below 0", "weight_decay.* must be .*got -1", weight_decay=-1),
            _error("nonfinite", "nonfinite must be 'skip', 'raise' or 'ignore'", nonfinite="explode"),
            _error("no parameters", "empty parameter list", params=[]),
            _error("complex parameter", "real floating-point", params=[imaginary], error=TypeError),
            _error("integer parameter", "real floating-point", params=[counts], error=TypeError),
            _error("sparse gradient", "sparse gradients", params=[embedded], error=TypeError, at_step=True),
            *(_error(desc, message, **kwargs) for desc, message, kwargs in own),
        ]

    return make


_ADAM_ERRORS = (
    ("beta1 of 1", r"betas must be two numbers in \[0, 1\), got \(1.0, 0.0\)", {"betas": (1.0, 0.0)}),
    ("beta2 below 0", r"betas must be two numbers in \[0, 1\)", {"betas": (0.9, -0.1)}),
    ("three betas", r"betas must be two numbers in \[0, 1\)", {"betas": (0.9, 0.9, 0.9)}),
    ("eps below 0", "eps must be finite and >= 0", {"eps": -1e-8}),
)
_LION_ERRORS = (
    ("momentum of 1", r"momentum must be in \[0, 1\), got 1", {"momentum": 1.0}),
    ("momentum below 0", r"momentum must be in \[0, 1\), got -0.1", {"momentum": -0.1}),
)
_ROTATION_ERRORS = (("no weight_decay", "derives the angle of its steps", {"weight_decay": 0.0}),)


def _info(optimizer, *, inputs, errors):
    like = next(info for info in common.optim_db if info.optim_cls is torch.optim.Adam)
    return common.OptimizerInfo(
        optimizer,
        optim_inputs_func=_inputs(*inputs),
        scheduler_inputs=like.scheduler_inputs,  # AdamW's, and some more
        supported_impls=("foreach",),
        not_og_supported_flags=(),  # the first release has all there are
        supports_complex=False,
        optim_error_inputs_func=_errors(*errors),
    )


INFOS = (
    _info(
        AdamW2,
        inputs=(
            {"weight_decay": 0.0},
            {"betas": (0.8, 0.95), "eps": 1e-6},
            {"tau": 1e-3, "power_iterations": 1},
            {"tau": float("inf")},
        ),
        errors=(
            *_ADAM_ERRORS,
            ("tau of 0", "tau must be > 0, got 0", {"tau": 0.0}),
            ("no power iterations", "power_iterations must be an integer >= 1", {"power_iterations": 0}),
        ),
    ),
    _info(
        GIAdamW,
        inputs=({"weight_decay": 0.0}, {"betas": (0.8, 0.95), "eps": 1e-6}),
        errors=_ADAM_ERRORS,
    ),
    _info(
        LionA,
        inputs=({"weight_decay": 0.0}, {"momentum": 0.95}, {"nesterov": False}),
        errors=_LION_ERRORS,
    ),
    _info(
        LionAR,
        inputs=(
            {"momentum": 0.9},
            {"nesterov": False},
            {"per_neuron": False},
            {"angle_schedule": "linear"},
            {"inverse_bias_correction": False},
        ),
        errors=(
            *_LION_ERRORS,
            *_ROTATION_ERRORS,
            ("angle_schedule", "angle_schedule must be 'sqrt' or 'linear'", {"angle_schedule": "cubic"}),
        ),
    ),
    _info(
        RotationalAdamW,
        inputs=(
            {"betas": (0.8, 0.95), "eps": 1e-6},
            {"update_norm_decay": 0.0},
            {"per_neuron": False},
            {"zero_mean": True},
        ),
        errors=(
            *_ADAM_ERRORS,
            *_ROTATION_ERRORS,
            ("update_norm_decay", r"update_norm_decay must be in \[0, 1\)", {"update_norm_decay": 1.0}),
        ),
    ),
)


@dataclass(frozen=True)
class Case:
    """One configuration of one optimizer."""

    info: object
    desc: str

    def __str__(self):
        return f"{self.info.name}-{self.desc}"

    def kwargs(self, **changes):
        """Fresh options: a Tensor lr is written to by schedulers."""
        (found,) = (each for each in self.info.optim_inputs_func("cpu") if each.desc == self.desc)
        return {**found.kwargs, **changes}

    def build(self, parameters, **changes):
        return self.info.optim_cls(parameters, **self.kwargs(**changes))

    @property
    def maximize(self):
        return self.kwargs().get("maximize", False)


CASES = tuple(Case(info, each.desc) for info in INFOS for each in info.optim_inputs_func("cpu"))
ERRORS = tuple(
    (info, each) for info in INFOS for each in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
)


def laws_named_by_torch():
    """Names of the tests that torch's database makes exceptions for: a sample of those there are."""
    return {
        exception.test_name
        for info in common.optim_db
        for exception in info.decorators
        if getattr(exception, "cls_name", None) == "TestOptimRenewed" and exception.test_name is not None
    }
