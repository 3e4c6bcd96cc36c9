"""A metric of hidden states of your own: how much longer or shorter they became."""

from __future__ import annotations

import numpy as np

from experiments.evaluation.similarity import METRICS, Array


def length_ratio(x: Array, y: Array) -> float:
    """Mean over sentences of |y| / |x|. x: the reference, y: what is compared with it; (sentences, hidden)."""
    return float((np.linalg.norm(y, axis=1) / np.linalg.norm(x, axis=1)).mean())


METRICS["length_ratio"] = length_ratio
