import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmfree.lab.checkpoint import load_checkpoint
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.train import CHECKPOINT, RECORD, Outcome, Run, train
from warmfree.record import read_records
from warmfree.schedule import shapes


class Noisy(nn.Module):
    """A regression whose dropout makes the run depend on the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.dropout(self.up(x).tanh(), 0.3, self.training))


def make_run(
    *,
    steps: int = 30,
    poison: Callable[[int, Tensor], Tensor] = lambda step, loss: loss,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.AdamW(
        model.parameters(), lr=0.05
    ),
    useless_loss: float = 10.0,
) -> Run:
    torch.manual_seed(1)
    model = Noisy()
    inputs = torch.randn(200, 16, 4)
    made = optimizer(model)

    def loss(step: int) -> Tensor:
        x = inputs[step]
        return poison(step, (model(x) - x.sum(1, keepdim=True)).square().mean())

    return Run(
        model=model,
        optimizer=made,
        schedule=shapes.trapezoid(made, steps=steps, warmup=min(3, steps // 2)),
        loss=loss,
        validate=lambda: (model(inputs[-1]) - inputs[-1].sum(1, keepdim=True)).square().mean().item(),
        steps=steps,
        useless_loss=useless_loss,
        eval_every=7,
        checkpoint_every=4,
    )


def records(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each kind and step."""
    return {
        ("eval" if "val_loss" in row else "step", row["step"]): row for row in read_records(folder / RECORD)
    }


def same_weights(left: Run, right: Run) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True)
    )


def without_time(outcome: Outcome) -> tuple[object, ...]:
    return outcome.status, outcome.final_val_loss, outcome.divergence, outcome.skipped_steps


def test_records_every_step_and_measures_the_first_twenty(tmp_path: Path) -> None:
    seen: list[int] = []
    run = make_run(steps=120)
    outcome = train(run, tmp_path, on_step=lambda step, loss, lr: seen.append(step))
    rows = records(tmp_path)
    assert outcome.status == "finished"
    assert seen == list(range(1, 121))
    assert [step for kind, step in rows if kind == "step"] == list(range(120))
    assert [step for kind, step in rows if kind == "eval"] == [*range(7, 120, 7), 120]
    assert [rows["step", step]["lr"] for step in (0, 1, 2, 119)] == pytest.approx(
        [0.05 / 3, 0.1 / 3, 0.05, 0.05 / 60]
    )
    measured = [step for step in range(120) if "angle" in rows["step", step]]
    assert measured == [*range(20), *range(20, 120, 2), 119]
    assert all("factor" not in row for row in rows.values())
    assert outcome.final_val_loss == rows["eval", 120]["val_loss"]
    assert rows["eval", 120]["val_loss"] < 0.5 * rows["eval", 7]["val_loss"]


def test_measured_updates_are_means_over_the_matrices(tmp_path: Path) -> None:
    run = make_run(
        steps=1, optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
    )
    train(run, tmp_path)
    row = records(tmp_path)["step", 0]
    assert row["update_rms"] == pytest.approx(1.0, rel=1e-3)  # Adam's first step has size lr in every entry
    before = dict(make_run(steps=1).model.named_parameters())
    angles = []
    for name in ("up.weight", "down.weight"):
        old, new = before[name].detach(), dict(run.model.named_parameters())[name].detach()
        cosine = nn.functional.cosine_similarity(old.double(), new.double())
        angles.append(float(cosine.acos().square().mean().sqrt()))
    assert row["angle"] == pytest.approx(sum(angles) / 2, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 4, 13, 29])
def test_a_run_interrupted_anywhere_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    undisturbed = make_run()
    expected = train(undisturbed, whole)

    def interrupt(step: int, loss: float, lr: float) -> None:
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=f"after step {stop} of 30, saved in .*run the same command again"):
        train(make_run(), parts, on_step=interrupt)
    torch.manual_seed(123456)  # a new process has another random state
    resumed = make_run()
    steps: list[int] = []
    outcome = train(resumed, parts, on_step=lambda step, loss, lr: steps.append(step))
    assert steps == list(range(stop + 1, 31))
    assert same_weights(resumed, undisturbed)
    assert without_time(outcome) == without_time(expected)
    assert records(parts) == records(whole)


def test_a_run_killed_between_checkpoints_repeats_the_same_numbers(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    undisturbed = make_run()
    train(undisturbed, whole)

    class KilledError(BaseException):
        pass

    def kill(step: int, loss: float, lr: float) -> None:
        if step == 11:
            raise KilledError

    with pytest.raises(KilledError):
        train(make_run(), parts, on_step=kill)
    with open(parts / RECORD, "ab") as file:
        file.write(b'{"step":11,"lo')
    resumed = make_run()
    steps: list[int] = []
    train(resumed, parts, on_step=lambda step, loss, lr: steps.append(step))
    assert steps[0] == 9  # from the checkpoint after step 8
    assert same_weights(resumed, undisturbed)
    assert records(parts) == records(whole)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(make_run(), tmp_path)
    other = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run .*delete it"):
        load_checkpoint(tmp_path / CHECKPOINT, other, optimizer, shapes.constant(optimizer))
    (tmp_path / CHECKPOINT).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run"):
        train(make_run(), tmp_path)


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def interrupt_twice(step: int, loss: float, lr: float) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_run(), tmp_path, on_step=interrupt_twice)
    assert not (tmp_path / CHECKPOINT).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_non_finite_loss_is_an_outcome_at_its_step(tmp_path: Path) -> None:
    outcome = train(make_run(poison=lambda step, loss: loss * (math.inf if step == 5 else 1.0)), tmp_path)
    assert outcome.status == "diverged"
    assert outcome.final_val_loss is None
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.where) == (5, None)
    assert records(tmp_path)["step", 5]["loss"] == math.inf
    assert ("step", 6) not in records(tmp_path)


