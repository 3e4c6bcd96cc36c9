"""A comparison as text and as files: compare.md (or .html), compare.png, compare.csv."""

from __future__ import annotations

from pathlib import Path

from experiments.common.errors import CompareError
from experiments.common.files import write_bytes, write_text
from experiments.common.own_files import is_own
from experiments.comparison.compare import Comparison, Difference
from experiments.comparison.plot import comparison_figure
from experiments.records import Estimate
from experiments.reporting.differences import SIGNIFICANT, differences_table, remark
from experiments.reporting.page import image_bytes, inline_svg, write_page
from experiments.reporting.table import Row, Table
from experiments.reporting.text import figure_text
from experiments.scorecard.figures import FIGURES

FILES = (".md", ".png", ".csv", ".pdf", ".svg", ".json", ".txt", ".htm")  # no folder is meant by such a name
TITLE = "Runs on their common items"
CSV = ("kind", "run", "figure", "value", "low", "high", "p", "p_holm")
MARKS = {".md": rf"\A# {TITLE}\n", ".html": f"<title>{TITLE}</title>", ".csv": rf"\A{','.join(CSV[:4])},"}


def figures_table(comparison: Comparison) -> Table:
    """Show one row a run, one column a figure; in HTML tinted where Holm's p of the difference is below .05."""
    names = comparison.figures()
    rows = tuple((run, *(figure_text(card, name) for name in names)) for run, card in comparison.cards.items())
    hints = {FIGURES[name].title: FIGURES[name].meaning for name in names}
    marks = {
        (list(comparison.cards).index(d.name), names.index(d.figure) + 1): f'class="{_verdict(d)}"'
        for d in comparison.differences
        if d.p_holm < SIGNIFICANT and d.figure in names
    }
    note = (
        f"Blue: significantly better than {comparison.reference}, orange: worse (Holm's p below .05)." if marks else ""
    )
    return Table("Figures", ("run", *(FIGURES[name].title for name in names)), rows, note, hints=hints, marks=marks)


def _verdict(difference: Difference) -> str:
    """Return how a significant difference is marked: better, worse, or differs where neither direction is better."""
    better = FIGURES[difference.figure].better
    return (
        "differs" if better is None else "better" if (difference.value.value > 0) is (better == "higher") else "worse"
    )


def format_comparison(comparison: Comparison) -> str:
    """Write the comparison for a terminal."""
    return "\n\n".join([*(table.text() for table in _tables(comparison)), "\n".join(_remarks(comparison))])


def write_comparison(comparison: Comparison, out: Path, page: bool = False) -> Path:
    """Write compare.md, compare.png and compare.csv into the folder `out`. Returns the path of the text.

    page: compare.html, which needs no other file, instead of compare.md. A name that ends in .html is that page, and
    the picture and the table have its name too. Raises CompareError for the name of another kind of file, and for files
    of these names that no earlier call has written.
    """
    if out.suffix in FILES:
        raise CompareError(f"--out {out}: give a folder, which gets all files, or a name that ends in .html")
    path = out if out.suffix == ".html" else out / ("compare.html" if page else "compare.md")
    _check_own(path, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = comparison_figure(comparison, TITLE)
    write_page(
        path,
        "compare",
        question=TITLE,
        tables=_tables(comparison),
        image=inline_svg(figure) if path.suffix == ".html" else "",
        figures=[FIGURES[name] for name in comparison.figures()],
        remarks=_remarks(comparison),
    )
    write_bytes(path.with_suffix(".png"), image_bytes(figure, "png"))
    write_text(path.with_suffix(".csv"), comparison_csv(comparison))
    return path


def _check_own(path: Path, out: Path) -> None:
    """Raise CompareError for a text, table or picture of others. A picture has no mark: it goes by the text's."""
    there = [one for one in map(path.with_suffix, (path.suffix, ".csv", ".png")) if one.exists()]
    others = [one.name for one in there if not is_own(one, MARKS.get(one.suffix, ""))]
    if path not in there:  # the text is written first
        others = [one.name for one in there if one.suffix == ".png" or one.name in others]
    if others:
        raise CompareError(
            f"--out {out}: text, table and picture have one name, and {' and '.join(others)} would be replaced, which "
            "no comparison wrote: choose another name, or move it away"
        )


def comparison_csv(comparison: Comparison) -> str:
    """Write every figure of every card, and the differences, as CSV: kind is `figure` or `difference`."""
    rows: list[Row] = []
    for run, card in comparison.cards.items():
        rows += [("figure", run, name, *_numbers(value), None, None) for name, value in card.items()]
    rows += [("difference", d.name, d.figure, *_numbers(d.value), d.p, d.p_holm) for d in comparison.differences]
    return Table("", CSV, tuple(rows)).csv()


def _tables(comparison: Comparison) -> list[Table]:
    found = comparison.differences
    return [figures_table(comparison), *([differences_table(found, comparison.reference, "run")] if found else [])]


def _remarks(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{suite} {n}" for suite, n in comparison.items.items() if n)
    remarks = [f"Items in common: {counts}."] if counts else []
    if comparison.matched_gain is not None:
        remarks.append(
            f"Retention at matched gain is read off each trajectory at a gain of {comparison.matched_gain:.3f}, the "
            "highest that all runs with a gain reach; where a run was evaluated once, on a straight line from the base."
        )
    if "average_harmonic" in comparison.figures():
        remarks.append(f"Harmonic average: of retention and of the gain over that of {comparison.reference}.")
    if comparison.differences:
        remarks.append(remark("run"))
    return [*remarks, *comparison.notes]


def _numbers(value: Estimate) -> tuple[float, float | None, float | None]:
    return value.value, value.low, value.high
