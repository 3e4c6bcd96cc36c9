"""Draw values that are far apart on an axis on which ten times as much is always the same step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIDE = 10  # values whose largest is so many times the smallest


def far_apart(values: Iterable[float]) -> bool:
    """Whether values, ends of intervals among them, are all above 0 and a decade or more apart."""
    found = list(values)
    return bool(found) and min(found) > 0 and max(found) / min(found) >= WIDE


def log_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Make an axis logarithmic, with plain numbers (0.1, 1, 10) at the decades and none between."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))  # the default writes formulas
    axis.set_minor_formatter(NullFormatter())