def poison_gradient(step: int, loss: Tensor) -> Tensor:
    """At step 5 the loss is finite and its gradient is not."""
    if step == 5:
        loss.register_hook(lambda gradient: gradient * math.nan)
    return loss


def test_a_non_finite_gradient_names_its_first_parameter_and_leaves_the_weights(tmp_path: Path) -> None:
    run = make_run(poison=poison_gradient)
    outcome = train(run, tmp_path)
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.where) == (5, "up.weight")
    assert outcome.divergence.reason == "a gradient is not finite"
    assert all(bool(weight.isfinite().all()) for weight in run.model.parameters())


def test_a_huge_but_finite_gradient_is_not_a_divergence(tmp_path: Path) -> None:
    def enlarge(step: int, loss: Tensor) -> Tensor:
        loss.register_hook(lambda gradient: gradient * 1e30)
        return loss

    # Its squared norm overflows float32; its entries do not.
    assert train(make_run(poison=enlarge, useless_loss=math.inf), tmp_path).divergence is None


def test_a_weight_that_became_non_finite_is_named(tmp_path: Path) -> None:
    run = make_run()

    def break_weight(step: int, loss: float, lr: float) -> None:
        if step == 3:
            run.model.down.weight.data.fill_(math.nan)

    outcome = train(run, tmp_path, on_step=break_weight)
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.where) == (3, "down.weight")


def run_with_validation(folder: Path, losses: list[float], *, useless_loss: float) -> Outcome:
    """A run of 4 steps whose first loss is about 5 and whose validations give the losses."""
    run = make_run(steps=4, useless_loss=useless_loss, poison=lambda step, loss: loss * 0 + 5.0)
    given = iter(losses)
    run.eval_every, run.validate = 1, lambda: next(given)
    return train(run, folder)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([4.0, 3.4, 3.4, 3.35], "the validation loss stays at 3.3500, no better than 3.3000"),
        ([4.0, 2.5, 3.0, 3.6], "the validation loss stays at 3.6000, no better than 3.3000"),
        ([80.0, 40.0, 20.0, 5.0], "the final validation loss 5.0000 is no better than the first loss 5.0000"),
        ([4.0, 3.0, 2.0, math.nan], "the final validation loss is not finite"),
    ],
)
def test_a_bad_end_is_a_divergence(tmp_path: Path, losses: list[float], reason: str) -> None:
    outcome = run_with_validation(tmp_path, losses, useless_loss=3.3)
    assert outcome.status == "diverged"
    assert outcome.divergence is not None
    assert outcome.divergence.step is None
    assert outcome.divergence.reason.startswith(reason)
    assert outcome.final_val_loss == (losses[-1] if math.isfinite(losses[-1]) else None)


@pytest.mark.parametrize(
    "losses", [[4.0, 3.0, 2.0, 3.29], [4.99, 4.98, 4.97, 4.96], [90.0, 3.0, 2.9, 2.9], [90.0, 50.0, 9.0, 4.0]]
)
def test_a_short_run_and_a_spike_that_heals_are_not(tmp_path: Path, losses: list[float]) -> None:
    outcome = run_with_validation(tmp_path, losses, useless_loss=3.3)
    assert (outcome.status, outcome.final_val_loss) == ("finished", losses[-1])


def test_a_run_of_one_step_is_judged_against_its_first_loss(tmp_path: Path) -> None:
    run = make_run(steps=1, poison=lambda step, loss: loss * 0 + 5.0, useless_loss=3.3)
    run.validate = lambda: 4.5
    assert train(run, tmp_path).status == "finished"


class Reporting(torch.optim.AdamW):
    """Follows the contract of an optimizer that reports and skips by itself."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.step_report: SimpleNamespace | None = None
        self.skipped = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            super().step()
        else:
            self.skipped += 1
        values = {"up.weight": {"factor": 0.25}, "down.weight": {"factor": 0.75}, "up.bias": {"angle": 9.0}}
        self.step_report = SimpleNamespace(fetch=lambda: values, skipped_steps=self.skipped)


def test_factors_are_recorded_and_skipped_steps_counted_over_a_resume(tmp_path: Path) -> None:
    def make() -> Run:
        return make_run(
            poison=lambda step, loss: poison_gradient(5, loss) if step in (5, 12) else loss,
            optimizer=lambda model: Reporting(model.parameters(), lr=0.05),
        )

    def interrupt(step: int, loss: float, lr: float) -> None:
        if step == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(make(), tmp_path, on_step=interrupt)
    outcome = train(make(), tmp_path)
    assert outcome.status == "finished"
    assert outcome.skipped_steps == 2
    assert records(tmp_path)["step", 3]["factor"] == 0.5


@pytest.mark.parametrize("name", ["steps", "eval_every", "checkpoint_every"])
def test_bad_settings(name: str) -> None:
    run = make_run()
    settings = {field: getattr(run, field) for field in run.__slots__} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        Run(**settings)
