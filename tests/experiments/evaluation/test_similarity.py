"""Metrics of hidden states against their definitions, their invariances, and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import procrustes as scipy_procrustes
from sklearn.decomposition import PCA

from experiments.evaluation.similarity import (
    METRICS,
    Array,
    cka,
    cosine,
    neighbours,
    procrustes,
    projection,
    relative_l2,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 12))
Y = X + 0.3 * RNG.normal(size=X.shape)


def rotation(size: int) -> Array:
    return np.linalg.qr(RNG.normal(size=(size, size)))[0]


def cka_by_definition(x: Array, y: Array) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC(K, L) = tr(K H L H), with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(p: Array, q: Array) -> float:
        return float(np.trace(p @ h @ q @ h))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def neighbours_by_definition(x: Array, y: Array, k: int) -> float:
    def near(states: Array, i: int) -> set[int]:
        def similarity(j: int) -> float:
            return float(
                states[i] @ states[j] / math.dist(states[i], 0 * states[i]) / math.dist(states[j], 0 * states[j])
            )

        return set(sorted((j for j in range(len(states)) if j != i), key=similarity, reverse=True)[:k])

    return sum(len(near(x, i) & near(y, i)) for i in range(len(x))) / (k * len(x))


class TestMetrics:
    def test_against_their_definitions(self) -> None:
        cosines = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(X, Y, strict=True)]
        lengths = [math.dist(x, y) / math.dist(x, 0 * x) for x, y in zip(X, Y, strict=True)]
        assert cosine(X, Y) == pytest.approx(sum(cosines) / len(X), abs=1e-12)
        assert relative_l2(X, Y) == pytest.approx(sum(lengths) / len(X), abs=1e-12)
        assert cka(X, Y) == pytest.approx(cka_by_definition(X, Y), abs=1e-12)
        assert 0.5 < cka(X, Y) < 0.99
        assert procrustes(X, Y) == pytest.approx(scipy_procrustes(X, Y)[2], abs=1e-12)
        assert procrustes(X.T, Y.T) == pytest.approx(scipy_procrustes(X.T, Y.T)[2], abs=1e-12)
        assert 0.02 < procrustes(X, Y) < 0.5
        for k in (1, 5, 38):
            assert neighbours(X, Y, k) == pytest.approx(neighbours_by_definition(X, Y, k), abs=1e-12)
        assert 0.3 < neighbours(X, Y) < 0.95

    def test_of_the_same_states(self) -> None:
        perfect = {"cosine": 1.0, "relative_l2": 0.0, "cka": 1.0, "procrustes": 0.0, "neighbours": 1.0}
        assert {name: metric(X, X.copy()) for name, metric in METRICS.items()} == pytest.approx(perfect, abs=1e-12)

    def test_cka_sees_neither_rotation_nor_scale_nor_shift(self) -> None:
        turned = 3.7 * Y @ rotation(12) + 5.0
        assert cka(X, turned) == pytest.approx(cka(X, Y), abs=1e-12)
        assert abs(cosine(X, turned) - cosine(X, Y)) > 0.1

    def test_cka_sees_a_stretched_axis(self) -> None:
        assert cka(X, X * np.array([10.0] + [1.0] * 11)) < 0.8

    def test_neighbours_see_neither_rotation_nor_scale(self) -> None:
        assert neighbours(X, 3.7 * Y @ rotation(12)) == neighbours(X, Y)

    def test_neighbours_of_unrelated_states_agree_by_chance(self) -> None:
        """k / (n - 1); over 4,000 sentences-with-5-places the standard deviation is about .003."""
        rng = np.random.default_rng(1)
        found = [neighbours(rng.normal(size=(40, 60)), rng.normal(size=(40, 60)), 5) for _ in range(100)]
        assert np.mean(found) == pytest.approx(5 / 39, abs=0.012)

    def test_cka_of_equal_states_is_undefined(self) -> None:
        assert math.isnan(cka(np.ones((4, 3)), X[:4, :3]))

    @pytest.mark.parametrize("k", [0, 39])
    def test_a_neighbourhood_that_says_nothing_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=rf"k={k}: with 40 sentences k must be in 1..38"):
            neighbours(X, Y, k)


class TestProjection:
    def test_is_the_principal_axes_of_the_base(self) -> None:
        pca = PCA(2).fit(X)
        base, tuned = projection(X, Y)
        for ours, theirs in ((base, pca.transform(X)), (tuned, pca.transform(Y))):
            np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
        assert base.shape == tuned.shape == (40, 2)

    def test_same_states_lie_at_the_same_place(self) -> None:
        base, tuned = projection(X, X.copy())
        np.testing.assert_allclose(base, tuned, atol=1e-12)
        np.testing.assert_allclose(base.mean(axis=0), 0, atol=1e-12)
