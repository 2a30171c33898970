"""The compiled kernels do what the eager optimizers do."""

import copy
import ctypes
import random

import pytest
import torch

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW
from warmfree.optim import Adam, SizedOptimizer, kernels

SHAPES = [(1, 9), (9, 1), (7, 13), (16, 32), (6, 3, 5), (5, 2, 3, 3), (130, 70), (300, 257)]


@pytest.fixture(scope="module", autouse=True)
def _built():
    kernels.load()


def gradients(shape, count, *, zeros=True):
    """Gradients with a row and some elements that are 0."""
    for _ in range(count):
        gradient = torch.randn(shape) * 10 ** (2 * torch.rand(()) - 2)
        if zeros and shape[0] > 2:
            gradient[1] = 0.0
            gradient.view(-1)[::7] = 0.0
        yield gradient


def step_kernel(optimizer, weight):
    """Step one parameter of an eager optimizer by its kernel; return what the kernel reports."""
    group, state = optimizer.param_groups[0], optimizer.state[weight]
    state["step"] += 1
    step, lr = int(state["step"]), float(group["lr"])
    common = {"lr": lr, "maximize": group["maximize"]}
    if isinstance(optimizer.direction, Adam):
        beta1, beta2 = group["betas"]
        correction = 1 - beta1**step if optimizer.direction.correct_momentum else 1.0
        common |= {"beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        common |= {"corrections": [correction], "roots": [(1 - beta2**step) ** 0.5]}
        buffers = [[state["exp_avg"]], [state["exp_avg_sq"]]]
    else:
        common |= {"momentum": group["momentum"], "nesterov": group["nesterov"]}
        buffers = [[state["exp_avg"]]]
    adam = len(buffers) == 2
    data, first = [[weight.detach()], [weight.grad], *buffers], next(iter(optimizer.controls), None)
    assert kernels.takes(weight, weight.grad, *(buffer for [buffer] in buffers))
    if first is None:
        (kernels.adam if adam else kernels.lion)(*data, weight_decay=group["weight_decay"], **common)
        return None
    if "tau" in group:
        vectors = [[state[name]] for name in ("weight_vectors", "update_vectors", "random_vector")]
        return kernels.adam_spectral(
            *data,
            *vectors,
            heights=[group["split"] or [len(weight)]] if "split" in group else [[len(weight)]],
            weight_decay=group["weight_decay"],
            tau=group["tau"],
            floor_unit=group["spectral_floor"] * 0.02,
            power_iterations=group["power_iterations"],
            **common,
        )
    state["turns"] += 1
    momentum = group["betas"][0] if adam else group["momentum"]
    angle = (2 * group["weight_decay"] * lr * (1 - momentum) / (1 + momentum)) ** 0.5
    angle *= 1 - momentum**step if group["inverse_bias_correction"] else 1.0
    decay = group["update_norm_decay"]
    return (kernels.adam_angular if adam else kernels.lion_angular)(
        *data,
        [state["kept_norm"]],
        [state["update_norm_sq"]],
        angles=[angle],
        update_norm_decay=decay,
        average_corrections=[1 - decay ** int(state["turns"])],
        rotational_eps=group["rotational_eps"],
        **common,
    )


def assert_near(ours, theirs, scale):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(scale) + 1e-30)


def compare(build, shape, *, steps=4, start=None, zeros=True):
    """Three eager steps, then some by the kernel on a copy and by the eager optimizer; yield the two reports."""
    torch.manual_seed(sum(shape))
    weight = torch.nn.Parameter(torch.randn(shape) if start is None else start.clone())
    optimizer = build([weight])
    for gradient in gradients(shape, 3, zeros=zeros):
        weight.grad = gradient
        optimizer.step()
    twin, ours = copy.deepcopy((weight, optimizer))
    for gradient in gradients(shape, steps, zeros=zeros):
        before = weight.detach().clone()
        weight.grad = twin.grad = gradient
        optimizer.step()
        report = step_kernel(ours, twin)
        scale = (weight.detach() - before).abs().max() + 1e-1 * before.abs().max()
        assert_near(twin.detach(), weight.detach(), scale)
        for name in ("exp_avg", "exp_avg_sq", "kept_norm", "update_norm_sq"):
            if name in ours.state[twin]:
                theirs = optimizer.state[weight][name]
                # A tangential part that is a small difference has the rounding of what it is left of.
                assert_near(ours.state[twin][name], theirs, 10 * theirs.abs().max())
        yield report, optimizer.step_report.fetch().get("0.0", {})


