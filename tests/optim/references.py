"""Each optimizer written from its formula in numpy float64, one array at a time: the first level of truth.

Every class holds the state of one parameter; `step(w, g, lr)` returns the new weight. Rows are output neurons.
"""

from dataclasses import dataclass, field

import numpy as np


def exact_sigma(matrix):
    return np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)[0]


@dataclass
class AdamDirection:
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    gradient_start: bool = False
    correct: bool = True
    t: int = 0
    m: np.ndarray | float = 0.0
    v: np.ndarray | float = 0.0

    def __call__(self, g):
        if self.gradient_start and self.t == 0:
            self.v = g * g
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat = self.m / (1 - self.b1**self.t) if self.correct else self.m
        return m_hat / (np.sqrt(self.v / (1 - self.b2**self.t)) + self.eps)


@dataclass
class LionDirection:
    b: float = 0.9
    nesterov: bool = True
    t: int = 0
    m: np.ndarray | float = 0.0

    def __call__(self, g):
        self.t += 1
        self.m = self.b * self.m + (1 - self.b) * g
        c = self.b * self.m + (1 - self.b) * g if self.nesterov else self.m
        return np.sqrt((1 - self.b) / (1 + self.b)) * np.sign(c)


@dataclass
class Plain:
    """Any direction with decoupled decay: AdamW, AdamD, GI-Adam, LionA."""

    direction: object
    wd: float

    def step(self, w, g, lr):
        return w - lr * self.direction(g) - lr * self.wd * w


@dataclass
class Spectral:
    """Qi et al. 2025, Algorithm 1, with exact singular values."""

    direction: object
    wd: float
    tau: float

    def step(self, w, g, lr):
        u = self.direction(g)
        if w.ndim < 2:
            a = lr
        else:
            sigma_u = exact_sigma(u)
            floor = 0.1 * 0.02 * (np.sqrt(w.shape[0]) + np.sqrt(w[0].size))
            a = lr if sigma_u == 0 else min(lr, self.tau * max(exact_sigma(w), floor) / sigma_u)
        return w - a * u - a * self.wd * w


@dataclass
class Rotational:
    """LionAR and RotationalAdamW: project, turn by the angle, keep the norm; one neuron at a time."""

    direction: object
    wd: float
    b: float
    inverse: bool = False
    schedule: str = "sqrt"
    peak: float = 0.0
    norm_decay: float = 0.0
    eps: float = 0.0
    zero_mean: bool = False
    t: int = 0
    norms: list = field(default_factory=list)
    q: dict = field(default_factory=dict)

    def step(self, w, g, lr):
        u = self.direction(g)
        self.t += 1
        if w.ndim < 2:
            return w - lr * u - lr * self.wd * w
        rate = 2 * self.wd * (1 - self.b) / (1 + self.b)
        angle = np.sqrt(rate * lr) if self.schedule == "sqrt" else np.sqrt(rate * self.peak) * lr / self.peak
        if self.inverse:
            angle *= 1 - self.b**self.t
        rows, steps = w.reshape(len(w), -1).copy(), u.reshape(len(w), -1)
        if self.t == 1:
            self.norms = [np.linalg.norm(row) for row in rows]
            if self.zero_mean:
                for i, row in enumerate(rows):
                    centred = row - row.mean()
                    rows[i] = centred * np.linalg.norm(row) / np.linalg.norm(centred)
        for i, (row, d) in enumerate(zip(rows, steps, strict=True)):
            n0 = self.norms[i]
            d = d - d.mean() if self.zero_mean else d
            d = d - row * (d @ row) / (row @ row)
            if self.norm_decay:
                self.q[i] = self.norm_decay * self.q.get(i, 0.0) + (1 - self.norm_decay) * (d @ d)
                length = np.sqrt(self.q[i] / (1 - self.norm_decay**self.t))
            else:
                length = np.linalg.norm(d)
            turned = row - angle * n0 * d / (self.eps + length)
            rows[i] = turned * n0 / np.linalg.norm(turned)
        return rows.reshape(w.shape)
