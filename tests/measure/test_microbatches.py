import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from processes import spawn
from warmfree.measure.microbatches import watch_microbatches
from warmfree.measure.noise import NoiseAverages

FEATURES, WIDTH, CLASSES = 6, 10, 3


class Model(nn.Module):
    """Embedding, two layers with tied weights in the middle, and a parameter that is never used."""

    def __init__(self):
        super().__init__()
        self.up, self.middle, self.head = (
            nn.Linear(FEATURES, WIDTH),
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, CLASSES),
        )
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        x = torch.tanh(self.up(x))
        return self.head(torch.tanh(self.middle(torch.tanh(self.middle(x)))))


def make(dtype=torch.float64):
    torch.manual_seed(0)
    return Model().to(dtype)


def batch(count, *, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def per_sample(model, inputs, targets):
    """Gradients of single samples by torch.func, (samples, elements) by name."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
    return {name: gradient.flatten(1) for name, gradient in found.items() if name != "unused"}


def expected(gradients, size):
    """The two-batch-size formula, written with the means of micro-batches."""
    micro = gradients.unflatten(0, (-1, size)).mean(1)
    big, small, n = micro.mean(0).square().sum(), micro.square().sum(1).mean(), len(micro)
    signal = (n * size * big - size * small) / (n * size - size)
    noise = (small - big) / (1 / size - 1 / (n * size))
    return float(signal), float(noise)


def accumulate(model, inputs, targets, size, *, divide=True, scale=1.0):
    chunks = list(zip(inputs.split(size), targets.split(size), strict=True))
    for x, y in chunks:
        loss = F.cross_entropy(model(x), y)
        (scale * loss / (len(chunks) if divide else 1)).backward()


def assert_close(found, wanted, rel=1e-9):
    assert set(found) == set(wanted)
    for name, pair in wanted.items():
        assert found[name] == pytest.approx(pair, rel=rel), name


@pytest.mark.parametrize("size", [1, 3, 8])
def test_it_is_the_two_batch_sizes_formula_on_real_accumulation(size):
    model, (inputs, targets) = make(), batch(24)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, size)
        assert seen.passes == 24 // size
        found = seen.estimate(samples=size)
    assert_close(found, {n: expected(g, size) for n, g in per_sample(model, inputs, targets).items()})


def test_single_samples_give_the_covariance_and_the_mean_without_bias():
    model, (inputs, targets) = make(), batch(30)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 1)
    for name, gradients in per_sample(model, inputs, targets).items():
        trace = float(gradients.var(0).sum())
        signal, noise = seen.estimate(samples=1)[name]
        assert noise == pytest.approx(trace, rel=1e-9)
        assert signal == pytest.approx(float(gradients.mean(0).square().sum()) - trace / 30, rel=1e-9)


def test_it_is_unbiased_for_the_distribution_the_samples_are_drawn_from():
    """Micro-batches drawn with replacement from 40 samples: exact |G|^2 and tr Sigma of that set, 4 standard errors."""
    model, (inputs, targets) = make(), batch(40)
    gradients = torch.cat(list(per_sample(model, inputs, targets).values()), dim=1)
    truth = torch.tensor(
        [gradients.mean(0).square().sum(), gradients.var(0, correction=0).sum()], dtype=torch.float64
    )
    generator, averages, rows = torch.Generator().manual_seed(0), NoiseAverages(smoothing=0.999), []
    for _ in range(300):
        model.zero_grad()
        chosen = torch.randint(40, (8,), generator=generator)
        with watch_microbatches(model.named_parameters()) as seen:
            accumulate(model, inputs[chosen], targets[chosen], 2)
        found = seen.estimate(samples=2)
        together = averages.add(found)[""]
        rows.append([sum(pair[column] for pair in found.values()) for column in (0, 1)])
    rows = torch.tensor(rows, dtype=torch.float64)
    assert ((rows.mean(0) - truth).abs() < 4 * rows.std(0) / math.sqrt(300)).all()
    assert together.snr == pytest.approx(float(truth[0] / truth[1]), rel=0.2)


def test_losses_that_are_not_divided_give_the_same_ratio():
    model, (inputs, targets) = make(), batch(24)
    ratios = []
    for divide in (True, False):
        model.zero_grad()
        with watch_microbatches(model.named_parameters()) as seen:
            accumulate(model, inputs, targets, 4, divide=divide)
        found = seen.estimate(samples=4)
        ratios.append({name: signal / noise for name, (signal, noise) in found.items()})
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-9)


def test_clipping_in_between_does_not_matter():
    model, (inputs, targets) = make(), batch(24)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
    free = seen.estimate(samples=4)
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3) > 1e-2
    assert_close(seen.estimate(samples=4), free, rel=1e-3)  # clipping adds 1e-6 to the norm


def test_gradient_scaler():
    model, (inputs, targets) = make(torch.float32), batch(24, dtype=torch.float32)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
    plain = seen.estimate(samples=4)
    model.zero_grad()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    results = []
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4, scale=scaler.scale(torch.tensor(1.0)))
        results.append(seen.estimate(samples=4, loss_scale=scaler.get_scale))
        scaler.unscale_(optimizer)
        results.append(seen.estimate(samples=4, loss_scale=scaler.get_scale()))
    assert scaler.get_scale() == 2.0**16
    for found in results:
        assert_close(found, plain, rel=1e-4)


def test_hooks_leave_no_trace():
    model, (inputs, targets) = make(), batch(8)
    accumulate(model, inputs, targets, 4)
    before = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    seen = []

    def interrupted():
        with watch_microbatches(model.named_parameters()) as gradients:
            seen.append(gradients)
            accumulate(model, inputs, targets, 4)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    after = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(weight._backward_hooks for weight in model.parameters())
    accumulate(model, inputs, targets, 4)
    assert seen[0].passes == 2


def test_a_compiled_backward_pass_is_seen():
    model, (inputs, targets) = make(), batch(24)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
    plain = seen.estimate(samples=4)
    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    accumulate(compiled, inputs, targets, 4)  # compiled before the hooks are there, and run with them
    model.zero_grad()
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(compiled, inputs, targets, 4)
    assert_close(seen.estimate(samples=4), plain)
    torch.compiler.reset()


def test_layers_that_only_some_micro_batches_reach_have_zero_gradients_in_the_others():
    one, two = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    inputs = torch.randn(4, 4)
    named = [("one", one.weight), ("two", two.weight)]
    with watch_microbatches(named) as seen:
        for index, x in enumerate(inputs):
            (one(x).sum() + (two(x).sum() if index < 2 else 0)).div(4).backward()
    found = seen.estimate(samples=1)
    rows = torch.cat([inputs[:2], torch.zeros(2, 4)])
    assert found["two"] == pytest.approx(expected(rows, 1), rel=1e-4)
    assert found["one"] == pytest.approx(expected(inputs, 1), rel=1e-4)


def test_what_cannot_be_estimated():
    model, (inputs, targets) = make(), batch(8)
    with watch_microbatches(model.named_parameters()) as seen:
        assert seen.estimate(samples=8) == {}
        accumulate(model, inputs, targets, 8)
        assert seen.estimate(samples=8) == {}  # one micro-batch
        accumulate(model, inputs * math.nan, targets, 8)
        assert seen.estimate(samples=8) == {}
    with watch_microbatches(model.named_parameters()) as seen, pytest.raises(RuntimeError, match="FSDP2"):
        seen.estimate(samples=8)


def test_gradients_from_before_or_clipped_by_value_are_refused():
    model, (inputs, targets) = make(), batch(8)
    accumulate(model, *batch(8, seed=5), 4)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
        with pytest.raises(RuntimeError, match="no multiple of the sum"):
            seen.estimate(samples=4)
    model.zero_grad()
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
        torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        with pytest.raises(RuntimeError, match="clip by value"):
            seen.estimate(samples=4)


def test_arguments():
    with watch_microbatches([]) as seen:
        with pytest.raises(ValueError, match="samples must be"):
            seen.estimate(samples=0)
        with pytest.raises(ValueError, match="loss_scale must be"):
            seen.estimate(samples=1, loss_scale=math.inf)
        assert seen.estimate(samples=1) == {}


def ranks(rank):
    """Two ranks with two micro-batches each, then with one each; with and without no_sync, and clipped."""
    model, (inputs, targets) = make(), batch(24)
    model.unused.requires_grad_(False)
    named = list(model.named_parameters())
    parallel = nn.parallel.DistributedDataParallel(model)
    mine = slice(12 * rank, 12 * rank + 12)
    results = {}
    for size, synced in ((12, True), (6, True), (6, False), (2, False)):
        model.zero_grad()
        with watch_microbatches(named) as seen:
            if synced:
                accumulate(parallel, inputs[mine], targets[mine], size)
            else:
                chunks = list(zip(inputs[mine].split(size), targets[mine].split(size), strict=True))
                for index, (x, y) in enumerate(chunks):
                    parallel.require_backward_grad_sync = index == len(chunks) - 1
                    (F.cross_entropy(parallel(x), y) / len(chunks)).backward()
        results[size, synced] = seen.estimate(samples=size, group=dist.group.WORLD)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        results[size, synced, "clipped"] = seen.estimate(samples=size, group=dist.group.WORLD)
    return results


def tensor_parallel():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)).double()
    inputs, targets = batch(24)
    found = []
    for spread in (False, True):
        if spread:
            parallelize_module(
                model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
            )
        model.zero_grad()
        with watch_microbatches(model.named_parameters()) as seen:
            accumulate(model, inputs, targets, 4)
        found.append(seen.estimate(samples=4))
    return found


def fully_sharded():
    from torch.distributed.fsdp import fully_shard

    model, (inputs, targets) = make(), batch(8)
    model.unused.requires_grad_(False)
    fully_shard(model)
    with watch_microbatches(model.named_parameters()) as seen:
        accumulate(model, inputs, targets, 4)
        with pytest.raises(RuntimeError) as refusal:
            seen.estimate(samples=4)
    return str(refusal.value)


def work(rank, folder):
    torch.save([ranks(rank), tensor_parallel(), fully_sharded()], f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.filterwarnings("default")
def test_the_micro_batches_of_all_ranks_count(of_two_processes):
    model, (inputs, targets) = make(), batch(24)
    truth = per_sample(model, inputs, targets)
    first, second = (results[0] for results in of_two_processes)
    assert first == second
    assert len(first) == 8
    for (size, *_), found in first.items():
        assert_close(found, {n: expected(g, size) for n, g in truth.items()}, rel=1e-3)


@pytest.mark.filterwarnings("default")
def test_tensor_parallel_parameters_are_completed_and_fully_sharded_ones_refused(of_two_processes):
    for _, (plain, spread), refusal in of_two_processes:
        assert_close(spread, plain)
        assert "FSDP2" in refusal
