"""The method's formulas once more, one token at a time, in numpy float64: what ctrl's tensor code is compared with.

Written from the paper (arXiv 2501.10979, section 3) and not from ctrl, so that one misreading cannot hide in both.
Shapes: a, b, h are (batch, seq, hidden); vectors of one token are (hidden,).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parameters = dict[str, Array]  # theta: (), w: (hidden,) or (2 hidden,), projection: (hidden, hidden), gate: (2, hidden)

TINY_ANGLE = 1e-7  # radians; nearer to collinear than this the arc is a straight line


# --- one token ---------------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def lerp(a: Array, b: Array, alpha: float) -> Array:
    """(1 - alpha) a + alpha b."""
    return (1 - alpha) * a + alpha * b


def angle(a: Array, b: Array) -> float:
    """The angle between two vectors, from the part of b across a and the part along it."""
    along = a @ b / np.linalg.norm(a)
    across = np.linalg.norm(b - along * a / np.linalg.norm(a))
    return math.atan2(across, along)


def slerp(a: Array, b: Array, alpha: float) -> Array:
    """sin((1 - alpha) W) / sin W a + sin(alpha W) / sin W b; lerp where a and b are collinear."""
    w = angle(a, b)
    if min(w, math.pi - w) < TINY_ANGLE:
        return lerp(a, b, alpha)
    return math.sin((1 - alpha) * w) / math.sin(w) * a + math.sin(alpha * w) / math.sin(w) * b


def mix_token(
    name: str, a: Array, b: Array, h: Array, p: Parameters, alpha: float | None = None
) -> tuple[Array, float]:
    """The mixed hidden state of one token and its alpha. alpha: replaces the one that the parameters give."""
    alpha = alpha_token(name, a, b, h, p) if alpha is None else alpha
    if name == "slerp":
        return slerp(a, b, alpha), alpha
    if name == "plerp":
        return lerp(p["projection"] @ a, b, alpha), alpha
    return lerp(a, b, alpha), alpha


def alpha_token(name: str, a: Array, b: Array, h: Array, p: Parameters) -> float:
    """The share of b in the mix of one token."""
    theta = float(p["theta"])
    if name in ("lerp", "slerp", "plerp", "proj"):
        return sigmoid(theta)
    if name == "dlerp":
        return sigmoid(p["w"] @ np.concatenate([a, b]) + theta)
    if name == "dlerpin":
        return sigmoid(p["w"] @ h + theta)
    if name == "gate":
        share = sigmoid(theta)
        grid = np.linspace(0, 1, 1_000_001)
        start = float(np.interp(share, grid**2 * (3 - 2 * grid), grid))  # the s at which s^2 (3 - 2 s) is the share
        s = min(max(start + p["w"] @ (h / np.sqrt(np.mean(h**2) + 1e-6)), 0.0), 1.0)
        return s**2 * (3 - 2 * s)
    scores = p["gate"] @ h + np.array([0.0, theta])
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    if name == "moe_soft":
        return float(shares[1])
    if name == "moe":
        return 1.0 if shares[1] >= shares[0] else 0.0
    raise KeyError(name)


def cosine_token(a: Array, b: Array, margin: float = 0.0) -> float:
    """relu(1 - cos(a, b) - margin)."""
    cos = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return max(0.0, 1 - cos - margin)


def divergence_token(name: str, a: Array, b: Array, margin: float = 0.0) -> float:
    """The distance between one token's two hidden states."""
    distance = cosine_token(a, b, margin)
    if name == "none":
        return 0.0
    if name == "mse":
        return sum((y - x) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    if name == "cosine":
        return distance
    if name == "cosine_smooth":
        return distance**2 / 2 if distance < 1 else distance - 1 / 2
    if name == "norm":
        return distance / 2 + (math.sqrt(a @ a) - math.sqrt(b @ b)) ** 2 / 2
    raise KeyError(name)


def relaxed_norm_token(x: Array, weight: Array, c: float, eps: float) -> Array:
    """c x + (1 - c) RMSNorm(x), RMSNorm(x) = weight x / sqrt(mean of x^2 + eps)."""
    return c * x + (1 - c) * weight * x / math.sqrt(sum(v * v for v in x) / len(x) + eps)


def kl(e: Array, p: Array) -> float:
    """KL(e || p) of two attention rows, in nats, which need not sum to 1: the sum of e log(e / p) - e + p.

    Keys that neither row looks at add nothing.
    """
    return sum(x * math.log(x / y) for x, y in zip(e, p, strict=True) if x > 0) - sum(e) + sum(p)


# --- a batch -----------------------------------------------------------------------------------------------------


def mix(name: str, a: Array, b: Array, h: Array, p: Parameters, alpha: float | None = None) -> tuple[Array, Array]:
    """Mixed hidden states (batch, seq, hidden) and alphas (batch, seq); see `mix_token`."""
    mixed, alphas = np.empty_like(a), np.empty(a.shape[:2])
    for at in np.ndindex(*a.shape[:2]):
        mixed[at], alphas[at] = mix_token(name, a[at], b[at], h[at], p, alpha)
    return mixed, alphas


def per_token(a: Array, of: Callable[[tuple[int, ...]], float]) -> Array:
    """`of` at every (sequence, position) of a: (batch, seq)."""
    out = np.empty(a.shape[:2])
    for at in np.ndindex(*a.shape[:2]):
        out[at] = of(at)
    return out


def divergence(name: str, a: Array, b: Array, margin: float = 0.0) -> Array:
    """Per token (batch, seq)."""
    return per_token(a, lambda at: divergence_token(name, a[at], b[at], margin))


def attention(pretrained: Array, expanded: Array) -> Array:
    """Weights (batch, heads, seq, keys) -> mean over heads of KL(expanded row || pretrained row), (batch, seq)."""
    batch, heads, seq, _ = pretrained.shape
    out = np.empty((batch, seq))
    for i, t in np.ndindex(batch, seq):
        out[i, t] = sum(kl(expanded[i, k, t], pretrained[i, k, t]) for k in range(heads)) / heads
    return out


def masked_mean(values: Array, real: NDArray[np.bool_]) -> float:
    """Mean over real tokens, all sequences together; 0 without any."""
    kept = [values[at] for at in np.ndindex(*values.shape) if real[at]]
    return sum(kept) / len(kept) if kept else 0.0
