import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from warmfree.lab.models.gpt import GPT, GPTConfig

SMALL = GPTConfig(vocabulary=19, context=12, layers=2, width=24, heads=3)


def plain_forward(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """The model again from its weights alone: explicit softmax attention, one head and one block at a time."""
    weights, width, heads = dict(model.named_parameters()), model.config.width, model.config.heads
    size, time = width // heads, tokens.shape[1]
    x = weights["tokens.weight"][tokens] + weights["positions.weight"][:time]
    for index in range(model.config.layers):
        block = f"blocks.{index}."

        def norm(x: torch.Tensor, name: str, block: str = block) -> torch.Tensor:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return scaled * weights[block + name + ".weight"] + weights.get(block + name + ".bias", 0)

        def linear(x: torch.Tensor, name: str, block: str = block) -> torch.Tensor:
            return x @ weights[block + name + ".weight"].T + weights.get(block + name + ".bias", 0)

        query, key, value = linear(norm(x, "attention_norm"), "attention.qkv").split(width, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k = query[..., part], key[..., part]
            if model.config.qk_norm:
                q, k = (
                    z / (z.square().mean(-1, keepdim=True) + torch.finfo(z.dtype).eps).sqrt() for z in (q, k)
                )
            scores = q @ k.transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), -math.inf)
            mixed[..., part] = scores.softmax(-1) @ value[..., part]
        x = x + linear(mixed, "attention.out")
        inner = linear(norm(x, "mlp_norm"), "mlp.up")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, "mlp.out")
    x = F.layer_norm(x, (width,), weights["norm.weight"], weights.get("norm.bias"))
    return x @ weights["tokens.weight"].T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_equals_the_model_written_out(bias: bool, qk_norm: bool) -> None:
    config = GPTConfig(vocabulary=19, context=12, layers=2, width=24, heads=3, bias=bias, qk_norm=qk_norm)
    model = GPT(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
        for block in model.blocks:
            if qk_norm:
                block.attention.query_norm.weight.fill_(1.0)
                block.attention.key_norm.weight.fill_(1.0)
    tokens = torch.randint(0, 19, (3, 9))
    torch.testing.assert_close(model(tokens), plain_forward(model, tokens), rtol=1e-10, atol=1e-10)


def test_no_position_sees_the_future() -> None:
    model, tokens = GPT(SMALL), torch.randint(0, 19, (1, 12))
    other = tokens.clone()
    other[0, 7:] = (other[0, 7:] + 1) % 19
    torch.testing.assert_close(model(tokens)[:, :7], model(other)[:, :7])
    assert not torch.allclose(model(tokens)[:, 7:], model(other)[:, 7:])


def test_initial_weights_are_those_of_gpt2() -> None:
    model = GPT(GPTConfig(layers=8, width=256, bias=True))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.ndim == 1:
            assert (weight == 1).all()
        else:
            expected = 0.02 / 4 if name.endswith("out.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.02), name
    tokens = torch.randint(0, 256, (2, 64))
    assert model.loss(tokens, tokens.roll(1)).item() == pytest.approx(math.log(256), abs=0.1)


def test_head_and_embedding_are_one_parameter() -> None:
    names = [name for name, _ in GPT(SMALL).named_parameters()]
    assert names.count("tokens.weight") == 1
    assert not any("head" in name for name in names)
    assert len([name for name in names if name.endswith("bias")]) == 0


def test_loss_is_the_mean_cross_entropy_and_float32_under_bfloat16() -> None:
    model, tokens = GPT(SMALL).double(), torch.randint(0, 19, (2, 5))
    log_probabilities = model(tokens).log_softmax(-1)
    expected = -torch.stack(
        [log_probabilities[b, t, tokens[b, t]] for b in range(2) for t in range(5)]
    ).mean()
    torch.testing.assert_close(model.loss(tokens, tokens), expected)
    assert model.loss(tokens, tokens).dtype == torch.float64
    assert model.bfloat16().loss(tokens, tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 3}, "width must be a multiple of heads=3, got 10"),
        ({"layers": 0}, "layers must be an int >= 1, got 0"),
        ({"context": True}, "context must be an int >= 1, got True"),
        ({"vocabulary": 2.5}, "vocabulary must be an int >= 1, got 2.5"),
    ],
)
def test_bad_config(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens is longer than context=12"):
        GPT(SMALL)(torch.zeros(1, 13, dtype=torch.long))
