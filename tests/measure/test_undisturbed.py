"""What a probe's pass leaves behind: nothing, in flags, random numbers, buffers and what modules remember."""

import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from processes import spawn
from warmfree.measure.undisturbed import evaluation, undisturbed

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Restless(nn.Module):
    """Changes itself in every pass, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("codebook", torch.tensor([1.0, -0.0, torch.nan, torch.inf]))
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("past", torch.ones(2, 4), persistent=False)
        self.register_buffer("none", None)
        self.register_buffer("mask", torch.ones(1, 4).expand(3, 4))
        self.register_buffer("graph", torch.eye(4).to_sparse())
        self.calls, self.length, self.cache = 0, 1.5, None

    def forward(self, x):
        mean = x.mean(0)
        self.count += 1
        self.codebook.data.mul_(0.9)
        self.average.data = 0.9 * self.average + mean  # another memory
        self.past = torch.cat([self.past, mean[None]])  # another tensor, of another shape
        self.none = mean
        self.mask = self.mask + 1
        self.register_buffer("late", mean)
        self.calls, self.length, self.cache, self.fresh = self.calls + 1, 2.5, mean, mean
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 (the global state is what is kept)
        return x + self.count + self.average + random.random()


def bits(tensor):
    return tensor.view(torch.uint8).clone() if tensor.ndim else tensor.clone()


def state(model):
    plain = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if value is None or isinstance(value, bool | int | float)
    }
    buffers = dict(model.named_buffers(remove_duplicate=False))
    dense = {name: bits(buffer) for name, buffer in buffers.items() if not buffer.is_sparse}
    numbers = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    return plain, buffers, dense, numbers, torch.get_rng_state()


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(first[1][name] is second[1][name] for name in first[1])
    assert first[2].keys() == second[2].keys()
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
    assert first[3] == second[3]
    assert torch.equal(first[4], second[4])


def make_model():
    model = nn.Sequential(Restless(), nn.Dropout(), nn.BatchNorm1d(4), Restless())
    model[3].codebook = model[0].codebook  # shared
    model[1].eval()
    return model


def test_buffers_numbers_and_random_states_are_what_they_were():
    model, inputs = make_model(), torch.randn(3, 4)
    before = state(model)
    with undisturbed(model), torch.no_grad():
        model(inputs)
        assert model[0].calls == 1
        assert model[0].count == 4
    assert_same(before, state(model))
    assert not hasattr(model[0], "fresh")
    assert [module.training for module in model] == [True, False, True, True]


def test_an_exception_leaves_nothing_either():
    model, inputs = make_model(), torch.randn(3, 4)
    before = state(model)
    with pytest.raises(KeyboardInterrupt), undisturbed(model), torch.no_grad():  # noqa: PT012
        model(inputs)
        model[0].past = None
        del model[3].average
        raise KeyboardInterrupt
    assert_same(before, state(model))


def test_a_run_goes_on_to_the_last_bit_as_if_nobody_had_looked():
    def run(*, watched):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        model = nn.Sequential(nn.Linear(4, 4), make_model(), nn.Linear(4, 1))
        model[1][0].codebook = model[1][3].codebook = torch.ones(4)
        optimizer = torch.optim.AdamW(model.parameters())
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            if watched:
                with undisturbed(model), torch.no_grad():
                    model(torch.randn(5, 4))
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert run(watched=True) == run(watched=False)


def test_a_graph_that_has_saved_a_buffer_can_still_be_differentiated():
    model = nn.BatchNorm1d(4)
    model.register_buffer("scale", torch.full((4,), 2.0))
    inputs = torch.ones(3, 4, requires_grad=True)
    loss = (inputs.square() * model.scale).sum()
    with undisturbed(model), torch.no_grad():
        model.scale.data.mul_(7)
    loss.backward()
    assert torch.equal(inputs.grad, torch.full((3, 4), 4.0))


def test_observers_of_fake_quantisation_do_not_see_the_probe():
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    quantise = FakeQuantize(observer=MovingAverageMinMaxObserver)
    quantise(torch.randn(10))
    before = {name: bits(buffer) for name, buffer in quantise.named_buffers()}
    with undisturbed(quantise), torch.no_grad():
        quantise(100 * torch.randn(10))
        assert not torch.equal(bits(quantise.activation_post_process.max_val), before["scale"])
    after = {name: bits(buffer) for name, buffer in quantise.named_buffers()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_rotary_embedding_that_grows_does_so_for_the_probe_alone():
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)

    def outputs(*, watched):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        with torch.no_grad():
            model(torch.arange(6)[None])
            if watched:
                with undisturbed(model):
                    model(torch.arange(30)[None])
            return model(torch.arange(12)[None]).logits

    assert torch.equal(outputs(watched=True), outputs(watched=False))


def test_torchscript():
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)))
    model = nn.Sequential(script, nn.Linear(4, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model), torch.no_grad():
        assert not script.training
        script.train()
        model(torch.randn(8, 4))
        assert not torch.equal(model.state_dict()["0.1.running_mean"], before["0.1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def look_at_sharded_buffers(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Module()
    model.register_buffer("table", distribute_tensor(torch.arange(8.0), mesh, [Shard(0)]))
    table = model.table
    with undisturbed(model), torch.no_grad():
        model.table.mul_(3)
        model.table = distribute_tensor(torch.zeros(8), mesh, [Shard(0)])
    assert model.table is table
    assert torch.equal(table.full_tensor(), torch.arange(8.0))


def test_sharded_buffers():
    spawn(look_at_sharded_buffers, 2)


def test_evaluation_sets_flags_alone():
    model = make_model()
    with pytest.raises(ValueError, match="mine"), evaluation(model):  # noqa: PT012
        assert not any(module.training for module in model.modules())
        model[1].train()
        raise ValueError("mine")
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
