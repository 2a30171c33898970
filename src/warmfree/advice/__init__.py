"""Advice before a run: does it need warmup, how much, or which optimizer instead."""

from warmfree.advice.advise import Advice, advise
from warmfree.advice.evidence import Evidence, FirstStep, Noise
from warmfree.advice.rehearsal import Rehearsal, Rehearsed
from warmfree.advice.replacement import Replacement
from warmfree.advice.translated import translated
from warmfree.advice.translation import Translation, translate_lr

__all__ = [
    "Advice",
    "Evidence",
    "FirstStep",
    "Noise",
    "Rehearsal",
    "Rehearsed",
    "Replacement",
    "Translation",
    "advise",
    "translate_lr",
    "translated",
]
