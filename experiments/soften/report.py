"""Write what softening found: words, the table and picture of the path, report.html, the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from experiments.common.files import write_json, write_text
from experiments.common.printable import escaped, without_codes
from experiments.common.yaml_values import dump_yaml
from experiments.measure.report import plain_figures
from experiments.measure.session import Session
from experiments.posthoc.choice import SHOWN, Point
from experiments.records import Estimate
from experiments.reporting.page import inline_svg, write_page
from experiments.reporting.plots.caption import Asked, asked_of
from experiments.reporting.table import Table
from experiments.reporting.text import figure_text
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.halves import of_half
from experiments.soften.path import WeightPath
from experiments.soften.plot import path_figure

Half = Callable[[Session, str, bool], dict[str, Estimate]]
NAMES = {"weights": "WiSE-FT: alpha is the same in all weights", "depth": "LiNeS: alpha rises to 1 with depth"}


@dataclass(frozen=True)
class SoftenReport:
    """What is printed, and where the page is. cards: figures of each point on the items that did not choose.

    asked: how much they rest on, for the caption of a picture.
    """

    words: list[str]
    table: Table
    cards: Mapping[float, Mapping[str, Estimate]]
    page: Path
    asked: Asked = field(default_factory=Asked)

    def text(self) -> str:
        return "\n".join([*self.words, "", self.table.text()])


def write_report(
    session: Session,
    path: WeightPath,
    measured: Mapping[float, str],
    best: Point | None,
    rule: str,
    remarks: Sequence[str],
    half: Half,
) -> SoftenReport:
    """Write report.html, report.txt and figures.json.

    measured: names of the points' records. best: the chosen point. rule: how it was chosen.
    remarks: what else a reader must know of the path.
    """
    cards = {alpha: half(session, name, False) for alpha, name in measured.items()}
    words = [_sentence(cards, best, rule), *remarks]
    asked = asked_of(of_half(session.base_records(), choosing=False))
    picture = path_figure(cards, best.alpha if best else None, asked)
    page = session.folder / "report.html"
    report = SoftenReport(words, _table(cards, best), cards, page, asked)
    values = {
        "question": f"How far from {session.base.name} to the model?",
        "config": session.config,
        "yaml": dump_yaml(session.config.to_dict()),
        "words": words,
        "tables": [report.table],
        "pictures": [("Figures along the path", inline_svg(picture))],
        "notes": [
            f"{NAMES[path.by]}. alpha 0 is the base, alpha 1 the model itself.",
            "The point was chosen on half of the questions. The figures here are those of the other half.",
            session.arithmetic,
        ],
        "figures": [FIGURES[name] for name in SHOWN if any(name in card for card in cards.values())],
        "date": f"{datetime.now():%d %B %Y, %H:%M}",
    }
    write_page(page, "measure", **values)
    write_json(session.folder / "figures.json", {name: plain_figures(cards[a]) for a, name in measured.items()})
    write_text(session.folder / "report.txt", without_codes(report.text()) + "\n")
    return report


def write_card(folder: Path, session: Session, path: WeightPath, alpha: float, rule: str, report: SoftenReport) -> None:
    """Write the README.md of the softened model."""
    card, whole = report.cards[alpha], report.cards[1.0]
    rows = tuple(
        (FIGURES[name].title, figure_text(card, name), figure_text(whole, name)) for name in SHOWN if name in card
    )
    table = Table("Figures", ("figure", f"this model (alpha {alpha:g})", "the model itself (alpha 1)"), rows)
    text = [
        "# A softened model",
        "",
        f"Weights between those of {escaped(session.base.name)} and of a model trained from it, without training:",
        f"W0 + alpha (W - W0), alpha {alpha:g} ({NAMES[path.by]}). Chosen: {rule}.",
        "",
        table.markdown(),
        "",
        "Measured on questions that did not choose it; brackets: 95 % intervals.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def _sentence(cards: Mapping[float, Mapping[str, Estimate]], best: Point | None, rule: str) -> str:
    if best is None:
        return f"No point of the path fits, so nothing was written. Wanted: {rule}."
    card, whole = cards[best.alpha], cards[1.0]
    parts = [
        f"{FIGURES[name].title} {figure_text(card, name)}"
        + (f" (the model itself {figure_text(whole, name)})" if best.alpha < 1 else "")
        for name in (*GAINS, "retention", "nfr")
        if name in card and name in whole
    ]
    of = "" if best.alpha < 1 else ", the model itself"
    return f"alpha {best.alpha:g}{of}: " + "; ".join(parts) + f". Chosen: {rule}."


def _table(cards: Mapping[float, Mapping[str, Estimate]], best: Point | None) -> Table:
    figures = [FIGURES[name] for name in SHOWN if any(name in card for card in cards.values())]
    chosen = best.alpha if best else None
    rows = tuple(
        (f"{alpha:g}{' (chosen)' if alpha == chosen else ''}", *(figure_text(card, figure.name) for figure in figures))
        for alpha, card in cards.items()
    )
    return Table("The path", ("alpha", *(figure.title for figure in figures)), rows)
