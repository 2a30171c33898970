"""Tiny models that the tests of the probes share: one row a model, each with a batch, in float64 by default.

    @pytest.mark.parametrize("name", CASES)
    def test_something(name):
        case = CASES[name]()  # skips the test if the case needs transformers and that is missing
        with torch.no_grad():
            outputs = case.forward()

Seeds are fixed: a case is built the same every time. Llama's RMSNorm and rotary cosines are float32 inside in any
dtype, as Hugging Face wrote them; `hf_llama` is differentiable, but smooth in float64 to about 1e-7 only.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from warmfree.lab.models.gpt import GPT, GPTConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Case(NamedTuple):
    """A model with a batch: `forward()` returns logits, `loss()` the mean cross-entropy over the batch."""

    model: nn.Module
    forward: Callable[[], Tensor]
    loss: Callable[[], Tensor]
    attention: tuple[str, ...]  # the attention layers, as model.named_modules() calls them


class Residual(nn.Module):
    """Pre-LayerNorm attention and an MLP around it, as in a vision transformer."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class FusedAttention(nn.Module):
    """Attention with the attributes and the two paths that vision libraries have: one `qkv`, `fused_attn`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = (
            num_heads,
            width // num_heads,
            (width // num_heads) ** -0.5,
        )
        self.fused_attn = True
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        outputs: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return outputs


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself; its tokens are the second dimension outside."""

    def __init__(self, width: int, heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.batch_first, self.need_weights = batch_first, False

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        mixed: Tensor = self.mha(x, x, x, need_weights=self.need_weights)[0]
        return mixed if self.batch_first else mixed.transpose(0, 1)


class Classifier(nn.Module):
    """Token vectors in, classes out: a projection, blocks, the mean over the tokens, a head."""

    def __init__(self, blocks: list[nn.Module], features: int, width: int, classes: int = 3) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(features, width), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x))).mean(1))
        return logits


def finish(
    model: nn.Module, inputs: Tensor, targets: Tensor, attention: list[str], dtype: torch.dtype
) -> Case:
    """Move model and batch to a dtype, stir the weights and tie them to the two callables."""
    model = model.to(dtype)
    with torch.no_grad():
        for weight in model.parameters():  # no gain is exactly 1 and no bias 0: a part that is left out shows
            weight.add_(torch.randn(weight.shape, dtype=torch.float64).to(dtype), alpha=0.1)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs

    def forward() -> Tensor:
        outputs: Any = model(inputs)
        return outputs if isinstance(outputs, Tensor) else outputs.logits

    def loss() -> Tensor:
        return F.cross_entropy(forward().flatten(0, -2), targets.flatten())

    return Case(model, forward, loss, tuple(attention))


def tokens(vocabulary: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Random tokens and, as targets, the tokens that follow."""
    text = torch.randint(vocabulary, (shape[0], shape[1] + 1))
    return text[:, :-1], text[:, 1:]


def gpt(dtype: torch.dtype, *, qk_norm: bool = False) -> Case:
    model = GPT(GPTConfig(vocabulary=19, context=12, layers=2, width=16, heads=4, bias=True, qk_norm=qk_norm))
    return finish(model, *tokens(19, 3, 10), ["blocks.0.attention", "blocks.1.attention"], dtype)


def fused(dtype: torch.dtype) -> Case:
    model = Classifier([Residual(FusedAttention(16, 4), 16) for _ in range(2)], 5, 16)
    attention = ["blocks.0.attn", "blocks.1.attn"]
    return finish(model, torch.randn(3, 9, 5), torch.randint(3, (3,)), attention, dtype)


def multihead(dtype: torch.dtype, *, batch_first: bool) -> Case:
    model = Classifier([Residual(SelfAttention(16, 4, batch_first=batch_first), 16) for _ in range(2)], 5, 16)
    attention = ["blocks.0.attn.mha", "blocks.1.attn.mha"]
    return finish(model, torch.randn(3, 9, 5), torch.randint(3, (3,)), attention, dtype)


def encoder(dtype: torch.dtype) -> Case:
    layers = [nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True) for _ in range(2)]
    attention = ["blocks.0.self_attn", "blocks.1.self_attn"]
    return finish(
        Classifier([*layers], 5, 16), torch.randn(3, 9, 5), torch.randint(3, (3,)), attention, dtype
    )


def hf_gpt2(dtype: torch.dtype) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=19, n_positions=12, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    names = ["transformer.h.0.attn", "transformer.h.1.attn"]
    return finish(transformers.GPT2LMHeadModel(config), *tokens(19, 3, 10), names, dtype)


def hf_llama(dtype: torch.dtype) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=12, use_cache=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    names = ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    return finish(transformers.LlamaForCausalLM(config), *tokens(19, 3, 10), names, dtype)


def hf_vit(dtype: torch.dtype) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=12,
        patch_size=4, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    names = [f"vit.layers.{layer}.attention" for layer in range(2)]
    return finish(model, torch.randn(3, 3, 12, 12), torch.randint(3, (3,)), names, dtype)


def hf_swin(dtype: torch.dtype) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config)
    names = [name for name, module in model.named_modules() if type(module).__name__ == "SwinAttention"]
    return finish(model, torch.randn(2, 3, 16, 16), torch.randint(3, (2,)), names, dtype)


def mlp(dtype: torch.dtype) -> Case:
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    return finish(model, torch.randn(10, 6), torch.randint(3, (10,)), [], dtype)


def convnet(dtype: torch.dtype) -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(6 * 9, 3),
    )
    return finish(model, torch.randn(6, 2, 8, 8), torch.randint(3, (6,)), [], dtype)


def _seeded(build: Callable[[torch.dtype], Case], dtype: torch.dtype = torch.float64) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build(dtype)


BUILDERS: dict[str, Callable[[torch.dtype], Case]] = {
    "gpt": gpt,
    "gpt_qk_norm": partial(gpt, qk_norm=True),
    "fused": fused,
    "multihead": partial(multihead, batch_first=True),
    "multihead_time_first": partial(multihead, batch_first=False),
    "encoder": encoder,
    "hf_gpt2": hf_gpt2,
    "hf_llama": hf_llama,
    "hf_vit": hf_vit,
    "hf_swin": hf_swin,
    "mlp": mlp,
    "convnet": convnet,
}
CASES: dict[str, Callable[..., Case]] = {name: partial(_seeded, build) for name, build in BUILDERS.items()}
