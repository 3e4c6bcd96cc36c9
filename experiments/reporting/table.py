"""One table in all its forms: Markdown, aligned text, HTML and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from markupsafe import Markup

from experiments.common.printable import csv_cell

Cell: TypeAlias = str | float | None
Row: TypeAlias = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Cells by row. A row that is shorter than the head is a failure: its last cell spans the rest and says why.

    note: how to read the table, one line below it. numbers: how many of the last columns are aligned to the right.
    hints: explanations of columns by their title, and marks: attributes of cells by (row, column), in HTML alone.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    numbers: int = 0
    hints: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Cell]], head: Iterable[str] = ()) -> Table:
        """Make a table from a mapping per row. head: the columns; default: all keys, in the order of the rows."""
        names = tuple(head) or tuple(dict.fromkeys(name for row in rows for name in row))
        return cls("", names, tuple(tuple(row.get(name) for name in names) for row in rows))

    def markdown(self) -> str:
        """Write a Markdown table; each cell is on one line."""
        filled = ((*row, *[""] * (len(self.head) - len(row))) for row in self.rows)
        return "\n".join(
            f"| {' | '.join(_one_line(cell) for cell in row)} |"
            for row in (self.head, ["---"] * len(self.head), *filled)
        )

    def text(self, width: int | None = None) -> str:
        """Align the columns, with two spaces between them, or one if the table would be wider than `width`.

        The line of a failure is cut at `width`.
        """
        rows = [tuple(_text(cell) for cell in row) for row in (self.head, *self.rows)]
        own = [row if len(row) == len(self.head) else row[:-1] for row in rows]
        widths = [max(len(row[i]) for row in own if i < len(row)) for i in range(len(self.head))]
        total = sum(widths) + 2 * (len(widths) - 1)
        gap = 2 if width is None or total <= width else 1
        first, *others = [self._line(row, widths, gap, width) for row in rows]
        return "\n".join([first, "-" * (sum(widths) + gap * (len(widths) - 1)), *others])

    def html(self, kind: str = "") -> Markup:
        """Write <table class=kind>; intervals are small, and below their value.

        Each cell knows its column's title (`data-title`): on a phone a row becomes a card, and the style writes it.
        """
        head = Markup().join(
            Markup("<th{}{}>{}</th>").format(
                Markup(' class="num"') if self._is_number(i) else "",
                Markup(' title="{}"').format(self.hints[title]) if title in self.hints else "",
                title,
            )
            for i, title in enumerate(self.head)
        )
        rows = Markup("\n").join(
            Markup("<tr>{}</tr>").format(Markup().join(self._cell(i, j, cell) for j, cell in enumerate(row)))
            for i, row in enumerate(self.rows)
        )
        name = Markup(' class="{}"').format(kind) if kind else ""
        return Markup("<table{}>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>").format(name, head, rows)

    def csv(self) -> str:
        """Write the cells as they are (`csv_cell`), with a head; None is an empty cell."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([map(csv_cell, row) for row in (self.head, *self.rows)])
        return text.getvalue()

    def _is_number(self, column: int) -> bool:
        return column >= len(self.head) - self.numbers

    def _line(self, row: Sequence[str], widths: Sequence[int], gap: int, width: int | None) -> str:
        cells = [
            c.rjust(w) if self._is_number(i) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))
        ]
        if len(row) == len(widths):
            return (" " * gap).join(cells).rstrip()
        return _cut((" " * gap).join([*cells[:-1], row[-1]]), width)

    def _cell(self, row: int, column: int, cell: Cell) -> Markup:
        text, spanned = _text(cell), len(self.head) - column
        if column == len(self.rows[row]) - 1 and spanned > 1:
            return Markup('<td class="reason" colspan="{}">{}</td>').format(spanned, text)
        value, bracket, interval = text.partition(" [")
        small = bracket and text.endswith("]")
        mark = self.marks.get((row, column), 'class="num"' if self._is_number(column) else "")
        return Markup('<td{} data-title="{}">{}{}</td>').format(
            Markup(f" {mark}") if mark else "",
            self.head[column],
            value if small else text,
            Markup("<small>[{}</small>").format(interval) if small else "",
        )


def _one_line(cell: Cell) -> str:
    return " ".join(_text(cell).split()).replace("|", chr(92) + "|")


def _text(cell: Cell) -> str:
    """Return a cell as text; one that is HTML already (Markup, such as a link) stays so."""
    return "" if cell is None else cell if isinstance(cell, str) else str(cell)


def _cut(text: str, width: int | None) -> str:
    first, *more = text.split("\n", 1)
    text = f"{first} ..." if more else first
    return text if width is None or len(text) <= width else text[: width - 3] + "..."
