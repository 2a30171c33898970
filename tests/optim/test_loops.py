"""The training loops that users write: GradScaler, autocast, accumulation, clipping; alone and under FSDP2."""

import pytest
import torch
from problems import OPTIMIZERS, assert_equal, batch, make_model, weights
from sharded import BUILD, backward, groups_of, make_transformer, spread, whole
from torch import nn

from processes import spawn


def loss_of(model, step, rows=slice(None)):
    inputs, targets = batch(step, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(inputs[rows]).float(), targets[rows])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_grad_scaler_skips_infinite_gradients_and_changes_nothing_else(name):
    plain, scaled = make_model(), make_model()
    one, other = OPTIMIZERS[name](plain.parameters()), OPTIMIZERS[name](scaled.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for step in range(6):
        one.zero_grad()
        loss_of(plain, step).backward()
        other.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        if step == 2:
            next(scaled.parameters()).grad.view(-1)[0] = float("inf")
        else:
            one.step()
        scaler.unscale_(other)  # users clip between the two
        scaler.step(other)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert other.skipped_steps == 0  # the scaler did not call it
    assert_equal(weights(plain), weights(scaled))  # scales are powers of two


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_batches_that_are_accumulated_are_the_batch(name):
    plain, split = make_model(torch.float64), make_model(torch.float64)
    one, other = OPTIMIZERS[name](plain.parameters()), OPTIMIZERS[name](split.parameters())
    for step in range(4):
        one.zero_grad()
        loss_of(plain, step).backward()
        one.step()
        other.zero_grad()
        for start in (0, 4, 8, 12):
            (loss_of(split, step, slice(start, start + 4)) / 4).backward()
        other.step()
    for a, b in zip(weights(plain), weights(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_autocast_keeps_weights_and_state_wide(name):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, 0)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        buffers = [
            value for key, value in optimizer.state[parameter].items() if value.shape == parameter.shape
        ]
        assert all(value.dtype == torch.float32 for value in buffers)


def loops(rank, folder):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    results = {}
    for name, build in BUILD.items():
        model = spread(make_transformer(), "fsdp")  # torch cannot clip over two meshes
        optimizer = build(groups_of(model))
        for step in range(4):
            backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results[name] = whole(model)

        narrow = make_transformer()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in narrow.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(narrow, mp_policy=policy)
        optimizer = build(groups_of(narrow))
        losses = []
        for _ in range(12):
            losses.append(backward(narrow, 0))
            optimizer.step()
        assert losses[-1] < losses[0], (name, losses)
        assert all(parameter.dtype == torch.float32 for parameter in narrow.parameters())
        assert optimizer.skipped_steps == 0
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")


@pytest.mark.filterwarnings("default")
def test_clipping_and_mixed_precision_under_fsdp2(tmp_path):
    spawn(loops, 2, str(tmp_path))
    for name, found in torch.load(tmp_path / "results.pt").items():
        model = make_transformer()
        optimizer = BUILD[name](groups_of(model))
        for step in range(4):
            backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        for key, value in whole(model).items():
            assert (found[key] - value).norm() <= 1e-5 * value.norm(), (name, key)
