"""The first step against a real one, made by copies of model and optimizer and measured by hand."""

import copy
import math

import pytest
import torch
from evidence_cases import Picture, batch, loss_fn, mlp, train
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.advice.first_step import measure_first_step
from warmfree.advice.missing import NotMeasuredError
from warmfree.measure.white_noise import adamw_angle
from warmfree.optim import AdamW2, LionAR

LR = 0.03


def grouped(model):
    """Two groups, the second with half the learning rate."""
    parameters = list(model.parameters())
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": LR / 2}]


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9),
    "groups": lambda model: torch.optim.Adam(grouped(model), lr=LR),
    "adamw2": lambda model: AdamW2(model.parameters(), lr=LR, tau=0.01),
}


def by_hand(model, optimizer, batches, *, lr_of, max_grad_norm=None):
    """Make the step on copies; return rms, angle, representation changes and spectral ratios of the linear layers."""
    model, optimizer = copy.deepcopy((model, optimizer))
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
            )
    optimizer.zero_grad()
    for each in batches:
        (loss_fn(model, each) / len(batches)).backward()
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    before = {name: module.weight.detach().clone() for name, module in layers.items()}
    optimizer.step()
    squares, count, angles, changes, ratios = 0.0, 0, [], {}, {}
    for name, module in layers.items():
        old, change = before[name], module.weight.detach() - before[name]
        squares += float((change / lr_of(name)).square().sum())
        count += change.numel()
        cosines = F.cosine_similarity(old, old + change, dim=1).clamp(-1, 1)
        angles.append(float(cosines.acos().square().mean()))
        inputs = torch.cat(seen[name]).detach()
        changes[name] = float((inputs @ change.T).norm() / (inputs @ old.T).norm())
        ratios[f"{name}.weight"] = float(
            torch.linalg.matrix_norm(change, ord=2) / torch.linalg.matrix_norm(old, ord=2)
        )
    return math.sqrt(squares / count), math.sqrt(sum(angles) / len(angles)), changes, ratios


def check(found, expected):
    rms, angle, changes, ratios = expected
    assert found.update_rms == pytest.approx(rms, rel=1e-9)
    assert found.angle == pytest.approx(angle, rel=1e-6)
    assert found.layer == max(changes, key=changes.get)
    assert found.representation_change == pytest.approx(max(changes.values()), rel=1e-9)
    # Its singular values are those of ten power iterations.
    assert found.spectral_ratio == pytest.approx(max(ratios.values()), rel=0.1)
    assert ratios[found.spectral_layer] > 0.9 * max(ratios.values())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_step_that_the_optimizer_makes(name, steps):
    model = mlp()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, steps)
    expected = by_hand(
        model, optimizer, [batch(16)], lr_of=lambda layer: LR / 2 if name == "groups" and layer != "0" else LR
    )
    picture = Picture(model, optimizer)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    picture.check()
    check(found, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_at_its_start_does_not_matter(name):
    model = mlp()
    optimizer = OPTIMIZERS[name](model)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    picture = Picture(model, optimizer)
    assert measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR) == found
    picture.check()


def test_another_target_moves_all_groups():
    model = mlp()
    optimizer = OPTIMIZERS["groups"](model)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=10 * LR)
    for group in optimizer.param_groups:
        group["lr"] *= 10
    expected = by_hand(model, optimizer, [batch(16)], lr_of=lambda layer: 10 * LR if layer == "0" else 5 * LR)
    check(found, expected)


def test_micro_batches_make_one_step_and_gradients_are_clipped():
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model)
    batches = [batch(8, seed=seed) for seed in range(3)]
    expected = by_hand(model, optimizer, batches, lr_of=lambda _: LR, max_grad_norm=0.01)
    picture = Picture(model, optimizer)
    found = measure_first_step(model, loss_fn, batches, optimizer, lr=LR, max_grad_norm=0.01)
    picture.check()
    check(found, expected)
    assert found.update_rms < measure_first_step(model, loss_fn, batches, optimizer, lr=LR).update_rms / 2