PLAIN = {
    "adam": lambda p: SizedOptimizer(p, Adam(betas=(0.9, 0.99)), lr=1e-2, weight_decay=0.1),
    "adam-edges": lambda p: SizedOptimizer(p, Adam(betas=(0.0, 0.99), eps=0.0), lr=1e-2, maximize=True),
    "adam-no-square": lambda p: SizedOptimizer(p, Adam(betas=(0.4, 0.0)), lr=1e-2, weight_decay=1.0),
    "adamd": lambda p: SizedOptimizer(p, Adam(correct_momentum=False), lr=1e-2),
    "gi": lambda p: GIAdamW(p, 1e-2, eps=0.0),
    "lion": lambda p: LionA(p, 1e-2),
    "lion-edges": lambda p: LionA(p, 1e-2, 0.0, nesterov=False, maximize=True),
    "lion-slow": lambda p: LionA(p, 1e-2, 0.98, nesterov=False),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [*SHAPES, (5,), (70001,)])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_steps(name, shape, threads):
    torch.set_num_threads(threads)
    list(compare(PLAIN[name], shape))


TURNING = {
    "lionar": lambda p: LionAR(p, 1e-2, weight_decay=0.5),
    "lionar-edges": lambda p: LionAR(p, 1e-2, 0.0, 0.1, nesterov=False, maximize=True),
    "rotational": lambda p: RotationalAdamW(p, 1e-2, weight_decay=0.5),
    "rotational-exact": lambda p: RotationalAdamW(p, 1e-2, (0.0, 0.9), 0.0, 0.1, update_norm_decay=0.0),
    "rotational-small": lambda p: RotationalAdamW(p, 1e-3, (0.9, 0.0), maximize=True),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (9, 1)])
@pytest.mark.parametrize("name", TURNING)
def test_turning_steps(name, shape, threads):
    torch.set_num_threads(threads)
    start = torch.randn(shape)
    if shape[0] > 2:
        start[2] = 0.0
    for angles, report in compare(TURNING[name], shape, start=start):
        assert angles.dtype == torch.float64
        assert angles.item() == pytest.approx(report["angle"], rel=2e-6)


@pytest.mark.parametrize("name", ["lionar", "rotational"])
def test_zero_rows_begin_to_turn_and_radial_updates_do_not(name):
    torch.manual_seed(0)
    start = torch.randn(4, 16)
    start[1] = 0.0
    lr = {"lionar": 0.3, "rotational": 0.1}[name]
    builds = {"lionar": LionAR, "rotational": RotationalAdamW}
    list(
        compare(lambda p: builds[name](p, lr, weight_decay=0.1), (4, 16), start=start, steps=20, zeros=False)
    )
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = LionAR([weight], 0.1, 0.9, 0.1)
    for step in range(3):
        weight.grad = torch.ones(3, 4)
        step_kernel(optimizer, weight) if step else optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.ones(3, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("far", [True, False])
def test_an_inactive_bound_is_adam(shape, threads, far):
    """Far, the whole step is written in the first pass; near, after more iterations."""
    torch.set_num_threads(threads)
    lr = 1e-5 if far else 1e-3
    for report, eager in compare(lambda p: AdamW2(p, lr, tau=0.9, weight_decay=0.1), shape, steps=5):
        assert report[0, 2] == eager["factor"] == 1.0
        assert report[0, 0] == pytest.approx(eager["sigma_weight"], rel=0.2)
        assert report[0, 1] == pytest.approx(eager["sigma_update"], rel=0.5)


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("shape", [*SHAPES, (400, 300)])
def test_an_active_bound_has_the_eager_factor(shape, iterations):
    torch.manual_seed(1)
    torch.set_num_threads(2)
    weight = torch.nn.Parameter(torch.randn(shape))
    optimizer = AdamW2([weight], 0.2, (0.9, 0.99), tau=0.01, power_iterations=iterations)
    gradient = torch.randn(shape) + torch.randn(shape[0]).view(-1, *[1] * (len(shape) - 1))
    for _ in range(12):  # until the vectors are warm
        weight.grad = gradient + 0.1 * torch.randn(shape)
        optimizer.step()
    twin, ours = copy.deepcopy((weight, optimizer))
    for _ in range(5):
        weight.grad = twin.grad = gradient + 0.1 * torch.randn(shape)
        before = twin.detach().clone()
        optimizer.step()
        [[_, _, factor]] = step_kernel(ours, twin).tolist()
        theirs = optimizer.step_report.fetch()["0.0"]["factor"]
        assert factor == pytest.approx(theirs, rel=1e-2)
        assert theirs < 1
        moved, wanted = twin.detach() - before, weight.detach() - before
        assert (moved - wanted).norm() <= 1e-2 * wanted.norm()
        with torch.no_grad():
            twin.copy_(weight)


def test_sections_are_bounded_one_by_one():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(24, 40))
    group = {"params": [weight], "split": (8, 12, 4)}
    optimizer = AdamW2([group], 0.05, weight_decay=0.1, tau=0.02, power_iterations=8)
    sizes = torch.ones(24, 1)
    sizes[8:20] = 1e-9  # updates of the middle section need no bound
    for _ in range(12):
        weight.grad = sizes * (torch.ones(24, 40) + 0.1 * torch.randn(24, 40))
        optimizer.step()
    twin, ours = copy.deepcopy((weight, optimizer))
    for _ in range(3):
        weight.grad = twin.grad = sizes * (torch.ones(24, 40) + 0.1 * torch.randn(24, 40))
        before = weight.detach().clone()
        optimizer.step()
        report = step_kernel(ours, twin)[0]
        eager = optimizer.step_report.fetch()["0.0"]
        assert report[2] == pytest.approx(eager["factor"], rel=5e-3)
        assert report[1] == pytest.approx(eager["sigma_update"], rel=5e-3)
        for old, new in zip(before.split((8, 12, 4)), weight.detach().split((8, 12, 4)), strict=True):
            assert sigma(new) <= sigma(old) * 1.02 * 1.002


