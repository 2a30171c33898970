"""Synthetic monitor records: made from formulas, never from a training run, with known answers.

Each function returns the lines of one record; `write` puts them into a folder as a monitor would.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from warmfree.record import RecordWriter

NAN, INF = math.nan, math.inf
PARTS = (
    "attention_norm.weight",
    "attention.qkv.weight",
    "attention.out.weight",
    "mlp_norm.weight",
    "mlp.up.weight",
    "mlp.down.weight",
)
TITLES = {
    "update_rms": ("update RMS", "", "log", "Root mean square of a step's change, divided by the learning rate."),
    "grad_norm": ("gradient norm", "", "log", "Norm of the gradient."),
    "angle_ratio": ("angle / equilibrium angle", "", "log", "How far a step turns a layer, against equilibrium."),
    "rrc": ("representation change", "", "log", "Relative change of a layer's output in one step."),
    "attention_entropy": ("attention entropy", "nats", "linear", "Mean entropy of the attention map of a head."),
    "attention_entropy_ratio": ("attention entropy ratio", "", "linear", "Entropy over its largest possible value."),
    "attention_logit": ("largest attention logit", "", "linear", "Largest attention logit."),
    "collapse": ("attention collapse", "", "linear", "0 none, 1 benign, 2 malignant."),
    "sharpness": ("sharpness", "", "log", "Largest eigenvalue of the Hessian."),
    "preconditioned_sharpness": ("preconditioned sharpness", "", "log", "As the optimizer sees it."),
    "stability_threshold": ("stability threshold", "", "log", "Above it steps overshoot."),
    "instability": ("distance to the stability threshold", "", "log", "Sharpness divided by the threshold."),
}  # fmt: skip
PER_PARAMETER = ("update_rms", "grad_norm", "angle_ratio")
PER_HEAD = ("attention_entropy", "attention_entropy_ratio", "attention_logit", "collapse")
GLOBAL = ("sharpness", "preconditioned_sharpness", "stability_threshold", "instability")


def layers(blocks: int) -> list[str]:
    inner = [f"blocks.{block}.{part}" for block in range(blocks) for part in PARTS]
    return ["tokens.weight", "positions.weight", *inner, "norm.weight", "head.weight"]


def modules(blocks: int) -> list[str]:
    names = ["", "tokens", "positions"]
    for block in range(blocks):
        names += [f"blocks.{block}", f"blocks.{block}.attention", f"blocks.{block}.attention.qkv"]
        names += [f"blocks.{block}.mlp.up", f"blocks.{block}.mlp.down"]
    return [*names, "norm", "head"]


def start(blocks: int = 4, first_step: int = 0, **changes: Any) -> dict[str, Any]:
    quantities = {
        name: dict(zip(("title", "unit", "scale", "meaning"), entry, strict=True))
        for name, entry in TITLES.items()
    }
    return {
        "kind": "start", "version": 1, "time": 1795326000.0, "first_step": first_step, "model": "GPT",
        "parameters": 836736, "optimizer": "AdamW", "budget": 0.02, "layers": layers(blocks),
        "modules": modules(blocks), "quantities": quantities, **changes,
    }  # fmt: skip


def step(number: int, loss: float | None, lr: float | None = 2e-3) -> dict[str, Any]:
    return {"kind": "step", "step": number} | {k: v for k, v in (("loss", loss), ("lr", lr)) if v is not None}


def values(number: int, measured: dict[str, Any], probe: str = "updates") -> dict[str, Any]:
    return {"kind": "values", "step": number, "probe": probe, "seconds": 0.004, "values": measured}


def alert(number: int, layer: str, head: int | None, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "alert", "step": number, "state": "raised", "rule": "entropy-collapse",
        "quantity": "attention_entropy", "layer": layer, "head": head, "value": value, "threshold": 0.1,
        "severity": "warning", "message": "the attention of a head looks at one token", **changes,
    }  # fmt: skip


def end(number: int, overhead: float = 0.013) -> dict[str, Any]:
    probes = {"updates": {"runs": 12, "seconds": 0.05}, "curvature": {"runs": 3, "seconds": 0.2}}
    return {"kind": "end", "step": number, "seconds": 20.1, "overhead": overhead, "probes": probes}


def measure(
    number: int, blocks: int, heads: int, noise: np.random.Generator, trouble: float = 0.0
) -> dict[str, Any]:
    """All quantities at one step; `trouble` from 0 to 1 is felt by head 1 of block `blocks - 1`."""
    names, found = layers(blocks), {}
    decay = 1 + 4 / (1 + number / 8)
    for scale, name in zip((0.2, 0.05, 1.0), PER_PARAMETER, strict=True):
        sizes = (
            scale * decay * np.exp(0.25 * noise.standard_normal(len(names)) + 0.02 * np.arange(len(names)))
        )
        sizes[-2:] *= 1 + 30 * trouble
        found[name] = dict(zip(names, sizes.tolist(), strict=True))
    found["grad_norm"][""] = float(np.linalg.norm(list(found["grad_norm"].values())))
    found["rrc"] = {
        name: 0.01 * decay * math.exp(0.3 * noise.standard_normal()) for name in modules(blocks)[3:]
    }
    for name in PER_HEAD:
        found[name] = {}
    for block in range(blocks):
        entropy = 2.6 + 0.3 * noise.standard_normal(heads) - 0.1 * block
        if block == blocks - 1:
            entropy[min(1, heads - 1)] *= 1 - trouble
        layer = f"blocks.{block}.attention"
        found["attention_entropy"][layer] = entropy.tolist()
        found["attention_entropy_ratio"][layer] = (entropy / 4.2).tolist()
        found["attention_logit"][layer] = (4 + 40 * trouble * (entropy < 1) + noise.random(heads)).tolist()
        found["collapse"][layer] = [2 if value < 0.3 else 0 for value in entropy]
    return found


def curvature(number: int, noise: np.random.Generator, trouble: float = 0.0) -> dict[str, Any]:
    instability = 0.3 + 0.6 * (1 - math.exp(-number / 60)) + 0.05 * noise.random() + 6 * trouble**2
    found = (19_000 * instability / 30, 19_000 * instability, 19_000.0, instability)
    return {name: {"": value} for name, value in zip(GLOBAL, found, strict=True)}


def healthy(
    steps: int = 300, blocks: int = 4, heads: int = 4, every: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    noise = np.random.default_rng(seed)
    lines = [start(blocks)]
    for number in range(steps):
        loss = 1.5 + 4.1 * math.exp(-number / (steps / 6)) + 0.02 * noise.standard_normal()
        lines.append(step(number, loss, 2e-3 * min(1, (steps - number) / (0.3 * steps))))
        if number % every == 0 or number in (1, 2, 4):
            lines.append(values(number, measure(number, blocks, heads, noise)))
        if number % (3 * every) == 0:
            lines.append(values(number, curvature(number, noise), "curvature"))
    return [*lines, end(steps)]


def crash(
    steps: int = 300, at: int = 160, blocks: int = 4, heads: int = 4, seed: int = 1
) -> list[dict[str, Any]]:
    """The entropy of a head falls from `at - 40` on; the loss rises from `at` on, and is NaN at the end."""
    noise = np.random.default_rng(seed)
    lines = [start(blocks)]
    layer = f"blocks.{blocks - 1}.attention"
    for number in range(steps):
        trouble = min(max((number - at + 40) / 40, 0.0), 1.0)
        loss = 1.5 + 4.1 * math.exp(-number / 50) + 0.02 * noise.standard_normal()
        loss += 0.12 * max(number - at, 0) if number < steps - 20 else NAN
        lines.append(step(number, loss))
        if number % 5 == 0:
            found = measure(number, blocks, heads, noise, trouble)
            if number >= steps - 20:
                found["update_rms"] = dict.fromkeys(found["update_rms"], NAN)
                found["grad_norm"] = dict.fromkeys(found["grad_norm"], INF)
            lines.append(values(number, found))
        if number % 15 == 0:
            lines.append(values(number, curvature(number, noise, trouble), "curvature"))
        if number == at - 20:
            lines.append(alert(number, layer, 1, 0.09))
        if number == at - 10:
            lines.append(alert(number, layer, 1, 0.2, state="cleared"))
        if number == at + 5:
            lines.append(
                alert(number, "", None, 4.2, rule="unstable", quantity="instability", threshold=1.0,
                      severity="critical", message="steps overshoot along the sharpest direction")
            )  # fmt: skip
        if number == at + 8:
            lines.append(
                alert(number, "head.weight", None, 31.0, rule="update", quantity="update_rms", threshold=5.0)
            )
    return [*lines, {"kind": "notice", "step": 12, "message": "probe curvature was made rarer"}, end(steps)]


def resumed_twice() -> list[dict[str, Any]]:
    """Steps 0 to 59; from 40 again to 49 (and killed); from 45 again to 79. Losses tell the attempts apart."""
    lines = []
    for attempt, (first, last) in enumerate(((0, 59), (40, 49), (45, 79))):
        lines.append(start(2, first))
        for number in range(first, last + 1):
            lines.append(step(number, 5.0 - 0.02 * number + 0.001 * attempt))
            if number % 5 == 0:
                lines.append(values(number, {"update_rms": {"head.weight": 1.0 + attempt}}))
        if attempt == 0:
            lines.append(alert(55, "head.weight", None, 9.0, quantity="update_rms", rule="update"))
    return lines


def spiky() -> list[dict[str, Any]]:
    """Two spikes that come back, of one step and of three."""
    high = {100: 3.0, 200: 4.0, 201: 4.0, 202: 3.5}
    lines = [start(1)]
    lines += [step(number, high.get(number, 1.5 + 3 * math.exp(-number / 30))) for number in range(300)]
    return [*lines, end(300)]


def broken_numbers() -> list[dict[str, Any]]:
    """NaN and infinities everywhere, missing losses, kinds and values that no version knows."""
    lines = [start(1), {"kind": "from-a-later-version", "step": 3}, {"no": "kind"}]
    for number in range(40):
        loss = {0: None, 5: INF, 7: NAN}.get(number, 3.0)
        lines.append(step(number, loss, None if number == 3 else 1e-3))
        found = {
            "update_rms": {
                "tokens.weight": NAN,
                "head.weight": [INF, -INF, 0.0, 1.0][number % 4],
                "new.layer": 1e-30,
            },
            "unheard_of": {"tokens.weight": -1.5, "head.weight": None, "odd": "text", "flag": True},
            "grad_norm": {"": NAN},
            "nothing": {},
            "no mapping": 3,
        }
        lines.append(values(number, found))
    lines += [{"kind": "values", "step": 4}, {"kind": "step"}, {"kind": "step", "step": -1, "loss": 2.0}]
    return [*lines, {"kind": "alert", "step": 6}, {"kind": "end"}]


def hostile() -> list[dict[str, Any]]:
    """Names that would run as a script on a page that trusts them."""
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    quantities = {evil: {"title": evil, "unit": evil, "scale": evil, "meaning": evil}}
    return [
        start(1, model=evil, optimizer=evil, quantities=quantities, layers=[evil]),
        step(0, 3.0), step(1, 2.0),
        values(0, {evil: {evil: 1.0, "b": [1.0, 2.0]}}), values(1, {evil: {evil: 2.0}, "instability": {"": 0.5}}),
        alert(1, evil, None, 1.0, quantity=evil, rule=evil, message=evil, severity=evil),
        {"kind": "notice", "step": 1, "message": evil},
        {"kind": "end", "step": 2, "seconds": 1.0, "overhead": 0.01, "probes": {evil: {"runs": 1, "seconds": 1.0}}},
    ]  # fmt: skip


SHAPES = {
    "healthy": healthy,
    "crash": crash,
    "resumed": resumed_twice,
    "spiky": spiky,
    "broken": broken_numbers,
    "hostile": hostile,
    "start only": lambda: [start()],
    "losses only": lambda: [start(), *(step(number, 3.0 - 0.01 * number) for number in range(50))],
    "no loss": lambda: [line for line in healthy(60) if line["kind"] != "step"],
    "one step": lambda: [start(1), step(0, 2.0), values(0, {"update_rms": {"tokens.weight": 0.5}})],
    "no start": lambda: [step(0, 2.0), step(1, 1.5)],
}


def write(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    """Write a record; `tail` is a torn last line."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "monitor.jsonl") as record:
        for line in lines:
            record.write(line)
    with open(folder / "monitor.jsonl", "a") as file:
        file.write(tail)
    return folder
