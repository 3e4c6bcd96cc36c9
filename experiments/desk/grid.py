"""Show a table in a notebook with filters and sorting, without widgets, and whole in a notebook that was saved.

Why not itables: without a network it puts 600 kB of script into each notebook, and `Styler` neither sorts nor filters.
Here the rows are plain HTML, which GitHub and an untrusted notebook show too. The script is 35 lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from experiments.common.hashing import sha256
from experiments.reporting.table import Table

if TYPE_CHECKING:
    import pandas as pd

COUNT = count()  # not chance: a notebook that runs again has the same text


class Grid:
    """A table whose heads sort, with a field that filters rows.

    above: a line over it. choosers: columns with a menu of their values. prose: whether cells hold sentences, which are
    wrapped.
    """

    def __init__(
        self, table: Table, above: str | Markup = "", choosers: Sequence[str] = (), prose: bool = False
    ) -> None:
        self.table, self.above, self.choosers, self.prose = table, above, choosers, prose

    @classmethod
    def of(cls, frame: pd.DataFrame, places: int = 3, **options: Any) -> Grid:
        """Show a pandas table, its index first. places: of numbers; smaller ones have digits. options: as above."""
        plain = frame.map(lambda cell: _rounded(cell, places)).reset_index()
        rows = tuple(tuple(str(cell) for cell in row) for row in plain.itertuples(index=False))
        return cls(Table("", tuple(map(str, plain.columns)), rows), **options)

    def _repr_html_(self) -> str:
        return str(self.html())

    def html(self) -> Markup:
        place = f"grid-{sha256(str(self.table))[:6]}-{next(COUNT)}"
        style = (STYLE + (PROSE if self.prose else "")).replace("PLACE", place)
        menus = Markup(" ").join(self._menu(name) for name in self.choosers)
        parts = (
            Markup("<style>{}</style>").format(Markup(style)),
            Markup("<p>{}</p>").format(self.above) if self.above else "",
            Markup('<p>{} <input placeholder="words in the row" aria-label="words in the row"></p>').format(menus),
            self.table.html(),
            Markup('<p class="note">{}</p>').format(self.table.note) if self.table.note else "",
        )
        inside = Markup("\n").join(part for part in parts if part)
        return Markup('<div id="{}">{}</div>\n').format(place, inside) + Markup(SCRIPT.replace("PLACE", place))

    def _menu(self, name: str) -> Markup:
        place = self.table.head.index(name)
        values = dict.fromkeys(row[place] for row in self.table.rows if len(row) > place)
        options = Markup().join(Markup("<option>{}</option>").format(value) for value in values)
        return Markup('<select data-column="{}"><option value="">every {}</option>{}</select>').format(
            place, name, options
        )


def _rounded(cell: Any, places: int) -> Any:
    """Round a number; of one that would be left with a digit or none, such as a learning rate, keep the first ones."""
    if not isinstance(cell, float | np.floating) or not math.isfinite(cell):
        return cell
    value = float(cell)
    small = 0 < abs(value) < 10.0 ** (1 - places)
    return float(f"{value:.{max(1, places - 1)}g}") if small else round(value, places)


STYLE = """
#PLACE { overflow-x: auto }
#PLACE th { cursor: pointer; text-align: left; white-space: nowrap }
#PLACE th[aria-sort=ascending]::after { content: " \\2191" }
#PLACE th[aria-sort=descending]::after { content: " \\2193" }
#PLACE td { text-align: left; vertical-align: top }
#PLACE .num { text-align: right }
#PLACE small { display: block; opacity: .75; white-space: nowrap }
#PLACE .best { font-weight: 700 }
#PLACE .better { background: rgba(52, 120, 190, .22) }
#PLACE .worse { background: rgba(230, 126, 34, .25) }
"""
PROSE = "#PLACE td { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 24em }"
SCRIPT = """<script>
(() => {
  const box = document.getElementById("PLACE");
  if (!box) return;
  const body = box.querySelector("tbody"), words = box.querySelector("input");
  const menus = [...box.querySelectorAll("select")], heads = [...box.querySelectorAll("th")];
  const text = (row, i) => (row.cells[i] ? row.cells[i].textContent.trim() : "");
  const seconds = {s: 1, min: 60, h: 3600, d: 86400};
  const value = (said) => {  // +.41[.35,.47], 1,024, 3 h, 12% and <.001
    const found = /^<?([-+]?[0-9,.]+(?:e[-+]?[0-9]+)?) ?(s|min|h|d)?(?:$|[ %[/])/.exec(said);
    return found ? parseFloat(found[1].replaceAll(",", "")) * (seconds[found[2]] || 1) : NaN;
  };
  const filter = () => {
    for (const row of body.rows) {
      const fits = menus.every((one) => !one.value || text(row, one.dataset.column) === one.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(words.value.toLowerCase()));
    }
  };
  const sort = (i) => {
    const down = heads[i].getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    heads[i].setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [p, q] = [a, b].map((row) => text(row, i)), [x, y] = [p, q].map(value), [u, v] = [x, y].map(isNaN);
      return u !== v ? u - v : sign * (u ? p.localeCompare(q) : x - y);  // what is no number is last
    };
    body.append(...[...body.rows].sort(order));
  };
  menus.forEach((one) => one.addEventListener("change", filter));
  words.addEventListener("input", filter);
  heads.forEach((one, i) => one.addEventListener("click", () => sort(i)));
})();
</script>"""
