"""What a step may change in an optimizer comes back: elements, memory, containers and what they held."""

from collections import OrderedDict, deque

import pytest
import torch
from torch import nn

import warmfree
from traces import Traces, bits
from warmfree.measure.kept import Kept

NO_MODULES = nn.Module()


def weights_with_gradients(*shapes):
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights


def traces(optimizer, *others):
    return Traces(NO_MODULES, optimizer, *others)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "build",
    [
        lambda w: torch.optim.SGD(w, momentum=0.9),
        lambda w: torch.optim.Adam(w, lr=torch.tensor(0.1), amsgrad=True),
        lambda w: torch.optim.Adam(w, fused=True),
        lambda w: torch.optim.Rprop(w),
        lambda w: torch.optim.ASGD(w),
        lambda w: warmfree.AdamW2(w),
        lambda w: warmfree.wrap(torch.optim.Adam(w), [warmfree.optim.SpectralBound()]),
    ],
)
def test_steps_of_an_optimizer_are_undone_as_often_as_asked(build, steps):
    weights = weights_with_gradients((3, 4), (5,))
    optimizer = build(weights)
    for _ in range(steps):
        optimizer.step()
    before = traces(optimizer, *weights)
    kept = Kept(optimizer)
    for _ in range(3):
        for _ in range(2):
            optimizer.step()
        optimizer.param_groups[0]["extra"] = 1
        optimizer.param_groups[0]["params"].append(torch.ones(1))
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
        del optimizer.defaults["lr"]
        optimizer.new = [1]
        assert before.differences(traces(optimizer, *weights))
        kept.restore()
        assert before.differences(traces(optimizer, *weights)) == []


def test_tensors_get_their_memory_back():
    weight, plain = nn.Parameter(torch.ones(3)), torch.ones(2, 2)
    kept = Kept(weight, plain)
    places = weight.data_ptr(), plain.data_ptr()
    with torch.no_grad():
        weight.data = torch.zeros(5)
        plain.data = torch.zeros(7, dtype=torch.float64)
    kept.restore()
    assert (weight.data_ptr(), plain.data_ptr()) == places
    assert weight.tolist() == [1.0] * 3
    assert plain.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_not_a_bit_is_lost_of_unusual_numbers_and_layouts():
    tensors = [
        torch.tensor([torch.nan, -0.0, torch.inf, 1e-45]),
        torch.arange(12.0).view(3, 4).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.tensor([[0, 1], [2, 0]]).to_sparse(),
        torch.tensor(3),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.randn(3).to(torch.bfloat16),
    ]
    tensors[0].view(torch.int32)[0] += 5  # another NaN
    kept = Kept(*tensors)
    before = [(bits(tensor), tensor.stride() if not tensor.is_sparse else None) for tensor in tensors]
    for tensor in tensors:
        if tensor.is_sparse:
            tensor.mul_(3)
        else:
            tensor.fill_(1)
    kept.restore()
    after = [(bits(tensor), tensor.stride() if not tensor.is_sparse else None) for tensor in tensors]
    assert after == before


class Factors:
    """A preconditioner as third parties write them."""

    def __init__(self):
        self.left, self.counts, self.function = torch.eye(2), {"updates": 0}, lambda: None


class Unusual(torch.optim.Optimizer):
    """Keeps all kinds of things in all kinds of containers."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        self.queue, self.ordered, self.names = (
            deque([torch.ones(1)], maxlen=2),
            OrderedDict(a=1, b=2),
            {"x", "y"},
        )
        self.nested = {"tuple": (torch.ones(1), [torch.ones(1), {"deep": torch.zeros(1)}])}
        self.generator = torch.Generator().manual_seed(1)
        self.inner = [torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.2, momentum=0.5)]
        for weight in self.param_groups[0]["params"]:
            self.state[weight] = {"factors": Factors(), "weights": [weight]}
        self.itself = self

    @torch.no_grad()
    def step(self):
        self.queue.append(torch.zeros(1))
        self.queue.append(torch.zeros(1))
        self.queue[0].add_(1)
        self.ordered.move_to_end("a")
        self.names.add("z")
        self.nested["tuple"][0].add_(1)
        self.nested["tuple"][1][1]["deep"].add_(1)
        self.nested["tuple"][1].append(3)
        torch.rand(1, generator=self.generator)
        self.inner[0].param_groups[0]["params"][0].add_(1)
        self.inner[0].param_groups[0]["lr"] = 7
        for entries in self.state.values():
            factors = entries["factors"]
            factors.left = factors.left @ factors.left + 1
            factors.counts["updates"] += 1
            factors.fresh = True


def test_everything_that_an_optimizer_holds_is_kept():
    optimizer = Unusual(weights_with_gradients((2, 2)))
    before = traces(optimizer)
    seen = list(optimizer.queue), set(optimizer.names), list(optimizer.ordered)
    kept = Kept(optimizer)
    optimizer.step()
    assert before.differences(traces(optimizer))
    kept.restore()
    assert before.differences(traces(optimizer)) == []
    assert (list(optimizer.queue), optimizer.names, list(optimizer.ordered)) == seen


def test_copies_are_of_then():
    weight = nn.Parameter(torch.ones(3))
    kept = Kept(torch.optim.SGD([weight], lr=0.1))
    with torch.no_grad():
        weight.fill_(5)
    assert kept.copy_of(weight).tolist() == [1.0] * 3
    kept.restore()
    assert kept.copy_of(weight).tolist() == weight.tolist() == [1.0] * 3
