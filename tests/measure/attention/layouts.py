"""Attention layers written in more ways than the shared cases, each with the inputs that one layer is called with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


class Layer(NamedTuple):
    """A model, the name of one attention layer in it, and a callable that runs the model."""

    model: nn.Module
    name: str
    run: Callable[[], Any]
    scale: float  # of the logits
    rotary: bool = False


class NanoAttention(nn.Module):
    """One Linear called c_attn, heads in n_head, and attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = 4, 16
        self.c_attn, self.c_proj = nn.Linear(16, 48, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)
            for part in self.c_attn(x).split(16, dim=2)
        )
        logits = (query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(key.size(-1)))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        mixed = torch.nn.functional.softmax(logits.masked_fill(hidden, float("-inf")), dim=-1) @ value
        return self.c_proj(mixed.transpose(1, 2).reshape(x.shape))


def nano() -> Layer:
    attention = NanoAttention()
    model = nn.Sequential(attention)
    return Layer(model, "0", lambda: model(torch.randn(2, 6, 16, dtype=attention.c_attn.weight.dtype)), 0.5)


def multihead_cross() -> Layer:
    model = nn.MultiheadAttention(16, 4, kdim=10, vdim=6, batch_first=True)

    def run() -> Any:
        kind: Any = model.q_proj_weight.dtype
        return model(*(torch.randn(2, *size, dtype=kind) for size in ((5, 16), (7, 10), (7, 6))))

    return Layer(model, "", run, 0.5)


def _hf(name: str, layer: str, scale: float, *, rotary: bool = False, **config: Any) -> Callable[[], Layer]:
    def build() -> Layer:
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **config))
        inputs: dict[str, Tensor] = {"input_ids": torch.randint(5, 19, (2, 6))}
        if name == "gpt2" and config.get("add_cross_attention"):
            inputs["encoder_hidden_states"] = torch.randn(2, 4, 16)
        if name == "t5":
            inputs["decoder_input_ids"] = torch.randint(5, 19, (2, 3))

        def run() -> Any:
            kind = next(model.parameters()).dtype
            return model(**{k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()})

        return Layer(model.eval(), layer, run, scale, rotary)

    return build


LLAMA: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "use_cache": False,
}
LLAMA |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "max_position_embeddings": 12,
}
BERT: dict[str, Any] = {"vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
BERT |= {"num_attention_heads": 4, "max_position_embeddings": 12, "use_cache": False}
GPT2: dict[str, Any] = {
    "vocab_size": 19,
    "n_positions": 12,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 4,
    "use_cache": False,
}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
T5: dict[str, Any] = {
    "vocab_size": 19,
    "d_model": 16,
    "d_kv": 3,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 4,
    "use_cache": False,
}

LAYOUTS: dict[str, Callable[[], Layer]] = {
    "nano": nano,
    "multihead_cross": multihead_cross,
    "bert": _hf("bert", "encoder.layer.0.attention.self", 0.5, **BERT),
    "distilbert": _hf(
        "distilbert", "transformer.layer.0.attention", 0.5,
        vocab_size=19, dim=16, n_heads=4, hidden_dim=24, n_layers=1, max_position_embeddings=12,
    ),
    "gpt2": _hf("gpt2", "h.0.attn", 0.5, **GPT2),
    "gpt2_cross": _hf("gpt2", "h.0.crossattention", 0.5, add_cross_attention=True, **GPT2),
    "t5_cross": _hf("t5", "decoder.block.0.layer.1.EncDecAttention", 1.0, **T5),
    "llama": _hf("llama", "layers.0.self_attn", 0.5, rotary=True, **LLAMA),
    "mistral": _hf("mistral", "layers.0.self_attn", 0.5, rotary=True, **LLAMA),
    "qwen2": _hf("qwen2", "layers.0.self_attn", 0.5, rotary=True, **LLAMA),
    "phi3": _hf("phi3", "layers.0.self_attn", 0.5, rotary=True, **LLAMA),
    "gpt_neox": _hf("gpt_neox", "layers.0.attention", 0.5, rotary=True, **BERT, pad_token_id=None),
}  # fmt: skip
