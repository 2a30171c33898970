"""Sentences for people: true, short, in good order, and without numbers that are none."""

import math
import re

import pytest
from verdict_cases import critical, evidence, first_step, noise, rehearsed, search

from warmfree.advice import Advice, Rehearsal, Replacement
from warmfree.advice.verdict import choose, measure_excess
from warmfree.advice.wording import doubts_of, reasons_of, summary_of
from warmfree.measure.curvature import Sharpness


def rehearsal_of(losses, *, other=None, length=100, repeated=1.0, initial_loss=2.0):
    own = [rehearsed(loss, warmup) for warmup, loss in losses.items()]
    others = [] if other is None else [rehearsed(other, optimizer="AdamW2")]
    return Rehearsal(
        length=length,
        candidates=(*own, *others),
        repeated=repeated,
        forward_passes=3,
        seconds=0.1,
        initial_loss=initial_loss,
    ), choose(own, others[0] if others else None, before=2.0, steps=1000)


def advice(verdict, **changed):
    given = {
        "verdict": verdict,
        "warmup_steps": 0,
        "start_lr": 1e-3,
        "lr": 1e-3,
        "steps": 1000,
        "batch_size": 16,
        "optimizer": "AdamW",
        "replacement": None,
        "warmup_if_kept": None,
        "confidence": "high",
        "reasons": (),
        "doubts": (),
        "evidence": evidence(),
        "seconds": 1.0,
    }
    return Advice(**(given | changed))


ADAMW2 = Replacement(optimizer="AdamW2", lr=1e-3, options={}, reason="")
SUMMARIES = {
    "AdamW needs no warmup at learning rate 0.001.": advice("no warmup"),
    "AdamW needs no warmup at learning rate 0.00125.": advice("no warmup", lr=0.00125),
    "AdamW needs 20 steps of linear warmup from 0.00033 to learning rate 0.001: 2 % of the run.": advice(
        "warmup", warmup_steps=20, start_lr=1e-3 / 3
    ),
    "AdamW needs 2 steps of linear warmup to learning rate 0.001: 0.2 % of the run.": advice(
        "warmup", warmup_steps=2, start_lr=0.0
    ),
    "Take AdamW2 at learning rate 0.001, without warmup; AdamW would need 90 steps of warmup.": advice(
        "replace", replacement=ADAMW2, warmup_if_kept=90
    ),
    "Take AdamW2 at learning rate 0.001, without warmup; no warmup that was tried makes AdamW as good.": advice(
        "replace", replacement=ADAMW2
    ),
    "Whether AdamW needs warmup at learning rate 0.001 is not known: nothing could be measured that tells.": advice(
        "unknown"
    ),
    "Whether AdamW needs warmup at learning rate 0.001 is not known: the loss did not fall, whatever the "
    "warmup.": advice("unknown", evidence=evidence(rehearsal=rehearsal_of({0: 3.0, 20: 3.0})[0])),
}


@pytest.mark.parametrize("expected", SUMMARIES)
def test_summaries(expected):
    assert summary_of(SUMMARIES[expected]) == expected


def reasons(found=None, *, lr=1e-3, choice=None, derived=0, **parts):
    measured = evidence(found, **parts)
    return reasons_of(measured, measure_excess(measured), choice, derived=derived, lr=lr)


def doubts(found=None, *, choice=None, warmup=0, steps=1000, **parts):
    return doubts_of(evidence(found, **parts), choice, warmup=warmup, steps=steps)


UPHILL = search(None, tried=(1e-3, 2e-6), outcome="uphill")
AROUND = (search(5e-4), search(2e-3))
CRITICAL = {
    "The critical learning rate is 0.002: the first step at 0.001 could be 2 times as large before it raised the loss "
    "of its own batch.": critical(2e-3),
    "The critical learning rate is 1: the first step at 0.001 could be 1000 times as large before it raised the loss "
    "of its own batch.": critical(1.0),
    "The critical learning rate is 0.001, just above the target of 0.001.": critical(1.04e-3),
    "The critical learning rate is 0.00025: the first step at 0.001 raises the loss of its own "
    "batch.": critical(2.5e-4),
    "The first step lowers the loss of its own batch at every learning rate that was tried, up to 0.1.": critical(
        None, searches=(search(None, tried=(1e-3, 0.1)),)
    ),
    "The first step raises the loss of its own batch at every learning rate that was tried, down to 2e-06.": critical(
        None, outcome="uphill", searches=(UPHILL,)
    ),
    "The first step raises the loss of its own batch at every learning rate that was tried, down to 2e-06: it leads "
    "uphill.": critical(
        None, outcome="uphill", searches=(search(None, tried=(2e-6,), slope=0.5, outcome="uphill"),)
    ),
}


@pytest.mark.parametrize("expected", CRITICAL)
def test_the_critical_learning_rate_in_words(expected):
    assert reasons(CRITICAL[expected]) == (expected,)


def test_the_rehearsal_comes_first():
    rehearsal, choice = rehearsal_of({0: math.inf, 100: 1.0, 2: 1.23456}, other=1.5)
    assert reasons(rehearsal=rehearsal, choice=choice)[0] == (
        "Mean loss over the last 25 of 100 steps rehearsed: not finite without warmup, 1.235 with 2 steps of it, 1 "
        "with 100 steps of it, 1.5 with AdamW2 without warmup; 2 before training."
    )
    rehearsal, choice = rehearsal_of({0: 1.0}, length=2, initial_loss=math.nan)
    assert reasons(rehearsal=rehearsal, choice=choice)[0] == (
        "Mean loss over the last of 2 steps rehearsed: 1 without warmup."
    )


