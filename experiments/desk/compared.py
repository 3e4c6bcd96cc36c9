"""Show a comparison with names and numbers under the mouse: a panel for each figure, a row for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.common.colours import UNKNOWN, arm_colour
from experiments.comparison.compare import Comparison
from experiments.comparison.plot import COLUMNS, note_of, on_log_axis, significant_runs
from experiments.desk.explore import GRID, Json, marks, page_of, safe, titled
from experiments.records import Estimate
from experiments.reporting.text import p_text, with_interval
from experiments.scorecard.figures import FIGURES

LEFT, GAP, ROW, HEAD = 0.12, 0.03, 26, 90  # shares of the width for names and between panels; pixels of a row, a head


def comparison_hover(comparison: Comparison, title: str) -> Json:
    """Draw what `comparison_figure` draws; a point names its run, its interval, and its difference from the reference.

    Filled: differs significantly from the reference (a square); hollow: does not. Bars: 95 % intervals.
    """
    figures, names = comparison.figures(), list(comparison.cards)
    page = page_of([], titled(title, note_of(comparison).replace("\n", "; ")), xaxis="", yaxis="")
    layout = page["layout"]
    del layout["xaxis"], layout["yaxis"]
    for place, figure in enumerate(figures):
        page["data"].append(_panel(comparison, figure, place))
        layout |= _axes(comparison, figure, place, len(figures), names)
    layout["annotations"] = [_head(figure, place, len(figures)) for place, figure in enumerate(figures)]
    layout |= {"showlegend": False, "height": _down(len(figures)) * (HEAD + ROW * len(names)) + HEAD}
    return page


def _panel(comparison: Comparison, figure: str, place: int) -> Json:
    known = [(i, run, card[figure]) for i, (run, card) in enumerate(comparison.cards.items()) if figure in card]
    known = [(i, run, value) for i, run, value in known if math.isfinite(value.value)]
    solid = {comparison.reference, *significant_runs(comparison, figure)}
    colours = [arm_colour(*comparison.methods[run]) if run in comparison.methods else UNKNOWN for _, run, _ in known]
    texts = [_words(comparison, figure, run, value) for _, run, value in known]
    trace = marks(figure, [value.value for _, _, value in known], [i for i, _, _ in known], colours, texts, "circle")
    shapes = ["square" if run == comparison.reference else "circle" for _, run, _ in known]
    filled = ["" if run in solid else "-open" for _, run, _ in known]
    trace["marker"]["symbol"] = [shape + fill for shape, fill in zip(shapes, filled, strict=True)]
    return trace | {"error_x": _bars([value for _, _, value in known])} | _named(place)


def _bars(values: Sequence[Estimate]) -> Json:
    """Return error bars; one that has no interval has none."""
    above = [0 if e.high is None else e.high - e.value for e in values]
    below = [0 if e.low is None else e.value - e.low for e in values]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below, "width": 0, "thickness": 1.5,
        "color": "#949494",
    }  # fmt: skip


def _words(comparison: Comparison, figure: str, run: str, value: Estimate) -> str:
    """Say a run's figure, and how it differs from the reference: `full-0.001<br>KL 12.2 [11.9,13.1]<br>...`."""
    row = FIGURES[figure]
    said = f"{run}<br>{row.title} {with_interval(value, row.signed, row.places)}"
    own = next((d for d in comparison.differences if (d.name, d.figure) == (run, figure)), None)
    if own is None:
        return said
    less = with_interval(own.value, True, (3, 2, 2))
    return f"{said}<br>less {comparison.reference}: {less}, p {p_text(own.p)}, Holm {p_text(own.p_holm)}"


def _axes(comparison: Comparison, figure: str, place: int, count: int, names: Sequence[str]) -> Json:
    """Return the two axes of a panel: names in the first column alone, a log axis for KLs that are far apart."""
    x, y = _domain(place, count)
    number = str(place + 1) if place else ""
    shown = {
        "tickvals": list(range(len(names))),
        "ticktext": [safe(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
    }
    log: dict[str, Any] = {"type": "log", "dtick": "D2"} if on_log_axis(comparison, figure) else {"nticks": 5}
    return {
        f"xaxis{number}": {**GRID, **log, "domain": x, "anchor": f"y{number}"},
        f"yaxis{number}": {
            **GRID, **shown, "domain": y, "anchor": f"x{number}", "showticklabels": place % COLUMNS == 0,
        },
    }  # fmt: skip


def _head(figure: str, place: int, count: int) -> Json:
    x, y = _domain(place, count)
    at = {"x": x[0], "y": y[1], "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {"text": FIGURES[figure].labelled, "showarrow": False, "font": {"size": 12}, **at}


def _domain(place: int, count: int) -> tuple[list[float], list[float]]:
    """Return where a panel is: its ends from left to right and from below, as shares of the page."""
    across, down = min(COLUMNS, count), _down(count)
    row, column = divmod(place, COLUMNS)
    wide, high = (1 - LEFT) / across, 1 / down
    left, top = LEFT + column * wide, 1 - row * high
    x, y = [left, left + wide - GAP], [top - high * 0.72, top - high * 0.08]
    return [round(one, 4) for one in x], [round(one, 4) for one in y]


def _down(count: int) -> int:
    return max(1, math.ceil(count / COLUMNS))


def _named(place: int) -> Json:
    number = str(place + 1) if place else ""
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}
