"""How alike two sets of hidden states are: pure functions of arrays (sentences, hidden), in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NEIGHBOURS = 5


def cosine(x: Array, y: Array) -> float:
    """Mean over sentences of cos(x_i, y_i)."""
    return float((_unit(x) * _unit(y)).sum(axis=1).mean())


def relative_l2(x: Array, y: Array) -> float:
    """Mean over sentences of |y_i - x_i| / |x_i|."""
    return float((np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1).clip(1e-30)).mean())


def cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment (arXiv 1905.00414): <K, L> / (|K| |L|), K = X X^T, L = Y Y^T, columns centred.

    1 for states that are the same up to rotation and scale; NaN where all sentences have one state.
    """
    first, second = (c @ c.T for c in (_centred(x), _centred(y)))
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum() / size) if size > 0 else float("nan")


def neighbours(x: Array, y: Array, k: int = NEIGHBOURS) -> float:
    """Mean over sentences of the share of the k nearest others (by cosine) in x that are among the k nearest in y.

    Chance is k / (n - 1). Raises ValueError unless 1 <= k <= n - 2: with k = n - 1 all others are near in both.
    """
    if not 1 <= k <= len(x) - 2:
        raise ValueError(f"k={k}: {len(x)} sentences have a neighbourhood for k in 1..{len(x) - 2}")
    shared = (_nearest(x, k) & _nearest(y, k)).sum(axis=1)
    return float(shared.mean() / k)


METRICS = {"cosine": cosine, "relative_l2": relative_l2, "cka": cka, "neighbours": neighbours}


def projection(base: Array, tuned: Array) -> tuple[Array, Array]:
    """Both on the base's first two principal axes, (n, 2) each, with the base's mean at 0: what moved is seen to move.

    An axis points to where its largest weight is positive.
    """
    mean = base.mean(axis=0)
    axes = np.linalg.svd(base - mean, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    return (base - mean) @ axes.T, (tuned - mean) @ axes.T


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-30)


def _centred(x: Array) -> Array:
    return x - x.mean(axis=0)


def _nearest(x: Array, k: int) -> NDArray[np.bool_]:
    """(n, n): whether column j is among the k nearest of row i, itself left out. Ties go to the first."""
    similar = _unit(x) @ _unit(x).T
    np.fill_diagonal(similar, -np.inf)
    near = np.zeros(similar.shape, dtype=bool)
    np.put_along_axis(near, np.argsort(-similar, axis=1, kind="stable")[:, :k], True, axis=1)
    return near