def test_the_first_step_in_words():
    assert reasons(first=first_step(1.37))[1:] == (
        "The first step at 0.001 changes the outputs of layer blocks.0.mlp by 137 %, above the limit of 20 %.",
        "Its updates are 4.4 times as large as those to come, in which momentum averages noise away.",
    )
    assert reasons(first=first_step(0.05, predicted_rms=None))[1:] == (
        "The first step at 0.001 changes the outputs of layer blocks.0.mlp by 5 %, within the limit of 20 %.",
    )
    assert reasons(first=first_step(math.nan, predicted_rms=1.0, layer=""))[1:] == ()


def test_what_follows_is_said_where_nothing_was_rehearsed():
    first = first_step(0.6, predicted_rms=None)
    assert (
        reasons(first=first, derived=20)[-1]
        == "From this follow 20 steps of warmup from learning rate 0.00033."
    )
    rehearsal, choice = rehearsal_of({0: 1.0})
    assert not any(
        "follow" in one for one in reasons(first=first, derived=20, rehearsal=rehearsal, choice=choice)
    )


def sharpness(value, early=2000.0):
    return Sharpness(
        value=value,
        residual=0.0,
        error=0.0,
        products=3,
        converged=True,
        method="exact",
        vector=None,
        threshold=38000.0,
        early_threshold=early,
    )


def test_sharpness_in_words():
    fresh, later = first_step(), first_step(update_rms=0.3)
    says = "Preconditioned sharpness is {} times the threshold of a single step at 0.001{}"
    doubt = ", which says little before Adam's first step."
    assert reasons(first=fresh, sharpness=sharpness(6e4))[-1] == says.format("30", doubt)
    assert reasons(first=later, sharpness=sharpness(6e4))[-1] == says.format("30", ".")
    assert reasons(first=None, sharpness=sharpness(6e4))[-1] == says.format("30", ".")
    assert reasons(first=fresh, sharpness=sharpness(60.0))[-1] == says.format("0.03", ".")
    for unknown in (sharpness(math.nan), sharpness(1.0, early=None)):
        assert len(reasons(sharpness=unknown)) == 1


def test_noise_in_words():
    assert reasons(noise=noise(29.4))[-1] == (
        "The batch of 16 is below the critical batch size of about 29: gradients are mostly noise."
    )
    assert reasons(noise=noise(0.52))[-1] == (
        "The batch of 16 is above the critical batch size of about 0.52: gradients are mostly signal, and steps add up."
    )
    assert len(reasons(noise=noise(math.inf))) == 1


def test_doubts():
    rehearsal, choice = rehearsal_of({0: 1.0, 20: 1.1})
    assert doubts(rehearsal=rehearsal, choice=choice) == ()
    assert doubts() == (
        "No steps were rehearsed: that the first step is safe, or not, is all that is known.",
    )
    missing = doubts(
        rehearsal=rehearsal, choice=choice, missing=["sharpness was not measured: Muon has none"]
    )
    assert missing == ("Sharpness was not measured: Muon has none.",)
    assert doubts(rehearsal=rehearsal, choice=choice, steps=10_000) == (
        "Only 100 of 10000 steps were rehearsed: harm that shows later was not seen.",
    )
    assert doubts(rehearsal=rehearsal, choice=choice) == ()
    assert doubts(critical(1e-3, searches=AROUND), rehearsal=rehearsal, choice=choice) == (
        "The critical learning rate is above the target on some batches, and below it on others.",
    )


def test_doubts_about_a_rehearsal():
    rehearsal, choice = rehearsal_of({0: 1.5, 300: 1.0})
    assert doubts(rehearsal=rehearsal, choice=choice, warmup=300) == (
        "The warmup is longer than the 100 steps rehearsed: how training goes on at the full learning rate was not "
        "seen.",
    )
    rehearsal, choice = rehearsal_of({0: 1.015, 20: 1.0}, repeated=100.0)
    assert doubts(rehearsal=rehearsal, choice=choice) == (
        "The candidates are close: a smaller or larger margin would have decided otherwise.",
        "There were batches for 1 step, of 100 rehearsed: seen again and again, they are learned by heart.",
    )
    rehearsal, choice = rehearsal_of({0: 3.0, 20: 2.5})
    assert doubts(rehearsal=rehearsal, choice=choice) == (
        "The learning rate may be too high for any warmup, or the batches too few to learn from.",
    )


def check_sentence(sentence):
    """Assert that something reads as one."""
    assert re.fullmatch(r"[A-Z].*[a-z0-9%)]\.", sentence), sentence
    assert "  " not in sentence, sentence
    assert not re.search(r"\b(nan|inf|None|1 steps)\b", sentence), sentence


def test_all_of_them_are_sentences():
    rehearsal, choice = rehearsal_of({0: math.inf, 100: 1.0, 2: 1.2}, other=1.5, repeated=1.5)
    every = [
        *SUMMARIES,
        *CRITICAL,
        *reasons(
            first=first_step(), sharpness=sharpness(6e4), noise=noise(2e7), rehearsal=rehearsal, choice=choice
        ),
        *doubts(
            critical(1e-3, searches=AROUND),
            rehearsal=rehearsal,
            choice=choice,
            steps=10**6,
            warmup=300,
            missing=["noise was not measured: there is one batch. "],
        ),
    ]
    for sentence in every:
        check_sentence(sentence)
