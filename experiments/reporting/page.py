"""What the pages of reports share: the templates and their filters, figures as files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from experiments.records import Estimate
from experiments.reporting.tables import cost_cells, failure_text
from experiments.reporting.text import format_number, label, rate_text, with_interval
from experiments.scorecard.figure import RATE, Places

TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> jinja2.Environment:
    """The templates of reports, with the filters that write figures."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters: dict[str, Callable[..., Any]] = {
        "label": label,
        "number": format_number,
        "rate": rate_text,
        "costs": cost_cells,
        "failure": failure_text,
        "interval": _interval,
        "tint": tint,
    }
    environment.filters.update(filters)
    return environment


def _interval(estimate: Estimate, places: Places = RATE) -> str:
    """The bracket alone; empty where there is none."""
    return with_interval(estimate, places=places).partition(" ")[2]


def tint(retention: float) -> str:
    """Background of a heat-table cell: white at 1, orange where less is kept, blue where more; full at .5 and 1.5."""
    if not math.isfinite(retention):
        return "#f1f3f5"
    strength = min(1.0, abs(retention - 1) / 0.5)
    full = (230, 126, 34) if retention < 1 else (52, 120, 190)
    mixed = (round(255 + (c - 255) * 0.75 * strength) for c in full)
    return "#" + "".join(f"{c:02x}" for c in mixed)


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file. kind: `svg`, the same bytes at any time of day, or `png`, at 200 dpi."""
    data = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(data, format=kind, dpi=200, metadata=metadata)
    return data.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as base64, for the page itself."""
    return base64.b64encode(image_bytes(figure, "svg")).decode()
