"""What a translation keeps and what it does not, in words."""

from __future__ import annotations

import math

from warmfree.advice.pace import Settings

__all__ = ["what_differs", "what_is_kept"]

# Beyond this two numbers are told apart in a note.
_ALIKE = 0.01


def what_is_kept(old: Settings, new: Settings, *, present: bool) -> tuple[str, ...]:
    """Name the quantities that are the same, with their values.

    Args:
        old: the source.
        new: what it was translated into.
        present: the angle is that of the source's steps at the norms that its weights have.
    """
    kept, rotates = [], _rotates(new)
    if _alike(old.update_rms, new.update_rms):
        where = " (biases, gains and what else is not rotated)" if rotates else ""
        kept.append(f"size of a settled step, RMS {new.update_rms:.3g}{where}")
    if new.angle is not None and present:
        kept.append(f"rotation a step at the present norms, {new.angle:.3g} rad")
    elif new.angle is not None and _alike(old.angle, new.angle):
        kept.append(f"rotation a step when settled, {new.angle:.3g} rad")
    if len(kept) == 2 and not rotates:
        kept.append("norm at which weights settle")
    return tuple(kept)


def what_differs(old: Settings, new: Settings) -> tuple[str, ...]:
    """Say what is not the same, most important first."""
    return tuple(note for note in (*_early(old, new), *_later(old, new), *_of_the_source(old, new)) if note)


def _early(old: Settings, new: Settings) -> list[str]:
    """What the new optimizer does in its first steps."""
    if new.name == "AdamW2":
        return [
            "early steps of matrices are shortened until no singular value grows by more than tau; `factor` in the "
            "step report says by how much. Under this bound a larger lr than AdamW's may be best"
        ]
    if new.name == "GIAdamW":
        steps = math.ceil(math.log(1 - 0.9**2) / math.log(new.beta2)) if new.beta2 > 0 else 1
        return [
            f"it warms up by itself: its first step is {math.sqrt(1 - new.beta2):.2g} of AdamW's, and 90 % of lr is "
            f"reached after {steps} steps"
        ]
    if new.name == "RotationalAdamW":
        return [_NORMS, _EMBEDDINGS]
    notes = [
        f"steps have this size from the first one on, however much gradients agree; Adam's are {1 / old.pace.rms:.1f} "
        f"times as large at first, and for as long as gradients agree"
        if not old.signs
        else ""
    ]
    if new.name == "LionAR":
        notes[:0] = [_NORMS, _EMBEDDINGS]
        if new.momentum:
            steps = math.ceil(math.log(0.1) / math.log(new.momentum))
            notes.append(f"the inverse bias correction holds the angle back: 90 % of it after {steps} steps")
    return notes


_NORMS = (
    "matrices keep the norm that they have, not the one at which the source's would settle; vectors and whatever else "
    "is not rotated have a norm to settle at, for which `translated` gives them a weight decay of their own"
)
_EMBEDDINGS = (
    "embeddings that are tied to the head should not be rotated, or logits stay small: hand `translated` the model, or "
    "put them into a group of role 'vector'"
)


def _later(old: Settings, new: Settings) -> list[str]:
    """What is not the same of settled training."""
    notes = []
    if not _alike(old.update_rms, new.update_rms):
        where = ", of what is not rotated," if _rotates(new) else ""
        notes.append(f"settled steps{where} are {new.update_rms / old.update_rms:.3g} times {old.name}'s")
    if new.angle is None:
        notes.append("without weight decay nothing settles: weights grow, and turn by less and less")
    else:
        if old.angle is not None and not _alike(old.angle, new.angle):
            notes.append(f"rotation a step: {new.angle:.3g} rad; {old.name} settles at {old.angle:.3g}")
        if old.angle is not None:
            steps = 1 / (2 * old.lr * old.weight_decay)
            notes.append(
                f"{old.name} settles in about 1/(2 lr weight_decay) = {steps:.2g} steps; in a shorter run it turns "
                f"weights as their present norms allow{' (angle=' + repr('present') + ')' if _rotates(new) else ''}"
            )
    if not _rotates(new) and not _alike(old.walk_rms, new.walk_rms):
        what = "noise carries" if old.signs or new.signs else "noise, and what gradients agree on, carry"
        notes.append(
            f"over many steps {what} weights {new.walk_rms / old.walk_rms:.3g} times as far as {old.name}'s"
        )
    return notes


def _of_the_source(old: Settings, new: Settings) -> list[str]:
    """What the source has, or lacks, that has no counterpart."""
    notes = []
    if old.name == "NAdam":
        notes.append(
            "NAdam's momentum rises over thousands of steps (momentum_decay); before, its steps are larger, at first "
            "more than twice as large"
        )
    if not old.decoupled:
        notes.append(f"the L2 decay of {old.name} has no counterpart")
    if old.signs and not new.signs:
        notes.append(f"{old.name} has no beta2: it is {new.beta2:g}, torch's default")
    if old.beta2 < 0.9:
        notes.append(
            f"beta2 = {old.beta2:g} is too small for these sizes to hold; they do from about 0.95 on"
        )
    return notes


def _rotates(settings: Settings) -> bool:
    return settings.name in ("LionAR", "RotationalAdamW")


def _alike(left: float | None, right: float | None) -> bool:
    return left is not None and right is not None and math.isclose(left, right, rel_tol=_ALIKE)
