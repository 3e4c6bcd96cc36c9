"""Show a study's front as a picture whose points are buttons: a click shows the trial, its run and its flips.

No widget and no kernel is needed, so it works in a saved notebook too: all panels are in the page, one is shown.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.common.errors import BenchError
from experiments.common.hashing import sha256
from experiments.desk.answers import answers
from experiments.desk.grid import COUNT
from experiments.reporting.page import image_bytes
from experiments.studies.report.pictures import study_asked
from experiments.studies.report.plots import pareto_figure
from experiments.studies.trials import Trial

if TYPE_CHECKING:
    from experiments.studies.config import StudyConfig
    from experiments.studies.queue import Store

DPI = 110
FLIPS = ("lost", "won")


class Viewed(Protocol):
    """What is read of a study: `desk.search.StudyView`, which imports this module."""

    root: Path
    study: StudyConfig
    store: Store

    @property
    def trials(self) -> list[Trial]: ...

    def words(self, number: int) -> str: ...

    def run(self, number: int) -> Path: ...


class ClickedFront:
    """A study's trials by its first two objectives. count: flips of each kind in a trial's panel.

    most: trials whose flips are read, those on the front first: each takes a second, and 5 to 10 kB of the page.
    """

    def __init__(self, view: Viewed, count: int = 3, most: int = 12) -> None:
        self.view, self.count = view, count
        self.trials = [trial for trial in view.trials if trial.values and len(trial.values) > 1]
        self.front = view.store.front()
        first = sorted(self.trials, key=lambda trial: trial.number not in self.front)
        self.read = {trial.number for trial in first[:most]}

    def _repr_html_(self) -> str:
        asked = study_asked(self.view.study, self.trials, self.view.root)
        figure = pareto_figure(self.trials, self.front, self.view.study.objectives, asked)
        picture = image_bytes(figure, "png", DPI)
        place = f"front-{sha256(picture.hex())[:6]}-{next(COUNT)}"
        open_first = next(iter(self.front), None)
        buttons, panels = Markup(), Markup()
        for trial, (x, y) in zip(self.trials, _places(figure, self.trials), strict=True):
            words = self.view.words(trial.number) if trial.runs else f"trial {trial.number}"
            buttons += BUTTON.format(trial.number, words, f"{100 * x:.2f}", f"{100 * (1 - y):.2f}")
            hidden = "" if trial.number == open_first else " hidden"
            panels += PANEL.format(trial.number, Markup(hidden), self._panel(trial, words))
        image = IMAGE.format(base64.b64encode(picture).decode(), buttons)
        style = Markup("<style>{}</style>").format(Markup(STYLE.replace("PLACE", place)))
        box = Markup('<div id="{}">{}{}{}</div>').format(place, style, image, panels)
        return str(box + Markup(SCRIPT.replace("PLACE", place)))

    def _panel(self, trial: Trial, words: str) -> Markup:
        head = Markup("<p><b>{}</b></p>").format(words)
        if not trial.runs:
            return head
        folder, links = self.view.run(trial.number), Markup()
        if (folder / "report.html").is_file():
            links = Markup('<a href="{}">report of its run</a> &middot; ').format(
                os.path.relpath(folder / "report.html")
            )
        head += Markup("<p>{}the same in Python: <code>view.answers({})</code></p>").format(links, trial.number)
        if trial.number not in self.read:
            return head
        with contextlib.suppress(BenchError):  # its records are on another machine
            found = answers(folder, self.view.root, count=self.count)
            table = found.table(FLIPS)
            return head + (table.html() if table.rows else Markup("<p>no answer turned</p>"))
        return head + Markup("<p>the answers of this trial are not on this machine</p>")


def _places(figure: Figure, trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Return where the trials are drawn, as shares of the figure's width and height."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    to_share = figure.transFigure.inverted()
    found: list[tuple[float, float]] = []
    for trial in trials:
        x, y = to_share.transform(axes.transData.transform((trial.values or [])[:2]))
        found.append((float(x), float(y)))
    return found


IMAGE = Markup(
    '<div class="picture"><img alt="trials by two objectives; a click on a point shows the trial" '
    'src="data:image/png;base64,{}">{}</div>'
)
BUTTON = Markup('<button data-trial="{}" title="{}" style="left: {}%; top: {}%"></button>')
PANEL = Markup('<div class="panel" data-trial="{}"{}>{}</div>')
STYLE = """
#PLACE .picture { position: relative; width: 720px; max-width: 100% }
#PLACE img { width: 100%; display: block }
#PLACE button { position: absolute; width: 22px; height: 22px; margin: -11px 0 0 -11px; padding: 0;
  border: 2px solid transparent; border-radius: 50%; background: transparent; cursor: pointer }
#PLACE button:hover, #PLACE button:focus-visible { border-color: #5b6470 }
#PLACE button[aria-pressed=true] { border-color: #1d2430 }
#PLACE td, #PLACE th { text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 24em }
"""
SCRIPT = """<script>
(() => {
  const box = document.getElementById("PLACE");
  if (!box) return;
  const buttons = [...box.querySelectorAll("button")], panels = [...box.querySelectorAll(".panel")];
  const show = (trial) => {
    panels.forEach((one) => { one.hidden = one.dataset.trial !== trial; });
    buttons.forEach((one) => one.setAttribute("aria-pressed", one.dataset.trial === trial));
  };
  buttons.forEach((one) => one.addEventListener("click", () => show(one.dataset.trial)));
})();
</script>"""
