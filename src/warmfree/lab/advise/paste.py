"""The lines that put advice into a training script."""

import inspect
from typing import Any

import warmfree
from warmfree.advice import Advice, Replacement
from warmfree.report.wording import short

__all__ = ["code_for", "optimizer_line"]

_EMBEDDINGS_APART = ("LionAR", "RotationalAdamW")


Code = tuple[str, list[str]]


def code_for(advice: Advice) -> list[Code]:
    r"""Return headings, each with lines of Python that follow the advice, given `model` and `optimizer`.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> made = Space(verdict="warmup", steps=900, warmup_steps=90, start_lr=1e-4, lr=1e-3, replacement=None)
        >>> for heading, lines in code_for(made):
        ...     print(heading, *lines, sep="\n")
        To follow it
        import warmfree
        scheduler = warmfree.schedule.trapezoid(optimizer, steps=900, warmup=90, start=0.1)
        # after every optimizer.step(): scheduler.step()
    """
    parts: list[Code] = []
    plain = _scheduler_line(advice.steps, 0, 0.0)
    if advice.verdict == "warmup":
        start = advice.start_lr / advice.lr if advice.lr > 0 else 0.0
        parts.append(("To follow it", [_scheduler_line(advice.steps, advice.warmup_steps, start)]))
    elif advice.verdict == "no warmup":
        parts.append(("To follow it", [plain]))
    if advice.replacement is not None:
        heading = "To follow it" if advice.verdict == "replace" else "Or, as good without warmup"
        parts.append((heading, [optimizer_line(advice.replacement), plain]))
    if advice.verdict == "replace" and advice.warmup_if_kept:
        line = _scheduler_line(advice.steps, advice.warmup_if_kept, 0.0)
        parts.append((f"Or, to keep {advice.optimizer}", [line]))
    if parts:
        parts[0][1].insert(0, "import warmfree")
        parts[0][1].append("# after every optimizer.step(): scheduler.step()")
    return parts


def optimizer_line(replacement: Replacement) -> str:
    """Return the line that makes an optimizer.

    Example:
        >>> optimizer_line(Replacement(optimizer="AdamW2", lr=0.016, options={"betas": (0.9, 0.95)}, reason=""))
        'optimizer = warmfree.AdamW2(warmfree.parameter_groups(model), lr=0.016, betas=(0.9, 0.95))'
    """
    defaults = inspect.signature(getattr(warmfree, replacement.optimizer)).parameters
    options = {
        name: value
        for name, value in replacement.options.items()
        if name == "weight_decay" or value != defaults[name].default
    }
    groups = ["model"]
    if "weight_decay" in options:  # the groups' own would win over the optimizer's
        groups.append(f"weight_decay={_literal(options.pop('weight_decay'))}")
    if replacement.optimizer in _EMBEDDINGS_APART:
        groups.append("embedding_decay=0.0")
    given = "".join(f", {name}={_literal(value)}" for name, value in options.items())
    return (
        f"optimizer = warmfree.{replacement.optimizer}(warmfree.parameter_groups({', '.join(groups)}), "
        f"lr={short(replacement.lr)}{given})"
    )


def _literal(value: Any) -> str:
    return short(value) if isinstance(value, float) and value > 0 else repr(value)


def _scheduler_line(steps: int, warmup: int, start: float) -> str:
    arguments = [f"steps={steps}"]
    if warmup:
        arguments.append(f"warmup={warmup}")
        if start > 0:
            arguments.append(f"start={min(float(f'{start:.2g}'), 1.0):g}")
        if steps - warmup < steps / 2:  # the default cooldown, half of the run, would not fit
            arguments.append(f"cooldown={max(steps - warmup, 0)}")
    return f"scheduler = warmfree.schedule.trapezoid(optimizer, {', '.join(arguments)})"
