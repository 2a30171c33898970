"""Roles of parameters in models as people build them."""

import pytest
import torch
from torch import nn

from warmfree import AdamW2, LionAR, parameter_groups
from warmfree.optim.routing import layout_of

AUTO = {"role": None, "out_dim": 0, "split": None}


class Conv1D(nn.Module):
    """As in transformers: weight of shape (in, out)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.c_attn = Conv1D(24, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def get_output_embeddings(self):
        return self.lm_head


def as_dict(groups):
    return {(g["role"], g["out_dim"], g["split"]): [name for name, _ in g["params"]] for g in groups}


def test_a_tied_model_with_transposed_projections():
    groups = parameter_groups(Tied(), weight_decay=0.2, split_qkv=True, lr=0.5)
    assert as_dict(groups) == {
        ("embedding", 0, None): ["wte.weight"],
        ("matrix", 1, 3): ["c_attn.weight"],
        ("vector", 0, None): ["c_attn.bias", "norm.weight", "norm.bias"],
    }
    assert [g["weight_decay"] for g in groups] == [0.2, 0.2, 0.0]
    assert all(g["lr"] == 0.5 for g in groups)


def test_embeddings_may_have_a_decay_of_their_own():
    groups = parameter_groups(Tied(), weight_decay=1.0, embedding_decay=0.0)
    assert {g["role"]: g["weight_decay"] for g in groups} == {"embedding": 0.0, "matrix": 1.0, "vector": 0.0}
    rotated = {name for name, entries in _step(LionAR(groups)).items() if "angle" in entries}
    assert rotated == {"c_attn.weight"}


def _step(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer.step_report.fetch()


def test_without_split_qkv_the_projection_is_one_matrix():
    assert ("matrix", 1, None) in as_dict(parameter_groups(Tied()))


def test_multihead_attention_and_transposed_convolutions():
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2), "up": nn.ConvTranspose2d(4, 6, 3), "head": nn.Linear(8, 3)}
    )
    groups = as_dict(parameter_groups(model, split_qkv=True))
    assert groups["matrix", 0, 3] == ["attention.in_proj_weight"]
    assert groups["matrix", 1, None] == ["up.weight"]
    assert groups["head", 0, None] == ["head.weight"]


def test_groups_train_and_reports_carry_the_names():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(16, 4))
    for build in (AdamW2, LionAR):
        optimizer = build(parameter_groups(model))
        model(torch.tensor([[1, 2]])).square().sum().backward()
        optimizer.step()
        assert set(optimizer.step_report.fetch()) == {"0.weight", "2.weight"}


@pytest.mark.parametrize(
    ("shape", "options", "role"),
    [
        ((3,), {}, "vector"),
        ((), {}, "vector"),
        ((3, 3), {}, "matrix"),
        ((3, 3), {"role": "vector"}, "vector"),
        ((3, 3), {"role": "head"}, "head"),
        ((3,), {"role": "matrix"}, "vector"),
    ],
)
def test_roles_from_shape_and_option(shape, options, role):
    assert layout_of(torch.zeros(shape), {**AUTO, **options}).role == role


def test_the_vector_role_takes_a_matrix_out_of_the_bound():
    weight = nn.Parameter(torch.eye(4))
    optimizer = AdamW2([{"params": [weight], "role": "vector"}], 1.0, weight_decay=0.0, tau=1e-6)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.eye(4) - 1.0)
