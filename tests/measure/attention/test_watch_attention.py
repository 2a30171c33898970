"""The watcher sees the attention that the model computes, and leaves the model alone."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from layouts import LAYOUTS
from maps import assert_statistics, expected, maps_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from measure.cases import CASES, FusedAttention
from warmfree.measure.attention import watch_attention
from warmfree.measure.undisturbed import undisturbed

ALL = {"samples": 10**6, "heads": 10**6, "queries": 10**6}
ATTENDING = [name for name in CASES if name not in ("mlp", "convnet")]
HF = [name for name in ATTENDING if name.startswith("hf_")]


def watch(case, **sampling):
    with undisturbed(case.model), torch.no_grad(), watch_attention(case.model, **(sampling or ALL)) as seen:
        case.forward()
    return seen


@pytest.mark.parametrize("name", ATTENDING)
def test_statistics_are_those_of_the_models_own_maps(name):
    case = CASES[name]()
    seen = watch(case)
    maps = maps_of(name, case)
    assert tuple(seen) == case.attention
    for layer, (logits, attention) in maps.items():
        assert seen[layer].heads == list(range(logits.shape[1]))
        assert_statistics(seen[layer], expected(logits, attention))


@pytest.mark.parametrize("name", HF)
def test_written_out_attention_gives_the_same_as_sdpa(name):
    case = CASES[name]()
    assert case.model.config._attn_implementation == "sdpa"
    sdpa = watch(case)
    case.model.set_attn_implementation("eager")
    eager = watch(case)
    assert list(sdpa) == list(eager)
    for layer, statistics in sdpa.items():
        columns = {
            q: getattr(eager[layer], q) for q in ("entropy", "entropy_ratio", "logit", "rank", "collapse")
        }
        # all but GPT-2 round the map to float32 on its way to the next layer if it is written out
        assert_statistics(statistics, columns, atol=1e-10 if name == "hf_gpt2" else 1e-6)


def test_vision_attention_written_out_gives_the_same_as_fused():
    case = CASES["fused"]()
    fused = watch(case)
    for layer in case.attention:
        case.model.get_submodule(layer).fused_attn = False
    for layer, statistics in watch(case).items():
        assert_statistics(statistics, {"entropy": fused[layer].entropy, "logit": fused[layer].logit})


@pytest.mark.parametrize("name", ["multihead", "multihead_time_first"])
def test_multihead_gives_the_same_with_weights_and_without(name):
    case = CASES[name]()
    without = watch(case)
    for layer in case.attention:
        case.model.get_submodule(layer.removesuffix(".mha")).need_weights = True
    seen = watch(case)
    assert tuple(seen) == case.attention
    for layer, statistics in seen.items():
        assert_statistics(statistics, {q: getattr(without[layer], q) for q in ("entropy", "logit", "rank")})


@pytest.mark.parametrize("name", ["nano", "multihead_cross", "distilbert", "gpt2_cross", "t5_cross", "phi3"])
def test_layers_of_other_layouts_are_seen(name):
    layer = LAYOUTS[name]()
    with undisturbed(layer.model), torch.no_grad(), watch_attention(layer.model) as seen:
        layer.run()
    assert layer.name in seen
    assert all(0 < ratio <= 1 + 1e-6 for ratio in seen[layer.name].entropy_ratio)


def test_sampling_takes_evenly_spaced_rows_heads_and_samples():
    case = CASES["gpt"]()
    maps = maps_of("gpt", case)
    seen = watch(case, samples=2, heads=3, queries=4)
    for layer, statistics in seen.items():
        logits, attention = (part[[0, 2]][:, [0, 1, 3]][:, :, [1, 4, 6, 9]] for part in maps[layer])
        assert statistics.heads == [0, 1, 3]
        assert_statistics(statistics, expected(logits, attention))


@pytest.mark.parametrize("name", ["samples", "heads", "queries"])
def test_sampling_nothing_is_refused(name):
    with (
        pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"),
        watch_attention(nn.Linear(1, 1), **{name: 0}),
    ):
        pass


class Kernels(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def traces(model):
    """All that a watcher could leave behind."""
    configs = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
    return (
        [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
            for m in model.modules()
        ],
        [getattr(c, "_attn_implementation", None) for c in configs.values()],
        [flag.training for flag in model.modules()],
        torch._C._len_torch_function_stack(),
        torch.backends.mha.get_fastpath_enabled(),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_model_computes_as_ever(name):
    case = CASES[name]()
    before, random = traces(case.model), torch.get_rng_state()
    case.model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the watcher keeps out of it; it rounds differently
    with torch.no_grad(), Kernels() as plain:
        outputs = case.forward()
    with torch.no_grad(), Kernels() as watched, watch_attention(case.model):
        same = case.forward()
    torch.backends.mha.set_fastpath_enabled(True)
    case.model.train()
    assert torch.equal(outputs, same)
    flash = [sum("flash_attention" in kernel for kernel in run.names) for run in (plain, watched)]
    assert flash[0] == flash[1]
    if name in ("gpt", "fused", "multihead", "hf_llama", "hf_vit"):
        assert flash[0] == len(case.attention)
    assert traces(case.model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_the_fused_encoder_steps_aside_for_the_pass():
    case = CASES["encoder"]()
    case.model.eval()
    with torch.no_grad(), Kernels() as kernels:
        fast = case.forward()
    assert any("transformer_encoder_layer" in name for name in kernels.names)
    with torch.no_grad(), watch_attention(case.model) as seen:
        slow = case.forward()
    assert tuple(seen) == case.attention
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("inside")


def test_nothing_is_left_after_an_exception():
    case = CASES["gpt"]()
    case.model.blocks[1].mlp = Fails()
    before = traces(case.model)
    with pytest.raises(RuntimeError, match="inside"), torch.no_grad(), watch_attention(case.model) as seen:
        case.forward()
    assert traces(case.model) == before
    assert seen == {}
    with pytest.raises(KeyError), torch.no_grad(), watch_attention(case.model):
        raise KeyError
    assert traces(case.model) == before


def test_a_module_that_fails_and_is_caught_does_not_shift_the_names():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails = Fails()

        def forward(self, x):
            with pytest.raises(RuntimeError):
                self.fails(x)
            return F.scaled_dot_product_attention(x, x, x)

    model = nn.Sequential(Tries())
    with torch.no_grad(), watch_attention(model) as seen:
        model(heads(1, 2, 3, 4))
    assert list(seen) == ["0"]


def test_the_innermost_known_layer_gives_the_name():
    class Outer(FusedAttention):
        def __init__(self):
            super().__init__(16, 4)
            self.inner = nn.Sequential(FusedAttention(16, 2))

        def forward(self, x):
            return self.inner(x) + super().forward(x)

    model = nn.Sequential(Outer())
    with torch.no_grad(), watch_attention(model) as seen:
        model(torch.randn(2, 5, 16))
    assert {name: len(statistics.heads) for name, statistics in seen.items()} == {"0.inner.0": 2, "0": 4}


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("name", ["hf_gpt2", "hf_llama"])
def test_models_on_other_kernels_are_watched_through_sdpa(name, implementation):
    case = CASES[name]()
    sdpa = watch(case)
    case.model.config._attn_implementation = implementation
    assert watch(case) == sdpa
    assert case.model.config._attn_implementation == implementation


def attend(query, key, model=None, **kwargs):
    """Watch one call of scaled_dot_product_attention."""

    class Layer(nn.Module):
        def forward(self):
            return F.scaled_dot_product_attention(query, key, key, **kwargs)

    layer = Layer()
    with torch.no_grad(), watch_attention(layer, **ALL) as seen:
        layer()
    return seen.get("")


def heads(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["boolean", "additive", "per_sample", "causal", "scaled"])
@pytest.mark.parametrize("batch", [(2,), (2, 3), None])
def test_masks_scales_and_any_number_of_batch_dimensions(kind, batch):
    if batch is None:  # no dimension of heads
        query, key = heads(2, 5, 4), heads(2, 7, 4)
        shape = (2, 1)
    else:
        query, key = heads(*batch, 3, 5, 4), heads(*batch, 3, 7, 4)
        shape = (math.prod(batch), 3)
    seen_keys = torch.rand(5, 7) > 0.4
    seen_keys[1], seen_keys[2, :], seen_keys[2, 3] = False, False, True  # a row sees nothing, another one key
    added, kwargs, scale = torch.zeros(5, 7, dtype=torch.float64), {}, 0.5
    if kind == "boolean":
        kwargs = {"attn_mask": seen_keys}
        added.masked_fill_(~seen_keys, -math.inf)
    elif kind == "additive":
        added = heads(5, 7).masked_fill(~seen_keys, torch.finfo(torch.float64).min)
        kwargs = {"attn_mask": added}
        added = added.masked_fill(~seen_keys, -math.inf)
    elif kind == "per_sample":
        added = heads(*query.shape[:-2], 5, 7)
        kwargs = {"attn_mask": added}
        added = added.reshape(*shape, 5, 7)
    elif kind == "causal":
        kwargs = {"is_causal": True}
        added.masked_fill_(torch.ones(5, 7, dtype=torch.bool).triu(1), -math.inf)
    else:
        kwargs, scale = {"scale": 0.1}, 0.1
    logits = query.reshape(*shape, 5, 4) @ key.reshape(*shape, 7, 4).mT * scale + added
    assert_statistics(attend(query, key, **kwargs), expected(logits, logits.softmax(-1).nan_to_num()))


def test_grouped_heads_use_the_key_head_that_the_kernel_uses():
    query, key = heads(2, 6, 5, 4), heads(2, 2, 5, 4)
    logits = query @ key.repeat_interleave(3, 1).mT / 2
    assert_statistics(attend(query, key, enable_gqa=True), expected(logits, logits.softmax(-1)))


def test_more_queries_than_keys():
    query, key = heads(2, 3, 7, 4), heads(2, 3, 2, 4)
    logits = query @ key.mT / 2
    assert_statistics(attend(query, key), expected(logits, logits.softmax(-1)))


def test_one_token_has_an_entropy_but_nothing_to_choose():
    statistics = attend(heads(2, 3, 1, 4), heads(2, 3, 1, 4))
    assert statistics.entropy == [0.0] * 3
    assert statistics.rank == pytest.approx([1.0] * 3)
    assert all(map(math.isnan, statistics.entropy_ratio + statistics.collapse))


def test_rows_that_see_nothing_are_left_out_and_heads_that_see_nothing_are_nan():
    mask = torch.ones(2, 3, 5, 5, dtype=torch.bool)
    mask[:, 1] = False
    mask[0, 2, :4] = False
    query, key = heads(2, 3, 5, 4), heads(2, 3, 5, 4)
    statistics = attend(query, key, attn_mask=mask)
    logits = (query @ key.mT / 2).masked_fill(~mask, -math.inf)
    assert_statistics(statistics, expected(logits, logits.softmax(-1).nan_to_num()))
    values = (getattr(statistics, q)[1] for q in ("entropy", "entropy_ratio", "logit", "rank", "collapse"))
    assert all(map(math.isnan, values))


def test_padding_is_seen_alike_by_sdpa_and_eager():
    case = CASES["hf_gpt2"]()
    tokens = torch.randint(19, (2, 8))
    padding = torch.ones(2, 8, dtype=torch.long)
    padding[0, :3] = 0
    columns = []
    for implementation in ("sdpa", "eager"):
        case.model.set_attn_implementation(implementation)
        with undisturbed(case.model), torch.no_grad(), watch_attention(case.model, **ALL) as seen:
            case.model(tokens, attention_mask=padding)
        columns.append(seen["transformer.h.0.attn"])
    assert_statistics(
        columns[0], {q: getattr(columns[1], q) for q in ("entropy", "entropy_ratio", "logit", "rank")}
    )


def test_zero_queries_attend_to_all_alike():
    statistics = attend(torch.zeros(2, 3, 8, 4), torch.ones(2, 3, 8, 4))
    assert statistics.entropy_ratio == pytest.approx([1.0] * 3)
    assert statistics.logit == [0.0] * 3
    assert statistics.rank == pytest.approx([1 / 8] * 3)
    assert statistics.collapse == [0.0] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_makes_its_head_nan(bad):
    query, key = heads(2, 3, 5, 4), heads(2, 3, 5, 4)
    healthy = attend(query, key)
    query[1, 2, 0, 0] = bad
    statistics = attend(query, key)
    for quantity in ("entropy", "entropy_ratio", "rank", "collapse"):
        values = getattr(statistics, quantity)
        assert values[:2] == getattr(healthy, quantity)[:2]
        assert math.isnan(values[2])
    assert not math.isfinite(statistics.logit[2])


def test_collapse_is_told_from_the_map():
    tokens = 20 * torch.eye(16)[None, None]
    first = tokens[..., :1].expand_as(tokens)  # only the first key has a product with the queries
    to_itself, to_first = attend(tokens, tokens), attend(torch.ones_like(tokens), first)
    assert to_itself.collapse == [1.0]
    assert to_first.collapse == [2.0]


def test_calls_of_one_layer_are_averaged_and_the_largest_logit_is_of_all():
    layer = CASES["gpt"]().model.blocks[0].attention
    model, (first, second) = nn.Sequential(layer, layer), heads(2, 3, 7, 16)
    each = []
    for x in (first, second):
        with torch.no_grad(), watch_attention(layer, **ALL) as seen:
            layer(x)
        each.append(seen[""])
    with torch.no_grad(), watch_attention(model, **ALL) as seen:
        model[0](first), model[1](second)
    (both,) = seen.values()
    assert list(seen) == ["0"]
    for quantity in ("entropy", "entropy_ratio", "rank"):
        means = [(a + b) / 2 for a, b in zip(*(getattr(one, quantity) for one in each), strict=True)]
        assert getattr(both, quantity) == pytest.approx(means, abs=1e-12)
    assert both.logit == [max(pair) for pair in zip(each[0].logit, each[1].logit, strict=True)]


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_models_are_measured_in_float32(how):
    case = CASES["gpt"](torch.bfloat16 if how == "weights" else torch.float32)
    precise = watch(CASES["gpt"](torch.float32))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        seen = watch(case)
    for layer, statistics in seen.items():
        assert statistics.entropy == pytest.approx(precise[layer].entropy, rel=0.02)
        assert all(ratio <= 1 + 1e-6 for ratio in statistics.entropy_ratio)
        # bfloat16 keeps 8 bits: its numbers, scaled by 1/2, would be multiples of 2^-9 or so of their size
        assert any(value != torch.tensor(value).bfloat16().item() for value in statistics.logit)


def test_other_softmaxes_are_not_attention():
    class Gate(nn.Module):
        def forward(self, x):
            return x.softmax(-1)

    model = nn.Sequential(nn.Conv2d(2, 3, 1), Gate(), nn.Softmax(dim=-1))
    with torch.no_grad(), watch_attention(model) as seen:
        model(torch.randn(2, 2, 4, 4))
    assert seen == {}


def test_written_out_attention_of_unknown_layout_is_known_by_its_class():
    class TalkingAttention(nn.Module):
        def forward(self, x):
            return nn.Softmax(dim=3)(x @ x.mT).sum(1) + torch.softmax(x[:, 0] @ x[:, 0].mT, -1)

    model = nn.ModuleDict({"talking": TalkingAttention()})
    x = heads(2, 3, 5, 4)
    with torch.no_grad(), watch_attention(model, **ALL) as seen:
        model["talking"](x)
    logits = x @ x.mT
    assert list(seen) == ["talking"]
    assert_statistics(seen["talking"], expected(logits, logits.softmax(-1)))


def test_calls_outside_of_the_model_are_not_seen():
    x = heads(2, 3, 5, 4)
    with torch.no_grad(), watch_attention(nn.Linear(4, 4)) as seen:
        F.scaled_dot_product_attention(x, x, x)
    assert seen == {}


def test_watchers_nest():
    case = CASES["multihead"]()
    case.model.eval()
    with (
        torch.no_grad(),
        watch_attention(case.model, **ALL) as outer,
        watch_attention(case.model, **ALL) as inner,
    ):
        case.forward()
    assert outer == inner == watch(case)
