"""The pictures of alignment: what is drawn where, and what cannot be drawn."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from experiments.evaluation.suites.alignment import PAIRS, States, sentences
from experiments.reporting.plots.alignment import alignment_figure, projection_figure

RNG = np.random.default_rng(0)
BASE = States(RNG.normal(size=(3, 60, 8)))
MOVED = States(BASE.layers + 0.1 * RNG.normal(size=BASE.layers.shape))


def table(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns).rename_axis("layer")


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def meshes(figure: Figure) -> list[QuadMesh]:
    found = [c for axes in figure.axes for c in axes.collections if isinstance(c, QuadMesh)]
    return [mesh for mesh in found if mesh.axes.get_title(loc="left")]  # colour bars have meshes too


def test_a_panel_per_metric_a_row_per_arm_a_column_per_layer() -> None:
    full, control = table(cosine=[0.9, 0.5, 0.7], relative_l2=[0.1, 0.2, 0.4]), table(cosine=[1.0, 1.0, 0.99])
    figure = alignment_figure({"full": full, "control": control}, "title")
    cosine, distance = meshes(figure)
    np.testing.assert_array_equal(cosine.get_array(), [[0.9, 0.5, 0.7], [1.0, 1.0, 0.99]])
    assert cosine.axes.get_title(loc="left") == "mean cosine"
    assert [label.get_text() for label in cosine.axes.get_yticklabels()] == ["full", "control"]
    assert cosine.get_clim() == (0.5, 1.0)
    assert distance.get_clim() == (0.0, 0.4)
    shown = np.ma.masked_invalid(distance.get_array())
    assert shown[1].mask.all()  # control's table has no distances
    assert [t.get_text() for t in cosine.axes.texts] == [".700", ".997", "mean"]
    assert png(figure).startswith(b"\x89PNG")


def test_dark_is_far() -> None:
    """A similarity of 1 and a distance of 0 have the same light colour."""
    figure = alignment_figure({"arm": table(cka=[1.0, 0.2], relative_l2=[0.0, 3.0])}, "title")
    near, far = zip(*(mesh.to_rgba([mesh.get_array().flat[i] for i in (0, 1)]) for mesh in meshes(figure)), strict=True)
    np.testing.assert_allclose(near[0], near[1], atol=0.01)
    assert min(np.min(colour[:3]) for colour in near) > 0.8 > 0.2 > max(np.max(colour[:3]) for colour in far)


def test_layers_that_an_arm_lacks_are_blank() -> None:
    some = table(alpha=[0.5, 0.6]).set_axis([1, 3], axis=0)
    (mesh,) = meshes(alignment_figure({"all": table(alpha=[0.1] * 4), "some": some}, "title"))
    values = np.ma.masked_invalid(mesh.get_array())
    assert values.mask[1].tolist() == [True, False, True, False]
    assert mesh.get_clim() == (0.0, 1.0)


def test_differences_of_rounding_get_no_colour() -> None:
    (mesh,) = meshes(alignment_figure({"arm": table(cosine=[1.0, 1.0 - 1e-9])}, "title"))
    assert mesh.get_clim() == (0.99, 1.0)


def test_nothing_to_draw() -> None:
    for tables in ({}, {"arm": table(cosine=[])}):
        with pytest.raises(ValueError, match="no arm has a table with a layer in it"):
            alignment_figure(tables, "title")


def test_projection_has_a_panel_per_arm_and_layer_and_all_thirty_sentences() -> None:
    figure = projection_figure(BASE, {"full": MOVED, "control": BASE}, [0, 2], "title")
    assert len(figure.axes) == 4
    first, _, third, _ = figure.axes
    assert (first.get_title(), first.get_ylabel(), third.get_ylabel()) == ("layer 0", "full", "control")
    points = [line for line in first.lines if line.get_marker() not in ("None", "")]
    assert sum(len(line.get_xdata()) for line in points) == 2 * len(sentences()) // 2
    assert len({line.get_color() for line in points}) == len({line.get_marker() for line in points}) == len(PAIRS)
    lengths = [np.ptp(line.get_xdata()) for line in third.lines if line.get_marker() in ("None", "")]
    assert len(lengths) == 30
    assert max(lengths) == 0  # the base against itself
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("layers", [[], [3], [-1]])
def test_layers_that_there_are_not(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"give one or more of 0\.\.2"):
        projection_figure(BASE, {"full": MOVED}, layers, "title")
