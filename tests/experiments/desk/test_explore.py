"""Pictures of a notebook: what they hold for JupyterLab and for others, and that each point has its name."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.common.colours import arm_colour
from experiments.desk.explore import (
    PLOTLY,
    Picture,
    branch_distance,
    branches_hover,
    forgetting_hover,
    projection_hover,
)
from experiments.evaluation.suites.alignment import States, sentences
from experiments.records import ArmResult, Estimate

COUNT = len(sentences())


def states(seed: int, layers: int = 3) -> States:
    rng = np.random.default_rng(seed)
    found = States(rng.normal(size=(layers, COUNT, 4)))
    found.pretrained, found.expanded = {1: np.ones((COUNT, 4))}, {1: np.ones((COUNT, 4)) * 1.5}
    found.alpha = {1: np.full(COUNT, 0.25)}
    return found


def result(arm: str, method: str) -> ArmResult:
    point = {"step": 8, "gain": Estimate(0.4, 0.3, 0.5), "retention": Estimate(0.9, 0.8, 1.0)}
    return ArmResult(arm, method, 1e-3, "finished", trajectory=[{"step": 0}, point])


def test_a_picture_is_a_png_and_what_jupyterlab_draws() -> None:
    figure = Figure(figsize=(5, 3))
    data, metadata = Picture(figure, {"data": [], "layout": {}})._repr_mimebundle_()
    assert base64.b64decode(data["image/png"])[1:4] == b"PNG"
    assert data[PLOTLY] == {"data": [], "layout": {}}
    assert metadata == {"image/png": {"width": 480}}
    assert PLOTLY not in Picture(figure)._repr_mimebundle_()[0]


def test_an_arm_has_the_colour_of_its_method_and_numbers_with_intervals() -> None:
    page = forgetting_hover([result("a <b>", "full"), result("c", "control")], "n: 64 new; 1 seed")
    first, second = page["data"]
    assert (first["x"], first["y"]) == ([0, 0.4], [1, 0.9])
    assert first["line"]["color"] == arm_colour("full", 1e-3) != second["line"]["color"]
    assert first["text"][0] == "step 0<br>base model"
    assert "step 8" in first["text"][1]
    assert "0.900 [0.800, 1.000]" in first["text"][1]
    assert first["name"].startswith("a &lt;b>")
    assert "n: 64 new; 1 seed" in page["layout"]["title"]["text"]
    json.dumps(page)


def test_a_point_has_its_own_step_if_one_before_it_is_no_number() -> None:
    arm = result("a", "full")
    arm.trajectory.insert(1, {"step": 4, "gain": Estimate(float("nan")), "retention": Estimate(0.9)})
    (line,) = forgetting_hover([arm])["data"]
    assert [text.partition("<")[0] for text in line["text"]] == ["step 0", "step 8"]


@pytest.mark.parametrize("status", ["failed", "pruned"])
def test_an_arm_that_did_not_finish_says_so_and_ends_in_a_cross(status: Literal["failed", "pruned"]) -> None:
    whole, early = forgetting_hover([result("a", "full"), replace(result("b", "full"), status=status)])["data"]
    assert (whole["name"], whole["marker"]["symbol"]) == ("a 1e-3", "circle")
    assert (early["name"], early["marker"]["symbol"]) == (f"b 1e-3 ({status})", ["circle", "x"])


def test_an_arm_without_evaluations_is_left_out() -> None:
    assert forgetting_hover([ArmResult("a", "full", 1e-3, "failed")])["data"] == []


def test_each_point_names_its_sentence() -> None:
    base, page = states(0), projection_hover(states(0), {"full": states(1), "control": states(2)}, 1)
    before, full, control = page["data"]
    texts = [text for _, text in sentences()]
    assert before["text"] == texts[: len(before["x"])]
    assert full["text"][0].startswith(f"{texts[0]}<br>moved by ")
    assert full["marker"]["symbol"] != control["marker"]["symbol"] != before["marker"]["symbol"]
    assert f"n: {len(before['x'])} probe sentences; " in page["layout"]["title"]["text"]
    json.dumps(page)
    with pytest.raises(ValueError, match=r"layer=3: the model has 3 layers, give one in 0\.\.2"):
        projection_hover(base, {"full": states(1)}, 3)


def test_the_distance_of_the_branches_is_that_of_each_sentence() -> None:
    page = branches_hover(states(0))
    assert sum(len(trace["x"]) for trace in page["data"]) == COUNT
    assert [y for trace in page["data"] for y in trace["y"]] == pytest.approx([0.5] * COUNT)
    assert branch_distance(states(0), 1, 7) == pytest.approx(0.5)
    assert page["data"][0]["text"][0] == f"{sentences()[0][1]}<br>layer 1, alpha 0.25"
    with pytest.raises(ValueError, match="the model has no layer with two branches"):
        branches_hover(States(np.zeros((1, COUNT, 4))))


def test_a_point_names_its_own_step_after_an_evaluation_without_both_figures() -> None:
    both = {"gain": Estimate(0.2), "retention": Estimate(0.9)}
    result = ArmResult(
        "full", "full", 1e-3, "finished", None, 20, [{"step": 10, "gain": Estimate(0.1)}, {"step": 20, **both}]
    )
    (trace,) = forgetting_hover([result])["data"]
    assert [text.partition("<br>")[0] for text in trace["text"]] == ["step 0", "step 20"]
