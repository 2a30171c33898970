"""Whole attention maps of the shared cases, from the models' own written-out attention, and what they should give."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch.overrides import TorchFunctionMode

HIDDEN = -1e7  # the masks of the cases are -inf and the minimum of the dtype


class Softmaxes(TorchFunctionMode):
    """Keeps what every softmax makes, in float64 throughout, and of what."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (F.softmax, torch.Tensor.softmax):
            kwargs.pop("dtype", None)  # some models ask for float32
            logits = args[0]
            attention = func(*args, **kwargs)
            self.seen.append((logits, attention))
            return attention
        return func(*args, **kwargs)


def maps_of(name, case):
    """Layer name -> (logits, -inf where hidden; attention), both (samples, heads, queries, keys)."""
    with torch.no_grad():
        if name.startswith("gpt"):
            return {layer: _causal(case, layer) for layer in case.attention}
        if name.startswith(("multihead", "encoder")):
            return {layer: _multihead(case, layer) for layer in case.attention}
        if name.startswith("hf_"):
            return _eager(case)
        return _written_out(case)


def _causal(case, layer):
    parts = {}
    module = case.model.get_submodule(layer)
    hooks = [
        getattr(module, part).register_forward_hook(lambda m, a, out, part=part: parts.update({part: out}))
        for part in ("query_norm", "key_norm")
    ]
    case.forward()
    for hook in hooks:
        hook.remove()
    query, key = parts["query_norm"], parts["key_norm"]
    later = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
    logits = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -math.inf)
    return logits, logits.softmax(-1)


def _multihead(case, layer):
    module, caught = case.model.get_submodule(layer), []
    hook = module.register_forward_pre_hook(lambda m, args: caught.append(args))
    case.forward()
    hook.remove()
    x = caught[0][0]
    attention = module(x, x, x, need_weights=True, average_attn_weights=False)[1]
    x = x if module.batch_first else x.transpose(0, 1)
    query, key, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).split(16, dim=-1)
    query, key = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in (query, key))
    return query @ key.mT / 2, attention


def _eager(case):
    implementation = case.model.config._attn_implementation
    case.model.set_attn_implementation("eager")
    given = {}
    hooks = [
        case.model.get_submodule(layer).register_forward_hook(
            lambda m, a, out, layer=layer: given.update({layer: out[1]})
        )
        for layer in case.attention
    ]
    with Softmaxes() as softmaxes:
        case.forward()
    for hook in hooks:
        hook.remove()
    case.model.set_attn_implementation(implementation)
    maps = dict(zip(case.attention, softmaxes.seen, strict=True))
    for layer, (_, attention) in maps.items():
        assert torch.equal(attention, given[layer])  # what the model itself says its attention is
    return {
        layer: (logits.masked_fill(logits < HIDDEN, -math.inf), attention)
        for layer, (logits, attention) in maps.items()
    }


def _written_out(case):
    for layer in case.attention:
        case.model.get_submodule(layer).fused_attn = False
    with Softmaxes() as softmaxes:
        case.forward()
    for layer in case.attention:
        case.model.get_submodule(layer).fused_attn = True
    return dict(zip(case.attention, softmaxes.seen, strict=True))


def expected(logits, attention):
    """The statistics by their definitions, one head, one sample and one query at a time."""
    columns = {"entropy": [], "entropy_ratio": [], "logit": [], "rank": []}
    for head in range(logits.shape[1]):
        entropies, ratios, ranks, largest = [], [], [], -math.inf
        for scores, rows in zip(logits[:, head], attention[:, head], strict=True):
            kept = []
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                visible = sum(value > -math.inf for value in score)
                if not visible:
                    continue
                entropies.append(-sum(p * math.log(p) for p in row if p > 0))
                ratios += [entropies[-1] / math.log(visible)] if visible > 1 else []
                largest = max(largest, *score)
                kept.append(row)
            if kept:
                energy = torch.linalg.svdvals(torch.tensor(kept, dtype=torch.float64)).square()
                rank = (energy.sum().square() / energy.square().sum()).item()
                ranks.append(rank / min(len(kept), rows.shape[1]))
        columns["entropy"].append(_mean(entropies))
        columns["entropy_ratio"].append(_mean(ratios))
        columns["logit"].append(largest if largest > -math.inf else math.nan)
        columns["rank"].append(_mean(ranks))
    return columns


def _mean(values):
    return sum(values) / len(values) if values else math.nan


def assert_statistics(statistics, columns, atol=1e-10):
    for quantity, values in columns.items():
        ours = torch.tensor(getattr(statistics, quantity), dtype=torch.float64)
        theirs = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=atol, equal_nan=True, msg=lambda text, q=quantity: f"{q}: {text}"
        )
