"""Attention has a second derivative inside the context, and is what it was outside."""

import pytest
import torch
from curvature_cases import flat
from torch import nn

from warmfree.measure.curvature import DifferenceHessian, Hessian, sharpness, twice_differentiable


def hugging_face(kind):
    """A tiny model set to a kind of attention that need not be installed."""
    transformers = pytest.importorskip("transformers")
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
        )
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def kinds(model):
    return {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "sdpa", "eager"])
def test_hugging_face_models_are_switched_and_switched_back(kind, attention):
    model = hugging_face(kind).double().eval()
    tokens = torch.randint(11, (2, 6))

    def loss():
        return model(input_ids=tokens, labels=tokens).loss

    model.config._attn_implementation = "eager"
    with twice_differentiable():
        expected = loss().item()
    model.config._attn_implementation = attention
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [torch.randn_like(parameter) for parameter in parameters]
    with twice_differentiable(model):
        assert kinds(model) == {"eager" if attention == "eager" else "sdpa"}
        assert loss().item() == pytest.approx(expected, rel=1e-6)
        exact = flat(Hessian(loss, parameters)(vectors))
        differences = flat(DifferenceHessian(loss, parameters)(vectors))
        # Hugging Face's loss is in float32, whatever the model is in.
        assert torch.linalg.vector_norm(exact - differences) < 5e-3 * torch.linalg.vector_norm(exact)
    assert kinds(model) == {attention}
    with pytest.raises(KeyError), twice_differentiable(model):
        raise KeyError("an exception on the way")
    assert kinds(model) == {attention}
    assert sharpness(model, loss, max_products=3).method == "exact"


def test_configurations_within_configurations_and_models_that_know_no_sdpa():
    class Config:
        """Sets what is within it, as the library's do."""

        def __init__(self, kind, inner=None):
            self.inner = inner
            self._kind = kind

        @property
        def _attn_implementation(self):
            return self._kind

        @_attn_implementation.setter
        def _attn_implementation(self, kind):
            self._kind = kind
            if self.inner is not None:
                self.inner._attn_implementation = kind

    inner = Config("flex_attention")
    outer = Config("flash_attention_2", inner)
    model, part = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)
    model.append(part)
    model.config, part.config = outer, inner
    model._supports_sdpa = True
    with twice_differentiable(model):
        assert (outer._attn_implementation, inner._attn_implementation) == ("sdpa", "sdpa")
    assert (outer._attn_implementation, inner._attn_implementation) == ("flash_attention_2", "flex_attention")
    part._supports_sdpa = False
    with twice_differentiable(part):
        assert inner._attn_implementation == "eager"
    assert inner._attn_implementation == "flex_attention"


def test_torchs_own_layers_leave_their_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    encoder = nn.TransformerEncoder(layer, 2)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    for model, call in (
        (encoder, lambda: encoder(x)),
        (attention, lambda: attention(x, x, x, need_weights=False)[0]),
    ):
        with twice_differentiable(model):
            assert not torch.backends.mha.get_fastpath_enabled()
            parameters = list(model.parameters())
            vectors = [torch.randn_like(parameter) for parameter in parameters]
            loss = lambda call=call: call().square().sum()  # noqa: E731
            torch.testing.assert_close(
                flat(Hessian(loss, parameters)(vectors)),
                flat(DifferenceHessian(loss, parameters)(vectors)),
                rtol=1e-4,
                atol=1e-5,
            )
        assert torch.backends.mha.get_fastpath_enabled()


def test_the_choice_of_kernels_is_put_back():
    before = torch.backends.cuda.flash_sdp_enabled()
    with twice_differentiable():
        assert not torch.backends.cuda.flash_sdp_enabled()
        with twice_differentiable():
            pass
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == before
