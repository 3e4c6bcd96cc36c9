"""The dial: each turn shows the replies that its line of Python gives, next to the base model's."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("ipywidgets")

import ctrl
from experiments.desk.dial import Dial


def echo(model: str, tokenizer: str, prompts: Sequence[str], alphas: Sequence[float], tokens: int) -> pd.DataFrame:
    columns = {f"alpha {a:g}": [f"<{model}> {p} at {a:g}, {tokens}" for p in prompts] for a in alphas}
    return pd.DataFrame(columns, index=pd.Index(prompts, name="prompt"))


@pytest.fixture
def dial(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("experiments.desk.dial.replies_at", echo)
    model: Any = "m"
    return Dial(model, model, ["1 + 1 =", "two\nlines"], alpha=0.5, tokens=8)


def shown(dial: Any) -> str:
    return html.unescape(dial.shown.value)


def test_it_starts_where_the_model_was_trained(dial: Any) -> None:
    assert "alpha 0.5, trained here" in shown(dial)
    assert "1 + 1 = at 0.5, 8" in shown(dial)
    assert "1 + 1 = at 0, 8" in shown(dial)  # the base model
    assert "two lines at 0.5" in shown(dial)
    assert "<m>" not in dial.shown.value  # replies are text


def test_the_precision_of_the_run_is_that_of_the_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    def precise(*asked: Any, precision: str) -> pd.DataFrame:
        return echo(*asked).map(lambda text: f"{text} in {precision}")

    monkeypatch.setattr("experiments.desk.dial.replies_at", precise)
    model: Any = "m"
    dial = Dial(model, model, ["1 + 1 ="], tokens=8, precision="fp32")
    assert "at 0.5, 8 in fp32" in shown(dial)
    assert "8, precision='fp32')" in shown(dial)


def test_alpha_0_of_plerp_is_not_called_the_base_model(monkeypatch: pytest.MonkeyPatch, tiny_llama: Any) -> None:
    monkeypatch.setattr("experiments.desk.dial.replies_at", echo)
    model = ctrl.expand(tiny_llama, ctrl.ControlConfig(layers=1, interpolation="plerp", divergence="none"))
    text = shown(Dial(model, model, ["1 + 1 ="], tokens=8))
    assert "alpha 0: P a, not the base model" in text
    assert "base model (alpha 0)" not in text


def test_a_turn_shows_the_python_that_it_equals(dial: Any) -> None:
    dial.slider.value = 1.2
    line = html.unescape(dial.shown.value).removeprefix("<pre>>>> ").split("</pre>")[0]
    made = eval(line, {"replies_at": echo, "model": "m", "tokenizer": "m"})
    assert list(made.columns) == ["alpha 0", "alpha 1.2"]
    assert all(reply in shown(dial) for reply in made.to_numpy().ravel())
    assert "trained here" not in shown(dial)
    dial.prompts.value = " \n"
    assert "at 1.2" not in shown(dial)