def test_a_zero_matrix_grows_by_tau_times_the_floor_and_a_zero_update_moves_nothing():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = AdamW2([weight], 1.0, weight_decay=0.0, tau=0.1)
    floor, sizes = 0.1 * 0.02 * 20, [0.0]
    for step in range(15):
        weight.grad = -torch.ones(100, 100)
        step_kernel(optimizer, weight) if step else optimizer.step()
        sizes.append(sigma(weight))
        assert sizes[-1] == pytest.approx(sizes[-2] + 0.1 * max(sizes[-2], floor), rel=2e-3)
    for start in (torch.zeros(6, 5), torch.randn(6, 5)):
        weight = torch.nn.Parameter(start.clone())
        optimizer = AdamW2([weight], 1.0, eps=0.0, weight_decay=0.0)
        for step in range(3):
            weight.grad = torch.zeros(6, 5)
            report = step_kernel(optimizer, weight) if step else optimizer.step()
        assert torch.equal(weight.detach(), start)
        assert report[0, 1:].tolist() == [0.0, 1.0]
        assert all(torch.isfinite(value).all() for value in optimizer.state[weight].values())


def sigma(tensor):
    return torch.linalg.matrix_norm(tensor.detach().double().flatten(1), ord=2).item()


def hostile_growth(run, *, threads):
    """Largest growth of sigma_1 in units of tau over a run of gradients that concentrate or jump."""
    torch.manual_seed(run)
    random.seed(run)
    torch.set_num_threads(threads)
    rows, columns = random.choice([(64, 64), (128, 32), (32, 128), (256, 256), (40, 300), (1, 7), (300, 2)])
    tau, lr = random.choice([0.01, 0.05, 0.3]), random.choice([1.0, 1.0, 1e4, 3e-3])
    low = random.random() < 0.3 and min(rows, columns) > 2
    start = torch.randn(rows, 2) @ torch.randn(2, columns) if low else torch.randn(rows, columns)
    weight = torch.nn.Parameter(0.02 * start)
    betas = random.choice([0.0, 0.9]), random.choice([0.95, 0.999])
    optimizer = AdamW2([weight], lr, betas, weight_decay=0.0, tau=tau)
    fixed, worst = torch.randn(rows, columns), -1.0
    for step in range(12):
        kind = random.random()
        if kind < 0.3:
            gradient = torch.randn(rows, columns)
        elif kind < 0.6:
            gradient = torch.outer(torch.randn(rows), torch.randn(columns)) * random.choice([0.1, 1, 10, 100])
        elif kind < 0.8:
            left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
            which = random.choice([0, 0, min(1, len(right) - 1), -1])
            gradient = -torch.outer(left[:, which], right[which]) * random.choice([0.1, 1, 10, 100])
        elif kind < 0.9:
            gradient = torch.zeros(rows, columns)
            gradient[:, step % columns] = torch.randn(rows)
        else:
            gradient = fixed
        weight.grad = gradient
        floor = 0.002 * (rows**0.5 + columns**0.5)
        before = sigma(weight)
        step_kernel(optimizer, weight) if step else optimizer.step()
        worst = max(worst, (sigma(weight) - before) / (tau * max(before, floor)))
    return worst, tau


