"""What holds of every advice, and small runs to ask about."""

import json
import math
import re

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.lab.models.gpt import GPT, GPTConfig

FEATURES, CLASSES = 6, 3


def mlp(dtype=torch.float32, *middle):
    torch.manual_seed(0)
    parts = [nn.Linear(FEATURES, 12), *middle, nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*parts).to(dtype)


def batches(count=20, size=16, *, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, FEATURES, generator=generator).to(dtype)
    return [(rows, rows[:, :CLASSES].argmax(1)) for rows in inputs]


def loss_fn(model, pair):
    inputs, targets = pair
    return F.cross_entropy(model(inputs), targets)


def gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocabulary=11, context=8, layers=1, width=16, heads=2))


def token_batches(count=20, size=8):
    """Sequences in which each token tells the next."""
    generator = torch.Generator().manual_seed(2)
    first = torch.randint(11, (count, size, 1), generator=generator)
    return [(3 * rows + torch.arange(9)) % 11 for rows in first]


def token_loss(model, tokens):
    return model.loss(tokens[:, :-1], tokens[:, 1:])


def check_advice(advice, *, steps):
    """Assert what holds of every advice."""
    replaced = advice.verdict == "replace"
    assert advice.verdict in ("no warmup", "warmup", "replace", "unknown")
    assert advice.confidence in ("high", "medium", "low")
    assert (advice.warmup_steps > 1) == (advice.verdict == "warmup")
    assert advice.warmup_steps == 0 or advice.verdict == "warmup"
    assert advice.warmup_steps <= 0.3 * steps + 0.5
    assert (advice.replacement is not None) == replaced
    assert advice.warmup_if_kept is None or (replaced and advice.warmup_if_kept > 1)
    assert 0 <= advice.start_lr <= advice.lr
    assert (advice.start_lr < advice.lr) == (advice.verdict == "warmup")
    assert advice.lr == (advice.replacement.lr if replaced else advice.evidence.critical.target)
    assert (advice.steps, advice.seconds > 0) == (steps, True)
    if advice.verdict == "unknown":
        assert advice.confidence == "low"
    _check_rehearsal(advice)
    for sentence in (advice.summary(), *advice.reasons, *advice.doubts):
        assert re.fullmatch(r"[A-Z].*\.", sentence), sentence
        assert not re.search(r"\b(nan|inf|None|1 steps)\b|  ", sentence), sentence
    assert advice.reasons
    values = json.loads(json.dumps(advice.as_dict(), allow_nan=False))
    assert values["verdict"] == advice.verdict
    assert values["summary"] == advice.summary()
    assert values["evidence"]["critical"]["target"] == advice.evidence.critical.target


def _check_rehearsal(advice):
    rehearsal = advice.evidence.rehearsal
    if rehearsal is None:
        assert advice.confidence == "low"
        return
    assert rehearsal.candidates[0].warmup == 0
    assert rehearsal.candidates[0].optimizer == advice.optimizer
    before = rehearsal.initial_loss
    chosen = advice.warmup_if_kept or advice.warmup_steps
    if advice.verdict in ("warmup", "no warmup") or advice.warmup_if_kept:
        own = rehearsal.find(warmup=chosen)
        best = min(one.loss for one in rehearsal.candidates)
        assert own.loss <= best + 0.02 * (before - best) < before
        if advice.verdict == "warmup":
            assert math.isclose(advice.start_lr, own.start * advice.lr)
    if advice.verdict == "replace":
        assert any(one.optimizer == advice.replacement.optimizer for one in rehearsal.candidates)
    if advice.verdict == "unknown":
        assert not min(one.loss for one in rehearsal.candidates) < before
