"""The picture of the dial: a point per share, in order, and nothing of another operation."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.records import ArmResult, Estimate
from experiments.reporting.plots.dial import dial_figure
from experiments.scorecard.figures import FIGURES


def dialled(alpha: float, gain: float, retention: float, operation: str = "dial") -> ArmResult:
    card = {"gain": Estimate(gain, gain - 0.1, gain + 0.2), "retention": Estimate(retention, None, None)}
    result = ArmResult("control", "control", 1e-3, "finished", operation=f"{operation} {alpha:g}")
    result.scorecard = card
    return result


def test_points_are_in_the_order_of_alpha_with_their_intervals() -> None:
    figure = dial_figure([dialled(1.0, 0.3, 0.8), dialled(0.0, 0.0, 1.0), dialled(0.5, 0.2, 0.9)], "control")
    gain, retention = figure.axes
    line, _, (bars,) = gain.containers[0].lines
    np.testing.assert_allclose(np.asarray(line.get_xydata(), float), [[0, 0], [0.5, 0.2], [1, 0.3]])
    np.testing.assert_allclose(np.asarray(bars.get_segments()[2], float), [[1, 0.2], [1, 0.5]])
    np.testing.assert_allclose(np.asarray(retention.containers[0].lines[0].get_ydata(), float), [1.0, 0.9, 0.8])


def test_kl_has_a_panel_if_it_was_measured() -> None:
    points = [dialled(0.0, 0.0, 1.0), dialled(1.0, 0.3, 0.8)]
    for point, kl in zip(points, (0.0, 2.0), strict=True):
        point.scorecard["kl"] = Estimate(kl, kl, kl)
    *_, kl = dial_figure(points, "control", trained=0.5).axes
    assert kl.get_title(loc="left") == "KL, nats per token"
    assert list(kl.containers[0].lines[0].get_ydata()) == [0.0, 2.0]
    assert [text.get_text() for text in kl.texts] == [" trained here"]


def test_the_gain_of_texts_is_in_nats_and_what_was_not_measured_has_no_panel() -> None:
    points = [dialled(alpha, 0.1, 1.0) for alpha in (0.0, 1.0)]
    for point in points:
        point.scorecard = {"new_nll_drop": Estimate(0.12, 0.1, 0.14)}
    (gain,) = dial_figure(points, "control").axes
    assert gain.get_title(loc="left") == FIGURES["new_nll_drop"].labelled
    assert list(gain.containers[0].lines[0].get_ydata()) == [0.12, 0.12]


def test_another_operation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--op dial, but got 'control 0\.001 wise 0\.5'"):
        dial_figure([dialled(0.5, 0.1, 1.0, "wise")], "control")
