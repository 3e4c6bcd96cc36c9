"""Draw values that are far apart on an axis on which ten times as much is always the same step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

FEW = 50  # the largest number of an axis over its smallest, up to which 2 and 5 are written too
WIDE = 10  # values whose largest is so many times the smallest


def far_apart(values: Iterable[float]) -> bool:
    """Whether values, ends of intervals among them, are all above 0 and a decade or more apart."""
    found = list(values)
    return bool(found) and min(found) > 0 and max(found) / min(found) >= WIDE


def log_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Make an axis logarithmic, with plain numbers at the decades; over less than `FEW` also at 2 and 5 times them."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis

    def number(value: float, place: int | None) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if high < FEW * low or f"{value:e}".startswith("1.0") else ""

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=9))
    axis.set_major_formatter(FuncFormatter(number))  # the default writes formulas
    axis.set_minor_formatter(NullFormatter())