@pytest.mark.parametrize("threads", [1, 2])
def test_sigma_grows_by_at_most_tau(threads):
    for run in range(30):
        worst, tau = hostile_growth(run, threads=threads)
        assert 1 + tau * worst <= (1 + tau) * (1 + 2e-3)


def test_many_tensors_at_once_are_one_after_another():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    shapes = [(3,), (40, 30), (1,), (500, 200), (17, 5), (9, 4, 2)]
    batches = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    batches.append([torch.rand(shape) for shape in shapes])
    options = {"lr": 0.1, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    together, alone = copy.deepcopy(batches), copy.deepcopy(batches)
    steps = list(range(1, len(shapes) + 1))
    kernels.adam(
        *together,
        corrections=[1 - 0.9**t for t in steps],
        roots=[(1 - 0.99**t) ** 0.5 for t in steps],
        **options,
    )
    for index, step in enumerate(steps):
        kernels.adam(
            *([batch[index]] for batch in alone),
            corrections=[1 - 0.9**step],
            roots=[(1 - 0.99**step) ** 0.5],
            **options,
        )
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_what_the_kernels_take():
    weight = torch.zeros(4, 6)
    assert kernels.takes(weight, weight.clone(), weight.clone())
    for other in (weight.double(), weight.half(), torch.zeros(6, 4).T, torch.zeros(4, 5), weight.to("meta")):
        assert not kernels.takes(weight, other)
    assert not kernels.takes(torch.zeros(0, 6), torch.zeros(0, 6))


def test_small_numbers_are_not_flushed_to_zero():
    """Built with the wrong flags a library changes that for the whole thread that loads it."""
    kernels.load()
    tiny = ctypes.c_double(5e-324)
    assert tiny.value * 1.0 != 0.0
    assert (torch.tensor([1e-40]) * 0.5).item() != 0.0


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(kernels, "_module", None)
    monkeypatch.setattr(kernels, "_failure", None)
    calls = []

    def fail(**_):
        calls.append(1)
        raise RuntimeError("no ninja")

    monkeypatch.setattr(kernels.cpp_extension, "load", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"pip install warmfree\[fused\].*no ninja"):
            kernels.load()
    assert len(calls) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_square_sums(threads):
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in ((), (1,), (7, 13), (130,), (64, 64), (300, 501), (70_001,))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = kernels.square_sums(tensors)
        exact = torch.stack([tensor.double().square().sum() for tensor in tensors])
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
        for bad in (float("nan"), float("inf"), 1e30):
            for place in (0, 35_000, 70_000):
                tensors[-1] = torch.randn(70_001)
                tensors[-1][place] = bad
                sums = kernels.square_sums(tensors)
                assert sums[:-1].isfinite().all()
                assert not sums[-1].isfinite() or bad == 1e30  # in double where it is one of the last few
        assert kernels.square_sums([torch.zeros(5000)]).item() == 0
    finally:
        torch.set_num_threads(before)


def test_lengths_are_checked_before_anything_is_touched():
    weight, gradient, average, norms = torch.ones(4, 3), torch.ones(4, 3), torch.zeros(4, 3), torch.ones(4, 1)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    with pytest.raises(RuntimeError, match="must have 12 numbers"):
        kernels.lion([weight], [gradient[:3].contiguous()], [average], weight_decay=0.0, **options)
    with pytest.raises(RuntimeError, match="kept_norms must have 4"):
        kernels.lion_angular(
            [weight], [gradient], [average], [norms[:1].contiguous()], [norms], angles=[0.1],
            update_norm_decay=0.0, average_corrections=[1.0], rotational_eps=0.0, **options,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="contiguous float32"):
        kernels.lion([weight], [gradient.double()], [average], weight_decay=0.0, **options)
    assert torch.equal(weight, torch.ones(4, 3))
