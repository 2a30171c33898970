"""Spread over processes: weights are gathered whole, maps are those that the process computes."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from processes import spawn
from warmfree.measure.attention import query_key_weights, spectrum, watch_attention
from warmfree.measure.undisturbed import undisturbed


class Attention(nn.Module):
    """Four heads, two key heads; it can compute with half of them."""

    def __init__(self):
        super().__init__()
        self.head_dim = 4
        self.q_proj, self.o_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k_proj, self.v_proj = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Scores(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def make_model():
    torch.manual_seed(5)
    return nn.Sequential(Attention(), Attention()).double()


def make_batch():
    return torch.randn(4, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def look(model, batch):
    with undisturbed(model), torch.no_grad(), watch_attention(model) as seen:
        model(batch)
    spectra = {name: spectrum(found.query, found.key) for name, found in query_key_weights(model).items()}
    return seen, spectra


def look_from(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fsdp, tp = make_model(), make_model()
    for block in fsdp:
        fully_shard(block, mesh=mesh)
    fully_shard(fsdp, mesh=mesh)
    for block in tp:
        split = dict.fromkeys(("q_proj", "k_proj", "v_proj"), ColwiseParallel())
        parallelize_module(block, mesh, split | {"o_proj": RowwiseParallel()})
    batch, scores = make_batch(), Scores()
    with torch.no_grad(), watch_attention(scores) as of_dtensors:
        scores(distribute_tensor(batch.unflatten(-1, (4, 4)).transpose(1, 2), mesh, [Shard(1)]))
    results = {"fsdp": look(fsdp, batch[2 * rank : 2 * rank + 2]), "tp": look(tp, batch)}
    sharded = all(hasattr(weight, "full_tensor") for weight in fsdp.parameters())
    torch.save((results, sharded, of_dtensors), f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("default")
def test_weights_are_gathered_and_maps_are_the_processes_own(tmp_path):
    spawn(look_from, 2, str(tmp_path))
    batch = make_batch()
    whole, spectra = look(make_model(), batch)
    scores = Scores()
    with torch.no_grad(), watch_attention(scores) as of_tensors:
        scores(batch.unflatten(-1, (4, 4)).transpose(1, 2))
    for rank in range(2):
        results, sharded, of_dtensors = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert of_dtensors[""].heads == [0, 1, 2, 3]
        assert of_dtensors[""].entropy == pytest.approx(of_tensors[""].entropy, abs=1e-12)
        assert sharded  # the pass of the probe left no module gathered
        for way in ("fsdp", "tp"):
            for name, values in results[way][1].items():
                torch.testing.assert_close(values, spectra[name], rtol=0, atol=1e-12)
        own_samples, _ = look(make_model(), batch[2 * rank : 2 * rank + 2])
        assert list(results["fsdp"][0]) == list(results["tp"][0]) == list(whole)
        for name, statistics in whole.items():
            assert results["fsdp"][0][name].entropy == pytest.approx(own_samples[name].entropy, abs=1e-12)
            own_heads = results["tp"][0][name]
            assert own_heads.heads == [0, 1]
            assert own_heads.entropy == pytest.approx(statistics.entropy[2 * rank : 2 * rank + 2], abs=1e-12)
            assert own_heads.logit == pytest.approx(statistics.logit[2 * rank : 2 * rank + 2], abs=1e-12)
