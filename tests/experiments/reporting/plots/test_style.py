"""Names of others are drawn as they are: a dollar sign begins no formula."""

from __future__ import annotations

import pytest

from experiments.records import ArmResult
from experiments.reporting.page import image_bytes
from experiments.reporting.plots.forgetting import forgetting_figure
from tests.helpers.invented_arms import synthetic

NAMES = (r"$\frac{$", "$", "$x_1$", "a\\$b$")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_dollar_signs_is_no_formula(name: str) -> None:
    result: ArmResult = synthetic(name, 1e-3, 0.4, 0.9)
    figure = forgetting_figure([result], name)
    assert image_bytes(figure, "svg")
    texts = [text for text in figure.axes[0].texts if name in text.get_text()]
    assert texts
    assert not any(text.get_parse_math() for text in texts)
