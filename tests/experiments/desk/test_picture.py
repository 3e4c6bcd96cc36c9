"""The picture of a run that trains."""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from experiments.common.colours import arm_colour
from experiments.desk.live import Follower
from experiments.desk.picture import html, live_figure
from tests.helpers.live_run import begin_arm, log, make_live_run

HOSTILE = "<img src=x onerror=alert(1)>"


def test_lines_have_the_colour_of_their_method_and_end_at_the_last_value(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path)
    card = {"gain": 0.5, "retention": 0.9, "kl": 0.1, "layers/divergence_03": 0.2, "layers/alpha_03": 0.5}
    log(begin_arm(folder, "full-0.001"), {1: {"loss": 3.0}, 5: {"loss": 2.0, **card}}, seconds=1)
    loss, path, kl, layers, alpha = live_figure(Follower(folder.name, tmp_path).look()).axes
    (line,) = loss.lines
    assert list(line.get_ydata()) == [3.0, 2.0]
    assert to_hex(line.get_color()) == arm_colour("full", 1e-3)
    assert list(path.lines[0].get_xdata()) == [0.0, 0.5]  # from the base model on
    assert list(kl.lines[0].get_ydata()) == [0.1]
    assert [bar.get_height() for bar in layers.patches] == [0.2]
    assert list(alpha.lines[0].get_ydata()) == [0.5]


def test_names_of_lines_that_end_together_do_not_cover_each_other(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path, arms=["full", "control", "lora"])
    for i, arm in enumerate(("full-0.001", "control-0.001", "lora-0.001")):
        log(begin_arm(folder, arm), {1: {"loss": 3.0}, 5: {"loss": 2.0 + i / 1000}}, seconds=1)
    figure = live_figure(Follower(folder.name, tmp_path).look())
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_panels_without_values_say_so(tmp_path: Path) -> None:
    figure = live_figure(Follower(make_live_run(tmp_path).name, tmp_path).look())
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said == ["nothing measured yet"] * 3 + ["no copies, or no step yet"]


def test_names_of_others_are_text(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path, arms=[HOSTILE])
    page = html(Follower(folder.name, tmp_path).look())
    assert HOSTILE not in page
    assert "&lt;img src=x" in page
    assert "data:image/png;base64," in page
