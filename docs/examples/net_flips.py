"""A figure of your own: how many more kept answers were won than lost."""

from __future__ import annotations

from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES

NET_FLIPS = Figure(
    name="net_flips",
    suite="kept",
    title="net flips",
    meaning="kept answers won less those lost, as a share of all",
    formula="(n01 - n10) / n",
    better="higher",
    signed=True,
    unchanged=0,
    tables=("further",),
    draw=lambda sample: (sample.kept["won"] - sample.kept["lost"]) / sample.kept["n"],
)
FIGURES[NET_FLIPS.name] = NET_FLIPS
