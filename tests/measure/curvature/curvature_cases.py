"""Small models with a loss, and dense references for their curvature in float64."""

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.attention import SDPBackend, sdpa_kernel

from warmfree.lab.models.gpt import GPT, GPTConfig


@dataclass
class Case:
    model: nn.Module
    inputs: torch.Tensor
    targets: torch.Tensor
    by_squares: bool = False  # mean squared error in place of cross-entropy

    @property
    def parameters(self):
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def outputs(self):
        return self.model(self.inputs)

    def loss_of(self, outputs):
        return self._loss(outputs, self.targets)

    def loss_of_batch(self, model, inputs, targets):
        return self._loss(model(inputs), targets)

    def _loss(self, outputs, targets):
        if self.by_squares:
            return F.mse_loss(outputs, targets)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def loss(self):
        return self.loss_of(self.outputs())

    def _pure(self, flat):
        """Outputs as a function of one vector of all parameters that require a gradient."""
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        pieces = flat.split([p.numel() for p in named.values()])
        weights = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return functional_call(self.model, weights, (self.inputs,))

    def flat(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def dense_hessian(self):
        with sdpa_kernel(SDPBackend.MATH):
            return hessian(lambda flat: self.loss_of(self._pure(flat)), self.flat())

    def hessian_by_differences(self):
        """No second derivative is in it; right to about 1e-8."""
        parameters, rows = self.parameters, []
        for unit in torch.eye(len(self.flat()), dtype=torch.float64):
            steps = [
                p.view(q.shape)
                for p, q in zip(unit.split([q.numel() for q in parameters]), parameters, strict=True)
            ]
            gradients = []
            for distance in (1e-5, -2e-5):
                with torch.no_grad():
                    torch._foreach_add_(parameters, steps, alpha=distance)
                gradients.append(flat(torch.autograd.grad(self.loss(), parameters)))
            with torch.no_grad():
                torch._foreach_add_(parameters, steps, alpha=1e-5)
            rows.append((gradients[0] - gradients[1]) / 2e-5)
        return torch.stack(rows)

    def dense_gauss_newton(self):
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self.outputs().detach()
            rows = jacobian(self._pure, self.flat()).flatten(0, -2)
            inner = hessian(lambda flat: self.loss_of(flat.view(outputs.shape)), outputs.flatten())
        return rows.T @ inner @ rows


def _mlp():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    return Case(model.double(), torch.randn(10, 3).double(), torch.randn(10, 2).double(), by_squares=True)


def _gpt():
    model = GPT(GPTConfig(vocabulary=7, context=4, layers=2, width=4, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Case(model.double(), torch.randint(7, (3, 4)), torch.randint(7, (3, 4)))


def _encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(6, 3))
    return Case(model.double(), torch.randn(2, 4, 6).double(), torch.randint(3, (2, 4)))


def _convnet():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GELU(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
    return Case(model.double(), torch.randn(5, 1, 6, 6).double(), torch.randint(3, (5,)))


MODELS = {"mlp": _mlp, "gpt": _gpt, "encoder": _encoder, "convnet": _convnet}


@functools.cache
def dense_hessian(name):
    """Return the reference for a fresh model, made once."""
    return make(name).dense_hessian()


def make(name):
    torch.manual_seed(1)
    return MODELS[name]()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def dense(operator):
    """Return the matrix of an operator, a product with a unit vector at a time."""
    sizes = [parameter.numel() for parameter in operator.parameters]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        pieces = zip(unit.split(sizes), operator.parameters, strict=True)
        columns.append(flat(operator([piece.view(p.shape).to(p.dtype) for piece, p in pieces])))
    return torch.stack(columns)


class Matrix:
    """A symmetric matrix as an operator on two tensors of odd shapes."""

    def __init__(self, matrix, dtype=torch.float64):
        size = len(matrix)
        self.matrix = matrix.to(dtype)
        self.parameters = [torch.zeros(size // 3, 1, dtype=dtype), torch.zeros(size - size // 3, dtype=dtype)]

    def __call__(self, vectors):
        image = self.matrix @ flat(vectors)
        cut = self.parameters[0].numel()
        return [image[:cut].view(-1, 1), image[cut:]]


def close(found, expected, tolerance=1e-6):
    """Compare eigenvalues: relative to the largest."""
    found, expected = (
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
    )
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
