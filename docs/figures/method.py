"""Draw the method in one picture: a frozen layer, its copy, the mix and the divergence (`make docs`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY = "#1d2430", "#5b6470"
FROZEN, FROZEN_FILL = "#4a6fa5", "#e3ebf6"
COPY, COPY_FILL = "#00795a", "#dff3ec"
MIX_FILL = "#fff3d6"
PENALTY = "#b03a2e"
STYLE: Any = {"font.family": "sans-serif", "font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "control-llm"}
Point = tuple[float, float]


def draw(target: Path | io.BytesIO, kind: str = "svg") -> None:
    """Write the picture to a file or a buffer. kind: `svg` or `png`."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(8, 5.6), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 8), ylim=(0, 5.6))
        axes.axis("off")
        _model(axes)
        _layer(axes)
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(target, format=kind, dpi=110, facecolor="white", metadata=metadata)
        plt.close(figure)


def _model(axes: Axes) -> None:
    """Draw the whole model as a column of layers, some of them with a copy on the right."""
    axes.text(1.22, 5.25, "the model", ha="center", weight="bold", color=INK)
    for layer in range(8):
        expanded = layer % 4 == 3
        y = 0.62 + 0.54 * layer
        _box(axes, (0.42, y), 0.95, 0.36, FROZEN, FROZEN_FILL)
        if expanded:
            _box(axes, (1.47, y), 0.55, 0.36, COPY, COPY_FILL)
        if layer:
            _arrow(axes, (0.895, y - 0.17), (0.895, y + 0.02), GREY, size=7)
    axes.text(1.22, 0.24, "every 4th layer has a copy", ha="center", size=9, color=GREY)
    for y, end in ((4.76, 5.02), (4.40, 0.70)):  # from the top expanded layer to the panel that shows it in detail
        axes.plot([2.06, 2.62], [y, end], color="#c3c9d2", linewidth=1, linestyle=(0, (4, 3)))


def _layer(axes: Axes) -> None:
    """Draw one expanded layer in detail, from its input at the bottom to the next layer at the top."""
    _box(axes, (2.62, 0.70), 5.1, 4.32, "#d5dae1", "#fafbfc", width=1)
    axes.text(5.17, 5.25, "one expanded layer", ha="center", weight="bold", color=INK)
    axes.text(5.17, 0.24, "hidden state h from the layer below", ha="center", size=10, color=INK)
    for x in (3.87, 6.47):
        _arrow(axes, (5.17, 0.42), (x, 1.02), INK)
    _box(axes, (2.87, 1.04), 2.0, 0.82, FROZEN, FROZEN_FILL, ["pretrained layer", "frozen"])
    _box(axes, (5.47, 1.04), 2.0, 0.82, COPY, COPY_FILL, ["its copy", "trained"])
    axes.text(3.78, 2.36, "a", size=13, style="italic", ha="right", color=FROZEN, weight="bold")
    axes.text(6.56, 2.36, "b", size=13, style="italic", ha="left", color=COPY, weight="bold")
    _arrow(axes, (3.87, 1.88), (4.62, 3.38), FROZEN)
    _arrow(axes, (6.47, 1.88), (5.72, 3.38), COPY)
    _arrow(axes, (4.37, 2.82), (5.97, 2.82), PENALTY, style="<|-|>", dashed=True)
    axes.text(5.17, 2.50, "divergence", ha="center", size=11, color=PENALTY, weight="bold")
    axes.text(5.17, 2.40, "distance of a and b,\nadded to the loss", ha="center", va="top", size=9, color=PENALTY)
    _box(axes, (3.82, 3.40), 2.7, 0.82, "#c98a00", MIX_FILL, ["mix with alpha", "(1 \N{MINUS SIGN} alpha) a + alpha b"])
    _arrow(axes, (5.17, 4.24), (5.17, 4.84), INK)
    axes.text(5.30, 4.54, "to the next layer", size=10, color=INK, va="center")


def _box(
    axes: Axes,
    corner: Point,
    width_of: float,
    height: float,
    edge: str,
    fill: str,
    lines: list[str] | None = None,
    width: float = 1.4,
) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, width_of, height, boxstyle=style, ec=edge, fc=fill, lw=width))
    if lines:
        x, y = corner[0] + width_of / 2, corner[1] + height / 2
        axes.text(x, y + 0.15, lines[0], ha="center", va="center", weight="bold", color=INK)
        axes.text(x, y - 0.17, lines[1], ha="center", va="center", size=10, color=INK)


def _arrow(
    axes: Axes, start: Point, end: Point, color: str, style: str = "-|>", dashed: bool = False, size: float = 13
) -> None:
    line = (0, (4, 2)) if dashed else "solid"
    arrow = FancyArrowPatch(
        start, end, arrowstyle=style, color=color, lw=1.5, linestyle=line, mutation_scale=size, shrinkA=0, shrinkB=0
    )
    axes.add_patch(arrow)
