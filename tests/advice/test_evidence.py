"""All evidence together: what is there, what is missing and why, and that nothing has changed."""

import json
import math

import pytest
import torch
from evidence_cases import Picture, batch, loss_fn, mlp, train
from torch import nn

from warmfree.advice.evidence import Evidence, gather_evidence, plain_values
from warmfree.advice.first_step import measure_first_step
from warmfree.advice.gradient_noise import measure_noise
from warmfree.advice.step_sharpness import measure_sharpness
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.optim import LionA
from warmfree.schedule.critical import CriticalLR, Search, Trial

LR = 0.01
SEARCH = Search(
    outcome="none",
    lr=None,
    low=0.5,
    high=None,
    initial_loss=1.0,
    slope=-2.0,
    trials=(Trial(lr=0.5, loss=0.9), Trial(lr=2.0, loss=math.inf)),
    forward_passes=4,
)
CRITICAL = CriticalLR(
    outcome="none",
    lr=None,
    low=0.5,
    high=None,
    searches=(SEARCH,),
    target=LR,
    forward_passes=4,
    backward_passes=1,
    seconds=0.1,
)


def gather(model, optimizer, batches, *, loss=loss_fn, **options):
    options = {"critical": CRITICAL, "lr": LR, "batch_size": 8, **options}
    return gather_evidence(model, loss, batches, optimizer, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_all_measurements_and_leaves_everything_as_it_was(accumulate):
    model = mlp(middle=[nn.BatchNorm1d(10), nn.Dropout(0.2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    train(model, optimizer)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    batches = [batch(8, seed=seed) for seed in range(4)]
    said = []
    picture = Picture(model, optimizer)
    evidence = gather(
        model, optimizer, batches, accumulate=accumulate, max_grad_norm=0.1, on_progress=said.append
    )
    picture.check()
    assert said == ["measuring the first step", "measuring gradient noise", "measuring sharpness"]
    assert evidence.missing == ()
    assert evidence.rehearsal is None
    assert evidence.critical is CRITICAL
    step = batches[:accumulate]
    assert evidence.first_step == measure_first_step(
        model, loss_fn, step, optimizer, lr=LR, max_grad_norm=0.1
    )
    assert evidence.noise == measure_noise(
        model, loss_fn, batches, optimizer, batch_size=8, accumulate=accumulate
    )
    assert evidence.sharpness == measure_sharpness(model, loss_fn, step, optimizer, lr=LR, max_grad_norm=0.1)


def test_a_transformer_at_its_start():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=31, context=12, layers=2, width=32, heads=2))
    generator = torch.Generator().manual_seed(1)
    batches = list(torch.randint(31, (4, 8, 13), generator=generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    picture = Picture(model, optimizer)
    evidence = gather(
        model, optimizer, batches, loss=lambda model, text: model.loss(text[:, :-1], text[:, 1:])
    )
    picture.check()
    assert evidence.missing == ()
    assert evidence.first_step.update_rms == pytest.approx(1.0, rel=0.02)  # Adam's first step
    assert evidence.first_step.update_rms / evidence.first_step.predicted_rms == pytest.approx(4.36, rel=0.02)
    assert evidence.first_step.angle > 5 * evidence.first_step.predicted_angle
    assert evidence.first_step.representation_change > 0.1
    assert evidence.sharpness.value > 0
    assert evidence.noise.critical_batch_size > 0


def test_the_scale_of_a_scaler_does_not_matter():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    batches = [batch(8, seed=seed) for seed in range(2)]
    plain = gather(model, optimizer, batches, max_grad_norm=0.1).as_dict()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    picture = Picture(model, optimizer)
    scaled = gather(model, optimizer, batches, max_grad_norm=0.1, scaler=scaler).as_dict()
    picture.check()
    assert scaler.get_scale() == 1024
    for part in ("first_step", "noise", "sharpness"):
        for name, value in plain[part].items():
            if name not in ("residual", "error"):
                same = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
                assert scaled[part][name] == same, (part, name)


def test_what_is_missing_is_said_in_a_sentence():
    model = mlp()
    optimizer = LionA(model.parameters(), lr=LR)
    picture = Picture(model, optimizer)
    evidence = gather(model, optimizer, [batch(1)])
    picture.check()
    assert (evidence.sharpness, evidence.noise) == (None, None)
    assert evidence.first_step is not None
    noise, sharpness = evidence.missing
    assert noise.startswith("gradient noise was not measured: one batch is not enough")
    assert sharpness.startswith("sharpness was not measured: no stability threshold for LionA")


def test_memory_that_runs_out_is_said_too():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def large(model, pair):
        raise torch.OutOfMemoryError

    picture = Picture(model, optimizer)
    evidence = gather(model, optimizer, [batch(8)], loss=large)
    picture.check()
    assert (evidence.sharpness, evidence.first_step, evidence.noise) == (None, None, None)
    assert len(evidence.missing) == 3
    assert all("out of memory" in sentence for sentence in evidence.missing)


def test_mistakes_are_not_hidden():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def wrong(model, pair):
        raise KeyError("labels")

    picture = Picture(model, optimizer)
    with pytest.raises(KeyError, match="labels"):
        gather(model, optimizer, [batch(8)], loss=wrong)
    picture.check()
    with pytest.raises(ValueError, match="accumulate=2"):
        gather(model, optimizer, [batch(8)], accumulate=2)
    with pytest.raises(ValueError, match="lr must be finite and > 0"):
        gather(model, optimizer, [batch(8)], lr=0.0)


def test_as_dict_is_plain_json():
    model = mlp()
    evidence = gather(model, torch.optim.AdamW(model.parameters(), lr=LR), [batch(8), batch(8, seed=2)])
    values = evidence.as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["critical"]["searches"][0]["trials"][1] == {"lr": 2.0, "loss": None}
    assert values["critical"]["ratio"] is None  # nan
    assert values["sharpness"]["ratio"] == evidence.sharpness.ratio
    assert "vector" not in values["sharpness"]
    assert values["first_step"]["update_rms"] == evidence.first_step.update_rms
    assert values["rehearsal"] is None
    assert values["missing"] == []
    bare = Evidence(
        critical=CRITICAL, sharpness=None, first_step=None, noise=None, rehearsal=None, missing=("nothing",)
    )
    assert bare.as_dict()["sharpness"] is None
    assert bare.as_dict()["missing"] == ["nothing"]


def test_what_json_does_not_have_is_refused():
    assert plain_values({1: (math.nan, -math.inf, 2.5, True, None, "x")}) == {
        "1": [None, None, 2.5, True, None, "x"]
    }
    with pytest.raises(TypeError, match="JSON has no Tensor"):
        plain_values([torch.ones(1)])