def test_batch_statistics_are_those_of_training():
    model = mlp(middle=[nn.BatchNorm1d(10)])
    model[0].weight.data.mul_(30)  # which the statistics of eval mode would not take back
    optimizer = OPTIMIZERS["adamw"](model)
    expected = by_hand(model, optimizer, [batch(16)], lr_of=lambda _: LR)
    picture = Picture(model, optimizer)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    picture.check()
    check(found, expected)


def test_predictions_are_those_of_the_same_optimizer_late():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=2 * LR)
    assert found.predicted_rms == pytest.approx(math.sqrt(0.1 / 1.9), rel=1e-9)
    assert found.predicted_angle == pytest.approx(
        adamw_angle(lr=2 * LR, weight_decay=0.1, beta1=0.9), rel=1e-12
    )
    plain = torch.optim.SGD(model.parameters(), lr=LR)
    found = measure_first_step(model, loss_fn, [batch(16)], plain, lr=LR)
    assert found.predicted_rms is None
    assert found.predicted_angle is None


def test_a_rotation_turns_by_the_angle_that_is_predicted():
    model = mlp()
    optimizer = LionAR(model.parameters(), lr=LR, weight_decay=0.1, inverse_bias_correction=False)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    assert found.angle == pytest.approx(found.predicted_angle, rel=1e-6)


def test_one_decay_that_is_unknown_leaves_no_prediction():
    model = mlp()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    assert found.predicted_angle is None
    assert found.predicted_rms == pytest.approx(math.sqrt(0.1 / 1.9), rel=1e-9)


class Reader(nn.Module):
    """A table of which a batch uses little, and a layer that starts at zero."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(1000, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        nn.init.zeros_(self.down.weight)

    def forward(self, tokens):
        return self.down(torch.tanh(self.up(self.table(tokens))))


def test_what_is_looked_up_and_what_is_zero_do_not_count():
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    found = measure_first_step(
        model,
        lambda model, tokens: F.cross_entropy(model(tokens), tokens % 5),
        [torch.arange(12)],
        optimizer,
        lr=LR,
    )
    # Behind a zero layer nothing has a gradient; Adam moves all of that layer by its learning rate.
    assert found.update_rms == pytest.approx(math.sqrt(5 * 8 / (5 * 8 + 8 * 8)), rel=1e-3)
    assert found.angle == 0
    assert found.representation_change == 0
    assert found.spectral_ratio == 0
    only = nn.Sequential(nn.Embedding(10, 4))
    found = measure_first_step(
        only,
        lambda model, tokens: model(tokens).square().mean(),
        [torch.arange(5)],
        torch.optim.Adam(only.parameters(), lr=LR),
        lr=LR,
    )
    assert found.update_rms == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_what_the_optimizer_does_not_move_is_left_out():
    model = mlp()
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.0}], lr=LR
    )
    found = measure_first_step(model, loss_fn, [batch(16)], optimizer, lr=LR)
    assert found.update_rms == pytest.approx(1, rel=1e-4)
    assert found.spectral_layer == "0.weight"


def test_a_step_without_matrices_and_one_that_is_not_finite_say_so():
    vectors = nn.LayerNorm(6).double()
    optimizer = torch.optim.Adam(vectors.parameters(), lr=LR)
    picture = Picture(vectors, optimizer)
    with pytest.raises(NotMeasuredError, match="no weight with two dimensions"):
        measure_first_step(
            vectors, lambda model, pair: model(pair[0]).square().mean(), [batch(4)], optimizer, lr=LR
        )
    picture.check()
    model = mlp(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    picture = Picture(model, optimizer)
    with pytest.raises(NotMeasuredError, match=r"learning rate 1e\+38 .* not finite"):
        measure_first_step(
            model,
            lambda model, pair: 1e6 * loss_fn(model, pair),
            [batch(16, dtype=torch.float32)],
            optimizer,
            lr=1e38,
        )
    picture.check()
