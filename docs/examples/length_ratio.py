"""A metric of hidden states of your own: how much longer or shorter they became."""

from __future__ import annotations

import numpy as np

from experiments.evaluation.similarity import METRICS, Array
from experiments.scorecard.figure import FINE, Figure
from experiments.scorecard.figures import FIGURES


def length_ratio(x: Array, y: Array) -> float:
    """Mean over sentences of |y| / |x|. x: the reference, y: what is compared with it; (sentences, hidden)."""
    return float((np.linalg.norm(y, axis=1) / np.linalg.norm(x, axis=1)).mean())


METRICS["length_ratio"] = length_ratio
FIGURES["alignment_length_ratio"] = Figure(
    name="alignment_length_ratio",
    suite="alignment",
    title="length ratio",
    meaning="length of hidden states, after / before",
    formula="mean over layers and sentences of |h| / |h0|",
    unit="",
    places=FINE,
    unchanged=1,
    tables=("further",),
    closed=lambda sample: sample.alignment("length_ratio"),
)
