import math

import pytest
import torch
from cases import CASES
from torch import nn

from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.measure.blocks import BlockQuantities, find_blocks
from warmfree.measure.undisturbed import undisturbed

WITH_BIASES = ["fused", "multihead", "multihead_time_first", "encoder", "gpt", "hf_gpt2", "hf_vit", "hf_swin"]
PRECISE = {"first": 2000, "later": 3}


def sigma(matrix):
    return torch.linalg.matrix_norm(matrix.detach().double(), 2).item()


def measured(case, **options):
    with undisturbed(case.model):
        return BlockQuantities(case.model, **options).measure(case.loss)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_fifteen_quantities_with_biases(name):
    found = measured(CASES[name]())
    assert len(found) == 15
    assert {len(values) for values in found.values()} == {3 if name == "hf_swin" else 2}
    assert all(math.isfinite(value) and value > 0 for values in found.values() for value in values.values())


def test_thirteen_without():
    model = GPT(GPTConfig(vocabulary=11, context=8, layers=2, width=16, heads=2))
    tokens = torch.randint(11, (3, 8))
    assert len(BlockQuantities(model).measure(lambda: model.loss(tokens, tokens))) == 13
    assert len(measured(CASES["hf_llama"]())) == 13
    assert len(BlockQuantities(model).measure()) == 11


