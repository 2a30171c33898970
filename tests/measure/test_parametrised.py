"""Layers whose weight is computed each time it is read: looking at them changes nothing, in training mode."""

import os

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from warmfree.measure.activations import watch_activations
from warmfree.measure.attention import Layout, Projection, query_key_weights, register_layout, watch_attention
from warmfree.measure.attention import layouts as registry
from warmfree.measure.blocks import BlockQuantities, find_blocks
from warmfree.measure.health import StableRanks, gradient_norms, weight_norms
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.microbatches import watch_microbatches
from warmfree.measure.representation import representation_changes
from warmfree.measure.undisturbed import undisturbed
from warmfree.measure.updates import UpdateProbe

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=31, bos_token_id=0, eos_token_id=0, **sizes)
    model = transformers.LlamaForCausalLM(config)
    for layer in model.model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.up_proj):
            parametrizations.spectral_norm(module)
        parametrizations.weight_norm(layer.self_attn.k_proj)
        parametrizations.orthogonal(layer.self_attn.v_proj)
    return model


def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    for block in model.transformer.h:
        parametrizations.spectral_norm(block.attn.c_attn)
        parametrizations.spectral_norm(block.mlp.c_fc)
    return model


def encoder():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)]
    for layer in layers:
        parametrizations.spectral_norm(layer.self_attn, "in_proj_weight")
        parametrizations.spectral_norm(layer.linear1)
    return nn.Sequential(nn.Embedding(31, 16), *layers)


def convolutions():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 2), nn.ConvTranspose2d(4, 3, 2)
    return nn.Sequential(*map(parametrizations.spectral_norm, layers), nn.Unflatten(0, (-1, 1)))


MODELS = {"llama": llama, "gpt2": gpt2, "encoder": encoder, "convolutions": convolutions}


def inputs_of(name):
    return torch.randn(2, 1, 5, 5) if name == "convolutions" else torch.arange(14).view(2, 7)


def watch(watcher):
    def look(model, inputs):
        with torch.no_grad(), undisturbed(model), watcher(model):
            model(inputs)

    return look


def measure_updates(model, inputs):
    probe = UpdateProbe(model, spectral=True)
    probe.snapshot()
    probe.compare(lr=0.1)


def measure_representations(model, inputs):
    probe = UpdateProbe(model)
    probe.snapshot()
    with torch.no_grad(), undisturbed(model), watch_inputs(model) as seen:
        model(inputs)
    assert all(change.rrc == 0 for change in representation_changes(model, seen, probe).values())


def measure_blocks(model, inputs):
    def loss():
        outputs = model(inputs)
        return (outputs if isinstance(outputs, torch.Tensor) else outputs.logits).square().mean()

    if find_blocks(model):
        BlockQuantities(model).measure(loss)


def measure_parameters(model, inputs):
    weight_norms(model.named_parameters())
    gradient_norms(model.named_parameters())
    StableRanks().measure(model.named_parameters())


LOOKS = {
    "activations": watch(watch_activations),
    "attention": watch(watch_attention),
    "inputs": watch(watch_inputs),
    "microbatches": watch(lambda model: watch_microbatches(model.named_parameters())),
    "query and key": lambda model, inputs: query_key_weights(model),
    "updates": measure_updates,
    "representations": measure_representations,
    "blocks": measure_blocks,
    "parameters": measure_parameters,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_nothing(name, look):
    model, inputs = MODELS[name](), inputs_of(name)
    model(inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert any(key.endswith("._u") for key in before)
    LOOKS[look](model, inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "encoder"])
def test_query_and_key_weights_are_those_that_the_layer_computes_with(name):
    model = MODELS[name]().eval()
    layers = query_key_weights(model)
    assert len(layers) == 2
    for layer, found in layers.items():
        module = model.get_submodule(layer)
        if name == "llama":
            query, key = module.q_proj.weight, module.k_proj.weight
        elif name == "gpt2":
            query, key, _ = module.c_attn.weight.mT.chunk(3)
        else:
            query, key, _ = module.in_proj_weight.chunk(3)
        assert torch.equal(found.query.flatten(0, 1), query)
        assert torch.equal(found.key.flatten(0, 1), key)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_with_a_computed_weight_have_no_representation_change_and_others_have(name):
    model = MODELS[name]()
    probe = UpdateProbe(model)
    probe.snapshot()
    with torch.no_grad(), undisturbed(model), watch_inputs(model) as seen:
        model(inputs_of(name))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    found = representation_changes(model, seen, probe)
    computed, plain = ("mlp.up_proj", "mlp.down_proj") if name == "llama" else ("mlp.c_fc", "mlp.c_proj")
    assert not [layer for layer in found if layer.endswith(computed)]
    changes = [change for layer, change in found.items() if layer.endswith(plain)]
    assert [change.rrc for change in changes] == pytest.approx([0.5, 0.5])


def test_neurons_of_a_transposed_layer_are_still_its_second_dimension():
    model = nn.Sequential(parametrizations.spectral_norm(nn.ConvTranspose1d(2, 3, 1)))
    probe = UpdateProbe(model)
    probe.snapshot()
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(torch.tensor([[1.0], [2.0]])[:, :, None])
    old = probe.before("0.parametrizations.weight.original")[:, :, 0]
    turned = torch.nn.functional.cosine_similarity(old, old * torch.tensor([[1.0], [2.0]]), dim=0).acos()
    update = probe.compare(lr=1.0)["0.parametrizations.weight.original"]
    assert update.neuron_angle == pytest.approx(turned.square().mean().sqrt().item(), rel=1e-4)


def test_a_layout_of_the_users_is_asked_in_eval_mode():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.ask, self.answer = (parametrizations.spectral_norm(nn.Linear(4, 4)) for _ in range(2))

    @register_layout
    def mine(module):
        if not isinstance(module, Mine):
            return None
        return Layout(Projection(module.ask.weight), Projection(module.answer.weight), head_dim=2)

    try:
        model = nn.Sequential(Mine())
        before = {key: value.clone() for key, value in model.state_dict().items()}
        assert query_key_weights(model)["0"].query.shape == (2, 2, 4)
    finally:
        registry.LAYOUTS.remove(mine)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
