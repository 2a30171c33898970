"""Queries and keys made from the weights that were found are those that the layer computes with."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from layouts import LAYOUTS
from torch import nn
from torch.overrides import TorchFunctionMode

from measure.cases import CASES
from warmfree.measure.attention import (
    Layout,
    Projection,
    each_query_key,
    query_key_weights,
    register_layout,
    spectrum,
)
from warmfree.measure.attention import layouts as registry


class Logits(TorchFunctionMode):
    """Keeps the scaled, unmasked product of the queries and keys of each attention call that goes through SDPA."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
            self.logits.append(query @ key.transpose(-2, -1) * scale)
        return func(*args, **kwargs)


def inputs_of(model, name, run):
    """What the layer is called with, and the logits of its call."""
    caught = {}
    layer = model.get_submodule(name)

    def enter(module, args, kwargs):
        caught["args"], caught["kwargs"] = args, kwargs
        caught["first"] = len(mode.logits)

    def leave(module, args, output):
        caught["logits"] = mode.logits[caught["first"] :]

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True), layer.register_forward_hook(leave)]
    with torch.no_grad(), Logits() as mode:
        run()
    for handle in handles:
        handle.remove()
    arguments = [*caught["args"], *caught["kwargs"].values()]
    hidden = [value for value in arguments if isinstance(value, torch.Tensor) and value.ndim == 3]
    return hidden, caught["logits"]


def product(found, queries_from, keys_from, scale):
    query = torch.einsum("hdm,btm->bhtd", found.query, queries_from)
    key = torch.einsum("hdm,btm->bhtd", found.key, keys_from)
    if found.query_bias is not None:
        query = query + found.query_bias[:, None]
    if found.key_bias is not None:
        key = key + found.key_bias[:, None]
    return query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scale


@pytest.mark.parametrize("name", ["gpt", "fused", "hf_gpt2", "hf_llama", "hf_vit", "hf_swin"])
def test_logits_of_the_cases_are_reproduced(name):
    case = CASES[name]()
    weights = query_key_weights(case.model)
    assert tuple(weights) == case.attention
    for layer, found in weights.items():
        hidden, (logits,) = inputs_of(case.model, layer, case.forward)
        ours = product(found, hidden[0], hidden[0], found.query.shape[1] ** -0.5)
        assert found.rotary == (name == "hf_llama")
        if found.rotary:  # a token and itself are rotated alike
            ours, logits = ours.diagonal(dim1=-2, dim2=-1), logits.diagonal(dim1=-2, dim2=-1)
        # Llama's cosines are float32
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-6 if found.rotary else 1e-10)