BLOCKS = {
    "gpt": "blocks.{}",
    "encoder": "blocks.{}",
    "hf_gpt2": "transformer.h.{}",
    "hf_llama": "model.layers.{}",
    "hf_vit": "vit.layers.{}",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found(name):
    assert list(find_blocks(CASES[name]().model)) == [BLOCKS[name].format(i) for i in range(2)]


def test_stages_are_no_blocks():
    assert list(find_blocks(CASES["hf_swin"]().model)) == [
        "swin.encoder.layers.0.blocks.0",
        "swin.encoder.layers.0.blocks.1",
        "swin.encoder.layers.1.blocks.0",
    ]


def expected_gpt(block):
    query, key, value = block.attention.qkv.weight.detach().chunk(3)
    heads = block.attention.heads
    products = query.unflatten(0, (heads, -1)).mT @ key.unflatten(0, (heads, -1))
    out, up, down = block.attention.out.weight, block.mlp.up.weight, block.mlp.out.weight
    return {
        "sigma_query": sigma(query),
        "sigma_key": sigma(key),
        "sigma_value": sigma(value),
        "sigma_out": sigma(out),
        "sigma_up": sigma(up),
        "sigma_down": sigma(down),
        "sigma_query_key": max(sigma(product) for product in products),
        "sigma_out_value": sigma(out @ value),
        "sigma_down_up": sigma(down @ up),
        "gain_1": block.attention_norm.weight.norm().item(),
        "gain_2": block.mlp_norm.weight.norm().item(),
        "shift_1": block.attention_norm.bias.norm().item(),
        "shift_2": block.mlp_norm.bias.norm().item(),
    }


def expected_gpt2(block):
    query, key, value = block.attn.c_attn.weight.detach().T.chunk(3)
    out, up, down = block.attn.c_proj.weight.T, block.mlp.c_fc.weight.T, block.mlp.c_proj.weight.T
    products = query.unflatten(0, (4, -1)).mT @ key.unflatten(0, (4, -1))
    return {
        "sigma_value": sigma(value),
        "sigma_out": sigma(out),
        "sigma_up": sigma(up),
        "sigma_query_key": max(sigma(product) for product in products),
        "sigma_out_value": sigma(out @ value),
        "sigma_down_up": sigma(down @ up),
        "shift_2": block.ln_2.bias.norm().item(),
    }


def expected_llama(block):
    """Four query heads share two key and value heads; the MLP has a gate."""
    attention = block.self_attn
    query = attention.q_proj.weight.unflatten(0, (4, -1))
    key, value = (
        layer.weight.unflatten(0, (2, -1)).repeat_interleave(2, 0)
        for layer in (attention.k_proj, attention.v_proj)
    )
    return {
        "sigma_query": sigma(attention.q_proj.weight),
        "sigma_key": sigma(attention.k_proj.weight),
        "sigma_value": sigma(attention.v_proj.weight),
        "sigma_up": sigma(block.mlp.up_proj.weight),
        "sigma_query_key": max(sigma(product) for product in query.mT @ key),
        "sigma_out_value": sigma(attention.o_proj.weight @ value.flatten(0, 1)),
        "sigma_down_up": sigma(block.mlp.down_proj.weight @ block.mlp.up_proj.weight),
        "gain_1": block.input_layernorm.weight.norm().item(),
    }


def expected_vit(block):
    attention = block.attention
    return {
        "sigma_out": sigma(attention.o_proj.weight),
        "sigma_out_value": sigma(attention.o_proj.weight @ attention.v_proj.weight),
        "sigma_down_up": sigma(block.mlp.fc2.weight @ block.mlp.fc1.weight),
        "shift_1": block.layernorm_before.bias.norm().item(),
    }


def expected_encoder(block):
    query, key, value = block.self_attn.in_proj_weight.detach().chunk(3)
    products = query.unflatten(0, (4, -1)).mT @ key.unflatten(0, (4, -1))
    return {
        "sigma_value": sigma(value),
        "sigma_query_key": max(sigma(product) for product in products),
        "sigma_out_value": sigma(block.self_attn.out_proj.weight @ value),
        "sigma_down_up": sigma(block.linear2.weight @ block.linear1.weight),
        "gain_2": block.norm2.weight.norm().item(),
    }


EXPECTED = {
    "gpt": expected_gpt,
    "hf_gpt2": expected_gpt2,
    "hf_llama": expected_llama,
    "hf_vit": expected_vit,
    "encoder": expected_encoder,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_against_dense_singular_values(name):
    case = CASES[name]()
    found = BlockQuantities(case.model, **PRECISE).measure()
    for block_name, block in find_blocks(case.model).items():
        for quantity, value in EXPECTED[name](block).items():
            assert found[quantity][block_name] == pytest.approx(value, rel=1e-6), quantity


def test_outputs_and_their_gradients():
    case = CASES["gpt"]()
    found = measured(case)
    outputs = []
    handles = [
        block.register_forward_hook(lambda m, i, o: outputs.append(o.retain_grad() or o))
        for block in case.model.blocks
    ]
    case.loss().backward()
    for index, output in enumerate(outputs):
        name = f"blocks.{index}"
        assert found["output_norm"][name] == pytest.approx(
            output.norm(dim=-1).square().mean().sqrt().item(), rel=1e-12
        )
        assert found["output_gradient_norm"][name] == pytest.approx(output.grad.norm().item(), rel=1e-12)
    for handle in handles:
        handle.remove()


def test_defaults_are_close_and_get_closer():
    model = GPT(GPTConfig(vocabulary=11, context=8, layers=1, width=64, heads=2, bias=True))
    truth, quantities = expected_gpt(model.blocks[0]), BlockQuantities(model)
    for tolerance in (0.05, 0.04, 0.03, 0.03):
        found = quantities.measure()
        for quantity, value in truth.items():
            assert value * (1 - tolerance) <= found[quantity]["blocks.0"] <= value * (1 + 1e-5), quantity


def test_a_direction_that_is_new_is_found():
    model = GPT(GPTConfig(vocabulary=11, context=8, layers=1, width=32, heads=2))
    quantities = BlockQuantities(model)
    quantities.measure()
    left, right = torch.randn(32), torch.randn(32)
    with torch.no_grad():
        model.blocks[0].attention.out.weight += 5 * torch.outer(left / left.norm(), right / right.norm())
    truth = sigma(model.blocks[0].attention.out.weight)
    assert quantities.measure()["sigma_out"]["blocks.0"] == pytest.approx(truth, rel=1e-3)


def test_zero_weights_are_zero():
    model = GPT(GPTConfig(vocabulary=11, context=8, layers=1, width=16, heads=2))
    nn.init.zeros_(model.blocks[0].attention.out.weight)
    found = BlockQuantities(model).measure()
    assert found["sigma_out"] == {"blocks.0": 0.0}
    assert found["sigma_out_value"] == {"blocks.0": 0.0}


def test_measuring_leaves_no_trace():
    case = CASES["gpt"]()
    kept = {name: weight.detach().clone() for name, weight in case.model.named_parameters()}
    measured(case)
    assert all(torch.equal(kept[name], weight) for name, weight in case.model.named_parameters())
    assert all(weight.grad is None for weight in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        BlockQuantities(case.model).measure(fails)
    assert not any(module._forward_hooks for module in case.model.modules())


def test_models_without_blocks():
    for name in ("mlp", "convnet"):
        assert find_blocks(CASES[name]().model) == {}
        with pytest.raises(ValueError, match="found no transformer blocks"):
            BlockQuantities(CASES[name]().model)
    with pytest.raises(ValueError, match="later must be >= 1"):
        BlockQuantities(CASES["gpt"]().model, later=0)
