"""What cannot be searched is refused in words, and nothing is changed by it; where batches come from."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from critical_cases import squares
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from traces import Traces
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical import NonDeterministicLossError, critical_lr
from warmfree.schedule.critical.batches import first_batches


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


def make_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 5, generator=generator), torch.randn(12, 2, generator=generator)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


own_generator = torch.Generator().manual_seed(2)
count = iter(range(10**6))


def noisy(model, batch):
    noise = torch.randn(12, 5, generator=own_generator)
    return squares(model, (batch[0] + noise, batch[1]))


class Sharpening(torch.optim.SGD):
    """Takes a closure, and cannot do without."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("this step needs a closure")
        return super().step(closure)


def frozen(model):
    model.requires_grad_(False)
    return model


NOT_A_SEARCH = {
    "nan": (ValueError, "the loss is nan", {"loss_fn": lambda m, b: squares(m, b) * math.nan}),
    "inf": (ValueError, "the loss is inf", {"loss_fn": lambda m, b: squares(m, b) + math.inf}),
    "zero gradient": (ValueError, "the loss is constant", {"loss_fn": lambda m, b: squares(m, b) * 0 + 1}),
    "no graph": (ValueError, "the loss has no gradient", {"loss_fn": lambda m, b: torch.tensor(1.0)}),
    "detached": (ValueError, "the loss has no gradient", {"loss_fn": lambda m, b: squares(m, b).detach()}),
    "frozen": (ValueError, "the loss has no gradient", {"change": frozen}),
    "nan gradient": (
        ValueError,
        "gradient of 4.bias is not finite",
        {"loss_fn": lambda m, b: squares(m, b) + (m[4].bias * 0).sqrt().sum()},
    ),
    "another model's": (ValueError, "no weight of the optimizer", {"optimizer": lambda m: sgd(make_model())}),
    "own generator": (NonDeterministicLossError, "not deterministic", {"loss_fn": noisy}),
    "counts calls": (
        NonDeterministicLossError,
        "nor draw its own data",
        {"loss_fn": lambda m, b: squares(m, b) + next(count)},
    ),
    "writes to the batch": (
        NonDeterministicLossError,
        "nor write to the batch",
        {"loss_fn": lambda m, b: squares(m, (b[0].sin_(), b[1]))},
    ),
    "no mean": (ValueError, r"shape \(12, 2\)", {"loss_fn": lambda m, b: (m(b[0]) - b[1]).square()}),
    "integers": (ValueError, "real scalar", {"loss_fn": lambda m, b: squares(m, b).long()}),
    "dict": (TypeError, r"got dict.*\.loss", {"loss_fn": lambda m, b: {"loss": squares(m, b)}}),
    "float": (TypeError, "got float", {"loss_fn": lambda m, b: squares(m, b).item()}),
    "none": (TypeError, "got NoneType", {"loss_fn": lambda m, b: None}),
    "eval mode": (ValueError, r"eval mode.*model\.train\(\)", {"change": nn.Module.eval}),
    "lbfgs": (
        TypeError,
        "LBFGS.step needs 'closure'",
        {"optimizer": lambda m: torch.optim.LBFGS(m.parameters())},
    ),
    "closure after all": (
        RuntimeError,
        "needs a closure",
        {"optimizer": lambda m: Sharpening(m.parameters(), lr=0.1)},
    ),
    "lr 0": (ValueError, "not all 0", {"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.0)}),
    "no lr": (
        ValueError,
        "without a learning rate",
        {"optimizer": lambda m: torch.optim.Optimizer(m.parameters(), {"rate": 0.1})},
    ),
    "no batches": (ValueError, "batches is empty: 1 needed", {"batches": []}),
    "empty iterator": (ValueError, "batches is empty", {"batches": iter(())}),
    "too few": (ValueError, "only 1 of the 2", {"num_steps": 2}),
    "too few to add up": (ValueError, "only 1 of the 3", {"accumulate": 3}),
    "a tensor": (TypeError, r"got Tensor; for a single batch pass \[batch\]", {"batches": torch.ones(3)}),
    "a mapping": (TypeError, "got dict", {"batches": {"inputs": torch.ones(3)}}),
    "a number": (TypeError, "got int", {"batches": 3}),
    "num_steps": (ValueError, "num_steps must be an int >= 1, got 0", {"num_steps": 0}),
    "accumulate": (ValueError, "accumulate must be an int >= 1, got 1.0", {"accumulate": 1.0}),
    "max_passes": (ValueError, "max_passes must be an int >= 4, got 3", {"max_passes": 3}),
    **{
        name: (ValueError, f"{name} must be > 0 and finite", {name: value})
        for name, value in (
            ("precision", 0.0),
            ("tolerance", -0.1),
            ("start", math.nan),
            ("max_lr", math.inf),
            ("max_grad_norm", 0.0),
        )
    },
}


@pytest.mark.parametrize("name", NOT_A_SEARCH)
def test_what_cannot_be_searched_is_refused_and_nothing_is_changed(name):
    error, message, options = NOT_A_SEARCH[name]
    options = dict(options)
    model = make_model()
    model = options.pop("change", lambda model: model)(model)
    optimizer = options.pop("optimizer", sgd)(model)
    loss_fn, batches = options.pop("loss_fn", squares), options.pop("batches", [make_batch()])
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    before = Traces(model, optimizer)
    with pytest.raises(error, match=message):
        critical_lr(model, loss_fn, batches, optimizer, **options)
    assert before.differences(Traces(model, optimizer)) == []


def test_an_optimizer_has_to_be_one():
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got SimpleOptimizer"):
        critical_lr(make_model(), squares, [make_batch()], type("SimpleOptimizer", (), {})())


def test_flat_parameters_are_refused():
    model = make_model()
    model[0].weight._is_flat_param = True
    with pytest.raises(TypeError, match="fully_shard"):
        critical_lr(model, squares, [make_batch()], sgd(model))


def test_layers_in_eval_mode_stay_there():
    model = make_model()
    model[1].eval(), model[3].eval()
    found = critical_lr(model, squares, [make_batch()], sgd(model))
    assert found.searches[0].initial_loss == squares(model, make_batch()).item()
    assert [layer.training for layer in model] == [True, False, True, False, True]


def test_the_iterator_of_a_list_stays_where_it_is():
    batches = [torch.full((1,), float(index)) for index in range(5)]
    for iterator in (iter(batches), iter(tuple(batches))):
        next(iterator)
        assert first_batches(iterator, 2) == batches[1:3]
        assert next(iterator) is batches[1]


def test_other_iterators_lose_what_is_taken_with_a_warning_that_names_the_caller():
    model, batch = make_model(), make_batch()
    iterator = (batch for _ in range(5))
    with pytest.warns(UserWarning, match="2 were taken from it") as warned:
        critical_lr(model, squares, iterator, sgd(model), num_steps=2)
    assert warned[0].filename == __file__
    assert len(list(iterator)) == 3
    iterator = iter([batch][:0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="empty"):
            first_batches(iterator, 1)


def loaders(workers):
    data = TensorDataset(torch.arange(40.0))
    options = {"batch_size": 4, "num_workers": workers}
    yield lambda: DataLoader(data, shuffle=True, **options)
    yield lambda: DataLoader(data, shuffle=True, generator=torch.Generator().manual_seed(3), **options)
    if not workers:
        yield lambda: DataLoader(
            data,
            sampler=WeightedRandomSampler(torch.ones(40), 40, generator=torch.Generator().manual_seed(4)),
            **options,
        )
    else:
        yield lambda: DataLoader(data, shuffle=True, persistent_workers=True, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_reads_what_it_would_have_read(workers):
    model = nn.Linear(1, 1)
    for make in loaders(workers):

        def read(*, look, make=make):
            torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
            loader, seen = make(), []
            for _ in range(2):
                for index, (batch,) in enumerate(loader):
                    seen.append(batch.tolist())
                    if look and index == 1:  # in the middle, and in the second turn
                        with undisturbed(model, evaluate=False):
                            first_batches(loader, 2)
            return seen

        assert read(look=True) == read(look=False)


def test_the_search_reads_the_first_batches_of_the_coming_epoch():
    data = TensorDataset(torch.arange(40.0))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    with undisturbed(nn.Linear(1, 1), evaluate=False):
        found = first_batches(loader, 2)
    for (seen,), (expected,) in zip(found, loader, strict=False):
        assert torch.equal(seen, expected)


def test_accelerate_notes_nothing_of_the_search():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, data = make_model(), TensorDataset(*make_batch())
    loader = DataLoader(data, batch_size=4, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, sgd(model), loader)
    found = critical_lr(model, squares, loader, optimizer, num_steps=2)
    assert found.outcome == "found"
    assert accelerator.gradient_state.active_dataloader is None
    assert sum(1 for _ in loader) == 3
