"""Advice as it is shown: evidence in words, verdict, and code that runs when pasted."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import warmfree
from warmfree.advice import Advice, Evidence, FirstStep, Noise, Replacement
from warmfree.advice.rehearsal import Rehearsal, Rehearsed
from warmfree.lab.advise import command
from warmfree.lab.advise.command import give_advice, show
from warmfree.lab.advise.evidence_table import evidence_rows
from warmfree.lab.advise.paste import code_for, optimizer_line
from warmfree.lab.advise.source import Source
from warmfree.measure.curvature import Sharpness
from warmfree.schedule.critical import CriticalLR, Search, Trial


def critical(**changed: Any) -> CriticalLR:
    search = Search(
        outcome="found",
        lr=2e-3,
        low=1.9e-3,
        high=2.1e-3,
        initial_loss=5.5,
        slope=-900.0,
        trials=(Trial(lr=1e-3, loss=5.0), Trial(lr=4e-3, loss=7.0), Trial(lr=1.6e-2, loss=math.inf)),
        forward_passes=5,
    )
    found: dict[str, Any] = {
        "outcome": "found",
        "lr": 2e-3,
        "low": 1.9e-3,
        "high": 2.1e-3,
        "searches": (search,),
        "target": 1.6e-2,
        "forward_passes": 5,
        "backward_passes": 1,
        "seconds": 0.5,
    }
    return CriticalLR(**(found | changed))


def evidence(**changed: Any) -> Evidence:
    rehearsed = [
        Rehearsed(optimizer="AdamW", warmup=0, start=0.0, loss=math.inf, losses=(5.5, math.inf)),
        Rehearsed(optimizer="AdamW", warmup=60, start=0.125, loss=3.25, losses=(5.5, 3.25)),
    ]
    found: dict[str, Any] = {
        "critical": critical(),
        "sharpness": Sharpness(
            value=9000.0,
            residual=0.0,
            error=1.0,
            products=9,
            converged=True,
            method="double backward",  # type: ignore[arg-type]
            vector=None,
            threshold=2375.0,
            early_threshold=1250.0,
        ),
        "first_step": FirstStep(
            update_rms=0.998,
            predicted_rms=0.229,
            angle=0.2,
            predicted_angle=0.013,
            representation_change=1.04,
            layer="blocks.0.mlp.up",
            spectral_ratio=0.7,
            spectral_layer="blocks.0.mlp.up.weight",
        ),
        "noise": Noise(signal_to_noise=0.5, critical_batch_size=2.0, batch_size=16),
        "rehearsal": Rehearsal(
            length=60, candidates=tuple(rehearsed), repeated=1.0, forward_passes=62, seconds=3.0
        ),
        "missing": ("The moon: not measured, there was none.",),
    }
    return Evidence(**(found | changed))


def advice(**changed: Any) -> Advice:
    given: dict[str, Any] = {
        "verdict": "warmup",
        "warmup_steps": 60,
        "start_lr": 2e-3,
        "lr": 1.6e-2,
        "steps": 600,
        "batch_size": 16,
        "optimizer": "AdamW",
        "replacement": None,
        "warmup_if_kept": None,
        "confidence": "medium",
        "reasons": ("The first step is 8 times too large.",),
        "doubts": ("Only one batch was looked at.",),
        "evidence": evidence(),
        "seconds": 12.0,
    }
    return Advice(**(given | changed))


ADAMW2 = Replacement(
    optimizer="AdamW2",
    lr=1.6e-2,
    options={"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.14330000000001},
    reason="It bounds each step.",
)


def shown(made: Advice, *, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(made, "byte GPT on plays", console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def rows(**changed: Any) -> dict[str, tuple[str, str, str]]:
    return {
        row.quantity: (row.value, row.reference, row.meaning)
        for row in evidence_rows(advice(evidence=evidence(**changed)))
    }


def test_every_quantity_has_a_row_with_what_to_hold_it_against() -> None:
    said = rows()
    assert list(said) == [
        "critical learning rate",
        "preconditioned sharpness",
        "first update's RMS",
        "first rotation",
        "representation change",
        "spectral ratio",
        "critical batch size",
    ]
    value, reference, meaning = said["critical learning rate"]
    assert (value, reference) == ("2e-3", "target 0.016")
    assert "8 times too large" in meaning
    value, reference, meaning = said["preconditioned sharpness"]
    assert (value, reference) == ("9,000", "1,250 for a first step, 2,375 later")
    assert "3.8 times what training bears for long; Adam's starts high and falls" in meaning
    assert said["first update's RMS"][:2] == ("0.998", "0.229 settled")
    assert "4.4 times as large" in said["first update's RMS"][2]
    assert said["first rotation"][:2] == ("11.5 deg", "0.745 deg settled")
    assert "15 times as far" in said["first rotation"][2]
    assert said["representation change"][:2] == ("104 %", "limit 20 %")
    assert "blocks.0.mlp.up" in said["representation change"][2]
    assert said["spectral ratio"][:2] == ("0.7", "0.05 in AdamW2")
    assert said["critical batch size"][:2] == ("2", "batch of 16")
    assert said["critical batch size"][2].startswith("the batch is larger")


def test_rows_without_a_critical_learning_rate_or_a_prediction() -> None:
    none = critical(outcome="none", lr=None, low=0.25, high=None)
    assert rows(critical=none)["critical learning rate"][0] == "> 0.25"
    uphill = critical(outcome="uphill", lr=None, low=None, high=1e-8)
    assert rows(critical=uphill)["critical learning rate"][0] == "< 1e-8"
    below = rows(critical=critical(target=1e-3))["critical learning rate"]
    assert "could be 2 times as large" in below[2]
    bare = rows(sharpness=None, first_step=None, noise=None)
    assert list(bare) == ["critical learning rate"]
    step = evidence().first_step
    assert step is not None
    unknown = rows(
        first_step=dataclasses.replace(
            step, predicted_rms=None, predicted_angle=None, representation_change=math.nan, layer=""
        ),
        noise=Noise(signal_to_noise=0.0, critical_batch_size=math.inf, batch_size=16),
    )
    assert unknown["first update's RMS"][1:] == ("", "what it settles at is not known for this optimizer")
    assert unknown["representation change"][0] == "NaN %"
    assert unknown["critical batch size"][0] == "∞"
    assert "smaller" in unknown["critical batch size"][2]


def test_several_searches_have_a_spread() -> None:
    (search,) = critical().searches
    found = critical(searches=(search, dataclasses.replace(search, lr=3e-3)))
    assert rows(critical=found)["its spread"][:2] == ("1.5 x", "found along 2 of 2 steps")


def test_a_page_of_advice() -> None:
    text = shown(advice())
    assert text.startswith("byte GPT on plays\n")
    order = [
        "loss after the step, by learning rate",
        "What was measured",
        "The first 60 steps, rehearsed",
        "Verdict: warmup (medium confidence)",
        "Because\n- The first step is 8 times too large.",
        "But\n- Only one batch was looked at.",
        "To follow it\n    import warmfree\n",
        "measured in 12 s",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "diverged" in text
    assert "\x1b" not in text


def test_narrow_and_plain_output() -> None:
    for width in (30, 43, 44, 60, 200):
        text = shown(
            advice(reasons=("A long reason that does not fit into a narrow line at all.",)), width=width
        )
        assert ("by learning rate" in text) is (width >= 44)
        body = [line for line in text.splitlines() if not line.startswith("    ")]
        assert max(map(len, body)) <= width
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", errors="replace", write_through=True))
    show(advice(), "byte GPT on plays", console)
    assert raw.getvalue().isascii()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "trapezoid(optimizer, steps=600, warmup=60, start=0.12)"),
        ({"start_lr": 0.0}, "trapezoid(optimizer, steps=600, warmup=60)"),
        ({"warmup_steps": 400}, "trapezoid(optimizer, steps=600, warmup=400, start=0.12, cooldown=200)"),
        ({"verdict": "no warmup", "warmup_steps": 0}, "trapezoid(optimizer, steps=600)"),
        ({"verdict": "replace", "replacement": ADAMW2}, "trapezoid(optimizer, steps=600)"),
    ],
)
def test_code_runs_when_pasted(changed: dict[str, Any], line: str) -> None:
    made = advice(**changed)
    ((heading, lines),) = code_for(made)
    assert heading == "To follow it"
    code = "\n".join(lines)
    assert line in code
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1.6e-2),
    }
    exec(code, names)
    optimizer, scheduler = names["optimizer"], names["scheduler"]
    assert isinstance(optimizer, warmfree.AdamW2) is (made.verdict == "replace")
    lrs = []
    for _ in range(made.steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    peak = made.warmup_steps - 1 if made.verdict == "warmup" else 0
    assert lrs.index(max(lrs)) == peak
    assert max(lrs) == pytest.approx(1.6e-2)
    if made.verdict == "replace":
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.143, 0.0}
        assert optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("name", ["AdamW2", "GIAdamW", "LionA", "LionAR"])
def test_every_replacement_can_be_made(name: str) -> None:
    options = {"momentum": 0.95} if name.startswith("Lion") else {"betas": (0.9, 0.95)}
    made = Replacement(optimizer=name, lr=1e-2, options={**options, "weight_decay": 0.5}, reason="")
    line = optimizer_line(made)
    names = {"model": nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1)), "warmfree": warmfree}
    exec(line, names)
    assert type(names["optimizer"]).__name__ == name
    assert "eps" not in line
    if name == "LionAR":
        assert "momentum" not in line  # its default
        assert "embedding_decay=0.0" in line


def test_an_unknown_verdict_has_no_code_and_a_replacement_is_offered() -> None:
    text = shown(advice(verdict="unknown", warmup_steps=0))
    assert "To follow it" not in text
    text = shown(advice(replacement=ADAMW2))
    assert "Or, as good without warmup\n    optimizer = warmfree.AdamW2(" in text
    text = shown(advice(verdict="replace", replacement=ADAMW2, warmup_steps=0, warmup_if_kept=500))
    assert "To follow it\n    import warmfree\n    optimizer = warmfree.AdamW2(" in text
    assert (
        "Or, to keep AdamW\n    scheduler = warmfree.schedule.trapezoid(optimizer, steps=600, warmup=500, "
        in text
    )


@pytest.fixture
def source() -> Source:
    model = nn.Linear(3, 1)
    return Source(
        title="a line",
        model=model,
        loss_fn=lambda model, x: model(x).square().mean(),
        batches=[torch.randn(8, 3)],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        steps=50,
        batch_size=8,
    )


OPTIONS: dict[str, Any] = {
    "accumulate": 1,
    "max_grad_norm": None,
    "rehearse": True,
    "as_json": False,
    "plot": None,
}


def test_json_alone_goes_to_standard_output(
    source: Source, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def fake(*positional: Any, on_progress: Any, **named: Any) -> Advice:
        seen.update(named, positional=positional)
        on_progress("searching [bold]")
        return advice()

    monkeypatch.setattr(command, "advise", fake)
    give_advice(source, **(OPTIONS | {"as_json": True, "accumulate": 4, "plot": tmp_path / "search.svg"}))
    out, err = capsys.readouterr()
    assert json.loads(out) == advice().as_dict()
    assert "searching [bold]\n" in err
    assert "looking at a line: 4 parameters, SGD at lr 0.1, 50 steps of 8 samples" in err
    assert "search.svg" in err
    assert (tmp_path / "search.svg").read_text().startswith("<?xml")
    assert seen["positional"][0] is source.model
    assert (seen["steps"], seen["batch_size"], seen["accumulate"]) == (50, 32, 4)


def test_out_of_memory_is_one_line(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("2 TiB")

    monkeypatch.setattr(command, "advise", fail)
    with pytest.raises(ValueError, match=r"a line: out of memory; try a smaller --batch-size"):
        give_advice(source, **OPTIONS)
