"""What the watch keeps of the layers' inputs, and what it leaves behind."""

import pytest
import torch
from torch import Tensor, nn

from warmfree.measure.inputs import linear_layers, watch_inputs


def test_the_sample_is_spread_over_the_batch_and_over_positions() -> None:
    layer = nn.Linear(1, 1)
    rows = torch.arange(64 * 16.0).reshape(64, 16, 1)
    with watch_inputs(layer, tokens=64) as seen:
        layer(rows)
    sample = seen[""].flatten().long()
    assert torch.equal(sample // 16, torch.arange(64))  # one of each sequence
    assert torch.equal((sample % 16).bincount(), torch.full((16,), 4))  # at every position alike
    with watch_inputs(layer, tokens=2000) as seen:
        layer(rows)
    assert torch.equal(seen[""], rows.flatten(0, 1))
    with pytest.raises(ValueError, match="tokens must be >= 1, got 0"), watch_inputs(layer, tokens=0):
        pass


def test_calls_are_pooled_and_convolutions_keep_whole_samples() -> None:
    model = nn.ModuleDict(
        {"linear": nn.Linear(2, 2), "conv": nn.Conv2d(1, 1, 3), "embedding": nn.Embedding(9, 2)}
    )
    with watch_inputs(model, tokens=20) as seen:
        model["linear"](torch.zeros(30, 2))
        model["linear"](input=torch.ones(30, 2))
        model["conv"](torch.zeros(10, 1, 4, 4))
        model["conv"](torch.ones(10, 1, 4, 4))
        model["conv"](torch.ones(10, 1, 5, 5))
        model["embedding"](torch.zeros(3, dtype=torch.int32))
        model["embedding"](torch.ones(0, dtype=torch.int32))
        assert seen == {}
    assert seen["linear"].shape == (20, 2)
    assert float(seen["linear"].mean()) == 0.5
    assert seen["conv"].shape == (2, 1, 4, 4)
    assert float(seen["conv"].mean()) == 0.5
    assert torch.equal(seen["embedding"], torch.zeros(3, dtype=torch.int32))


def test_watching_leaves_no_trace_and_what_was_not_called_is_not_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="shapes cannot"), watch_inputs(model):
        model(torch.ones(1, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())
    with watch_inputs(model) as seen:
        model[0](torch.ones(1, 2))
        model[1](torch.ones(0, 2))
    assert seen.keys() == {"0"}
    assert not seen["0"].requires_grad
    norms = nn.Sequential(nn.LayerNorm(2))
    with watch_inputs(norms) as seen:
        norms(torch.ones(1, 2))
    assert seen == {}
    assert linear_layers(norms) == {}


def test_layers_with_a_forward_of_their_own_are_left_out() -> None:
    class Positions(nn.Embedding):
        def forward(self, mask: Tensor) -> Tensor:
            return super().forward(mask.cumsum(-1))

    class Named(nn.Linear):
        pass

    assert linear_layers(nn.ModuleList([Positions(5, 2), Named(2, 2)])).keys() == {"1"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformer_layers_do_not_take_their_fast_path_around_the_watch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    mask = torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad(), watch_inputs(model) as seen:
        model(torch.randn(2, 3, 8), src_key_padding_mask=mask)
    base = "layers.0"
    assert seen.keys() >= {f"{base}.self_attn[q]", f"{base}.linear1", f"{base}.linear2"}
    assert seen[f"{base}.linear1"].shape[1] == 8
