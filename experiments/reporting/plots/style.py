"""The style that all figures share: fonts, grid, markers."""

from __future__ import annotations

from typing import Any

MARKERS = "os^DvPX*hpd<"


STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": "#333a44",
    "text.color": "#1d2430",
    "xtick.color": "#5b6470",
    "ytick.color": "#5b6470",
    "text.parse_math": False,  # names may have dollar signs, and are no formulas
    "svg.fonttype": "path",
    "svg.hashsalt": "control-llm",
}