@pytest.mark.parametrize("name", ["multihead", "multihead_time_first", "encoder"])
def test_attention_of_multihead_is_reproduced(name):
    case = CASES[name]()
    for layer, found in query_key_weights(case.model).items():
        module = case.model.get_submodule(layer)
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        given = x if module.batch_first else x.transpose(0, 1)
        expected = module(given, given, given, average_attn_weights=False)[1]
        torch.testing.assert_close(product(found, x, x, 0.5).softmax(-1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_of_other_layouts_are_reproduced(name):
    layer = LAYOUTS[name]()
    model = layer.model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    weights = query_key_weights(model)
    assert layer.name in weights
    found = weights[layer.name]
    assert (found.rotary, found.qk_norm) == (layer.rotary, False)
    if name == "nano":
        x = torch.randn(2, 6, 16, dtype=torch.float64)
        seen = []
        hook = model[0].c_attn.register_forward_hook(lambda module, args, output: seen.append(output))
        model(x)
        hook.remove()
        query, key = (seen[0][..., k * 16 : (k + 1) * 16].view(2, 6, 4, 4).transpose(1, 2) for k in (0, 1))
        hidden, logits = [x], query @ key.mT * layer.scale
    elif name == "multihead_cross":
        hidden = [torch.randn(2, *size, dtype=torch.float64) for size in ((5, 16), (7, 10), (7, 6))]
        ours = product(found, hidden[0], hidden[1], layer.scale).softmax(-1)
        torch.testing.assert_close(ours, model(*hidden, average_attn_weights=False)[1], rtol=0, atol=1e-10)
        return
    else:
        hidden, (logits,) = inputs_of(model, layer.name, layer.run)
    keys_from = hidden[1] if "cross" in name else hidden[0]
    ours = product(found, hidden[0], keys_from, layer.scale)
    if layer.rotary:
        ours, logits = ours.diagonal(dim1=-2, dim2=-1), logits.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-6 if layer.rotary else 1e-10)


def dense_heads(name, layer):
    """W_q and W_k of each head, (head_dim, model_dim), cut from the model's parameters by hand."""
    cut = [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)]
    if name in ("gpt", "gpt_qk_norm", "fused"):
        weight = layer.qkv.weight
        return [(weight[:16][rows], weight[16:32][rows]) for rows in cut]
    if name in ("multihead", "multihead_time_first", "encoder"):
        return [(layer.in_proj_weight[:16][rows], layer.in_proj_weight[16:32][rows]) for rows in cut]
    if name == "hf_gpt2":
        return [(layer.c_attn.weight[:, :16].T[rows], layer.c_attn.weight[:, 16:32].T[rows]) for rows in cut]
    if name == "hf_llama":
        return [(layer.q_proj.weight[cut[h]], layer.k_proj.weight[cut[h // 2]]) for h in range(4)]
    heads = layer.q_proj.weight.shape[0] // 4
    return [(layer.q_proj.weight[rows], layer.k_proj.weight[rows]) for rows in cut[:heads]]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("mlp", "convnet")])
def test_spectrum_is_that_of_the_dense_product(name):
    case = CASES[name]()
    for layer, found in each_query_key(case.model):
        heads = dense_heads(name, case.model.get_submodule(layer))
        values = spectrum(found.query, found.key)
        assert len(values) == len(heads)
        for ours, (query, key) in zip(values, heads, strict=True):
            dense = torch.linalg.svdvals((query.mT @ key).detach())
            torch.testing.assert_close(ours, dense[: len(ours)], rtol=0, atol=1e-10)
            assert dense[len(ours) :].max() < 1e-10
        assert not values.requires_grad


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_models_without_attention_have_none(name):
    assert query_key_weights(CASES[name]().model) == {}


def test_norms_of_queries_and_keys_are_told():
    flags = {
        name: [w.qk_norm for w in query_key_weights(CASES[name]().model).values()]
        for name in ("gpt", "gpt_qk_norm")
    }
    assert flags == {"gpt": [False, False], "gpt_qk_norm": [True, True]}


def test_qwen3_is_rotary_and_normalised():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, pad_token_id=None,
    )  # fmt: skip
    (found,) = query_key_weights(transformers.Qwen3Model(config)).values()
    assert found.rotary
    assert found.qk_norm
    assert found.query.shape == (4, 6, 16)
    assert found.key.shape == (2, 6, 16)


def test_rows_that_are_not_queries_alone_are_not_taken_for_heads():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3NextConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=["full_attention"], num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8, pad_token_id=None,
    )  # fmt: skip
    assert query_key_weights(transformers.Qwen3NextModel(config)) == {}  # q_proj makes a gate, too


def test_weights_are_views_and_carry_no_graph():
    case = CASES["gpt"]()
    found = query_key_weights(case.model)["blocks.0.attention"]
    parameter = case.model.blocks[0].attention.qkv.weight
    assert found.query.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    assert not found.query.requires_grad


def test_a_layout_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "LAYOUTS", list(registry.LAYOUTS))

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pairs = nn.Linear(6, 16)  # query and key of a head, then of the next

    @register_layout
    def odd(module):
        if not isinstance(module, Odd):
            return None
        rows = torch.arange(16).view(4, 2, 2)
        query, key = (
            Projection(module.pairs.weight, module.pairs.bias, rows[:, k].flatten()) for k in (0, 1)
        )
        return Layout(query, key, head_dim=2)

    model = nn.ModuleDict({"odd": Odd()})
    found = query_key_weights(model)["odd"]
    for head in range(4):
        start = 4 * head
        assert torch.equal(found.query[head], model["odd"].pairs.weight[start : start + 2])
        assert torch.equal(found.key[head], model["odd"].pairs.weight[start + 2 : start + 4])
        assert torch.equal(found.key_bias[head], model["odd"].pairs.bias[start + 2 : start + 4])
