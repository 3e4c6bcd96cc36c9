"""Similarity of two sets of hidden states: pure functions of arrays (sentences, hidden), in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NEIGHBOURS = 5


def cosine(x: Array, y: Array) -> float:
    """Return the mean over sentences of cos(x_i, y_i)."""
    return float((_unit(x) * _unit(y)).sum(axis=1).mean())


def relative_l2(x: Array, y: Array) -> float:
    """Return the mean over sentences of |y_i - x_i| / |x_i|."""
    return float((np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1).clip(1e-30)).mean())


def cka(x: Array, y: Array) -> float:
    """Return linear centred kernel alignment: <K, L> / (|K| |L|), K = X X^T, L = Y Y^T, columns centred.

    1 for states that are equal up to rotation and scale; NaN if all sentences have the same state. arXiv 1905.00414.
    """
    first, second = (c @ c.T for c in (_centred(x), _centred(y)))
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum() / size) if size > 0 else float("nan")


def procrustes(x: Array, y: Array) -> float:
    """Return 1 - |X^T Y|_*^2, columns centred and |X| = |Y| = 1: what no rotation and scale can undo.

    |A|_* is the sum of A's singular values. 0 for states that are equal up to rotation and scale, at most 1; NaN if all
    sentences have the same state. It is the disparity of `scipy.spatial.procrustes`.
    """
    first, second = _centred(x), _centred(y)
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not size > 0:
        return float("nan")
    # X^T = Q R and Y^T = P S give X^T Y = Q (R S^T) P^T: a matrix of sentences squared has the same singular values
    r, s = (np.asarray(np.linalg.qr(c.T, mode="r")) for c in (first, second))
    return 1 - (float(np.linalg.svd(r @ s.T, compute_uv=False).sum()) / size) ** 2


def neighbours(x: Array, y: Array, k: int = NEIGHBOURS) -> float:
    """Return the mean share of a sentence's k nearest others (by cosine) in x that are among its k nearest in y.

    Chance is k / (n - 1). Raises ValueError unless 1 <= k <= n - 2: with k = n - 1 all others are neighbours in both.
    """
    if not 1 <= k <= len(x) - 2:
        raise ValueError(f"k={k}: with {len(x)} sentences k must be in 1..{len(x) - 2}")
    shared = (_nearest(x, k) & _nearest(y, k)).sum(axis=1)
    return float(shared.mean() / k)


METRICS = {"cosine": cosine, "relative_l2": relative_l2, "cka": cka, "procrustes": procrustes, "neighbours": neighbours}


def projection(base: Array, tuned: Array) -> tuple[Array, Array]:
    """Project both on the base's first two principal axes, (n, 2) each, with the base's mean at 0.

    The sign of an axis makes its largest weight positive.
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
    """Return (n, n): whether j is among the k nearest others of i. Of equal ones the first counts."""
    similar = _unit(x) @ _unit(x).T
    np.fill_diagonal(similar, -np.inf)
    near = np.zeros(similar.shape, dtype=bool)
    np.put_along_axis(near, np.argsort(-similar, axis=1, kind="stable")[:, :k], True, axis=1)
    return near
