"""After a search, however it ends, everything is to the last bit what it was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import DataLoader, TensorDataset

import warmfree
from traces import Traces
from warmfree.optim import Precision
from warmfree.schedule.critical import critical_lr

SIZE = 6


class Passage(torch.autograd.Function):
    """Let a tensor through, and call back in each direction."""

    @staticmethod
    def forward(ctx, x, forwards, backwards):
        ctx.backwards = backwards
        forwards()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.backwards()
        return gradient, None, None


class Places:
    """Raise at the n-th visit of a place."""

    def __init__(self, place=None, visit=1, how=None):
        self.place, self.left, self.how = place, visit, how

    def visit(self, place):
        if place == self.place:
            self.left -= 1
            if self.left == 0:
                self.how()


class Middle(nn.Module):
    """Draws random numbers of all kinds, counts, caches, and passes on."""

    def __init__(self):
        super().__init__()
        self.places, self.calls, self.cache = Places(), 0, None
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        self.cache = x.detach()
        self.seen[0] += 1
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002 (the state is what is kept)
        return (
            Passage.apply(x, lambda: self.places.visit("forward"), lambda: self.places.visit("backward"))
            + 0.01 * noise
        )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(SIZE, 4), nn.Linear(4, SIZE, bias=False)
        self.head.weight = self.tokens.weight
        self.norm, self.middle = nn.LayerNorm(4), Middle()

    def forward(self, x):
        return self.head(self.middle(self.norm(self.tokens(x.argmax(-1)))))


def plain():
    layers = [nn.Linear(SIZE, 5), nn.BatchNorm1d(5), nn.ReLU(), Middle(), nn.Dropout(0.3), nn.Linear(5, SIZE)]
    return nn.Sequential(*layers)


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (1, SIZE)),
        spectral_norm(nn.Conv1d(1, 3, 3)),
        nn.BatchNorm1d(3),
        nn.GELU(),
        nn.Flatten(),
        Middle(),
        weight_norm(nn.Linear(12, SIZE)),
    )


def frozen():
    model = plain()
    model[0].requires_grad_(False)
    model[1].eval()
    return model


MODELS = {"plain": plain, "convolutions": convolutions, "tied": Tied, "frozen": frozen}


def in_matrices(groups):
    return [{**group, "params": [p for p in group["params"] if p.ndim == 2]} for group in groups]


def muon(groups):
    groups = [group for group in in_matrices(groups) if group["params"]]
    for group in groups:
        group["lr"] = float(group["lr"])
    return torch.optim.Muon(groups, lr=0.02)


class Shadowed(torch.optim.Optimizer):
    """Keeps its momentum in an object, forgets gradients, and gives weights new memory."""

    class Memory:
        def __init__(self, weight):
            self.momentum, self.counts = torch.zeros_like(weight), [0]

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                memory = self.state[weight].setdefault("memory", Shadowed.Memory(weight))
                memory.momentum = 0.9 * memory.momentum + weight.grad
                memory.counts.append(memory.counts[-1] + 1)
                weight.data = weight - float(group["lr"]) * memory.momentum
                weight.grad.zero_()
                weight.grad = None


OPTIMIZERS = {
    "SGD": lambda g: torch.optim.SGD(g),
    "SGD, momentum": lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, foreach": lambda g: torch.optim.SGD(g, momentum=0.9, foreach=True, maximize=True),
    "SGD, fused": lambda g: torch.optim.SGD(g, momentum=0.9, fused=True),
    "Adam, amsgrad": lambda g: torch.optim.Adam(g, amsgrad=True),
    "Adam, foreach": lambda g: torch.optim.Adam([{**x, "lr": float(x["lr"])} for x in g], foreach=True),
    "AdamW, fused": lambda g: torch.optim.AdamW(g, fused=True),
    "RMSprop": lambda g: torch.optim.RMSprop(g, momentum=0.9, centered=True),
    "Adagrad": lambda g: torch.optim.Adagrad(g),
    "Adadelta": lambda g: torch.optim.Adadelta(g),
    "Adamax": lambda g: torch.optim.Adamax(g),
    "ASGD": lambda g: torch.optim.ASGD(g),
    "Rprop": lambda g: torch.optim.Rprop(g),
    "NAdam": lambda g: torch.optim.NAdam(g, decoupled_weight_decay=True),
    "RAdam": lambda g: torch.optim.RAdam(g),
    "Adafactor": lambda g: torch.optim.Adafactor(g),
    "Muon": muon,
    "AdamW2": lambda g: warmfree.AdamW2(g),
    "GIAdamW": lambda g: warmfree.GIAdamW(g, foreach=True),
    "LionA": lambda g: warmfree.LionA(g),
    "LionAR": lambda g: warmfree.LionAR(g, weight_decay=0.1),
    "RotationalAdamW": lambda g: warmfree.RotationalAdamW(g, weight_decay=0.1),
    "everything": lambda g: warmfree.SizedOptimizer(
        g,
        "adam",
        [
            warmfree.optim.NoiseControl(batch_size=4),
            warmfree.optim.AngularControl(),
            warmfree.optim.SpectralBound(),
        ],
        weight_decay=0.1,
    ),
    "wrap(SGD)": lambda g: warmfree.wrap(torch.optim.SGD(g, momentum=0.9), [warmfree.optim.SpectralBound()]),
    "Precision": lambda g: warmfree.AdamW2(
        g, precision=Precision(stochastic_rounding=True, bf16_moments=True)
    ),
    "objects": Shadowed,
}


class Failing:
    """A step that writes to weights, state and groups before it fails."""

    def step(self, closure=None):
        places = vars(type(self))["places"]
        places.visit("before the step")
        with torch.no_grad():
            weight = self.param_groups[0]["params"][0]
            if places.place == "in the step" and places.left == 1:
                weight.add_(1.0)
                self.state[weight]["poison"] = torch.ones(2)
                self.param_groups[0]["lr"] = 7.0
                self.poisoned = True
        places.visit("in the step")
        return super().step(closure)


class Run:
    """A run some steps in: the same again for the same arguments."""

    def __init__(self, model, optimizer, *, seed, steps, leftover, tensor_lr, schedule):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        self.model = MODELS[model]()
        self.model.train()
        if model == "frozen":
            self.model[1].eval()
        if optimizer == "Precision":
            self.model.to(torch.bfloat16)
        weights = list(self.model.parameters())
        lr = torch.tensor(0.01) if tensor_lr and optimizer not in ("Adafactor", "ASGD", "Rprop") else 0.01
        groups = [{"params": weights[:2], "lr": lr}, {"params": weights[2:], "lr": 0.003}]
        self.optimizer = OPTIMIZERS[optimizer]([group for group in groups if group["params"]])
        self.hooked = []
        self.optimizer.register_step_pre_hook(lambda *_: self.hooked.append("before"))
        self.optimizer.register_step_post_hook(lambda *_: self.hooked.append("after"))
        self.places = Places()
        kind = type(self.optimizer)
        self.optimizer.__class__ = type(kind.__name__, (Failing, kind), {"places": self.places})
        inputs = torch.randn(24, SIZE).to(weights[0].dtype)
        dataset = TensorDataset(inputs, torch.randint(SIZE, (24,)))
        self.loader = DataLoader(
            dataset,
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=self.collate,
        )
        self.scheduler = None
        if schedule:
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, lambda step: min(step / 2, 1.0)
            )
        for _, batch in zip(range(steps), self.loader, strict=False):
            self.step(batch)
        if leftover == "none":
            for weight in weights:
                weight.grad = None
        elif leftover == "zeros":
            self.optimizer.zero_grad(set_to_none=False)

    def collate(self, samples):
        self.places.visit("in the iterator")
        return torch.utils.data.default_collate(samples)

    def loss(self, model, batch):
        self.places.visit("before the forward pass")
        inputs, targets = batch
        loss = F.cross_entropy(model(inputs).float(), targets)
        self.places.visit("after the forward pass")
        return loss

    def step(self, batch):
        self.optimizer.zero_grad()
        self.loss(self.model, batch).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def traces(self):
        return Traces(self.model, self.optimizer, self.loader.generator)

    def arm(self, places):
        """Let the next visits of a place fail."""
        self.places.__dict__.update(vars(places))
        for module in self.model.modules():
            if isinstance(module, Middle):
                module.places.__dict__.update(vars(places))


class PlannedError(Exception):
    pass


def fail():
    raise PlannedError


def interrupt():
    raise KeyboardInterrupt


def send_signal():
    signal.raise_signal(signal.SIGINT)


PLACES = (
    "before the forward pass",
    "after the forward pass",
    "forward",
    "backward",
    "before the step",
    "in the step",
    "in the iterator",
    "on_trial",
)
VISITS = {"backward": 1, "in the iterator": 1}  # of a search, if fewer than six
runs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(list(MODELS)),
        "optimizer": st.sampled_from(list(OPTIMIZERS)),
        "seed": st.integers(0, 100),
        "steps": st.integers(0, 3),
        "leftover": st.sampled_from(["none", "zeros", "as it is"]),
        "tensor_lr": st.booleans(),
        "schedule": st.booleans(),
    }
)


def search(run, places, **options):
    """Search, and return what was raised."""
    run.arm(places)
    run.hooked.clear()
    try:
        critical_lr(
            run.model,
            run.loss,
            run.loader,
            run.optimizer,
            on_trial=lambda trial: run.places.visit("on_trial"),
            **options,
        )
    except Exception as error:
        return error
    except KeyboardInterrupt as error:
        return error
    finally:
        run.arm(Places())
    return None


def check(options, places, search_options):
    run, twin = Run(**options), Run(**options)
    given = torch.randn(4, SIZE).to(next(run.model.parameters()).dtype)
    torch.manual_seed(3)
    pending = run.model(given).float().square().mean()
    torch.manual_seed(3)
    theirs = twin.model(given).float().square().mean()
    before = run.traces()
    error = search(run, places, **search_options)
    assert before.differences(run.traces()) == []
    assert run.hooked == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # What was begun before can be ended, and training goes on as if nobody had looked.
    pending.backward(), theirs.backward()
    for one in (run, twin):
        torch.manual_seed(4), random.seed(4), np.random.seed(4)  # noqa: NPY002
        for _, batch in zip(range(2), one.loader, strict=False):
            one.step(batch)
    ours, others = run.model.state_dict(), twin.model.state_dict()
    assert all(torch.equal(ours[name], others[name]) for name in others)
    return error


def is_legitimate(error):
    """Return whether a search on a random run may end so: ASGD makes its coming step with the lr of its last one."""
    known = ("the loss is constant", "moves no weight")
    return error is None or (isinstance(error, ValueError) and any(words in str(error) for words in known))


@settings(max_examples=25, deadline=None)
@given(runs, st.booleans(), st.integers(1, 2), st.sampled_from([None, 0.1]))
def test_nothing_is_left_of_a_search(options, several, accumulate, max_grad_norm):
    error = check(
        options,
        Places(),
        {"num_steps": 1 + several, "accumulate": accumulate, "max_passes": 8, "max_grad_norm": max_grad_norm},
    )
    assert is_legitimate(error)


@settings(max_examples=40, deadline=None)
@given(
    runs,
    st.sampled_from(PLACES).flatmap(
        lambda place: st.tuples(st.just(place), st.integers(1, VISITS.get(place, 6)))
    ),
    st.sampled_from([fail, interrupt, send_signal]),
)
def test_nothing_is_left_of_a_search_that_fails(options, place_and_visit, how):
    error = check(options, Places(*place_and_visit, how), {"max_passes": 8})
    assert is_legitimate(error) or isinstance(error, PlannedError if how is fail else KeyboardInterrupt)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["fail", "interrupt", "send_signal"])
def test_the_search_fails_where_it_is_made_to(place, how):
    options = {"model": "plain", "optimizer": "AdamW2", "seed": 1, "steps": 2}
    options |= {"leftover": "as it is", "tensor_lr": False, "schedule": True}
    for visit in range(1, VISITS.get(place, 3) + 1):
        error = check(options, Places(place, visit, globals()[how]), {})
        assert isinstance(error, PlannedError if how == "fail" else KeyboardInterrupt)


INTERRUPTED = """
import os, signal
import torch
from torch import nn
from traces import Traces
from warmfree.schedule.critical import critical_lr

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batch = torch.randn(8, 4)
loss_fn = lambda model, x: model(x).square().mean()
for _ in range(2):
    loss_fn(model, batch).backward()
    optimizer.step()
inside, hits = False, 0


def handler(number, frame):
    global inside, hits
    if inside:
        inside, hits = False, hits + 1
        raise KeyboardInterrupt


signal.signal(signal.SIGINT, handler)
before = Traces(model, optimizer)
print("ready", flush=True)
searches = 0
while hits < 40:
    try:
        inside = True
        critical_lr(model, loss_fn, [batch], optimizer)
    except KeyboardInterrupt:
        pass
    inside = False
    searches += 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert before.differences(Traces(model, optimizer)) == []
print("done", searches, flush=True)
os._exit(0)  # the end of the interpreter is no longer ours to guard
"""


def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path):
    script = tmp_path / "searches.py"
    script.write_text(INTERRUPTED)
    paths = [str(Path(__file__).parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout.readline() == "ready\n"
    moments = random.Random(0)
    while process.poll() is None:
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.startswith("done")
