"""The view that MLflow opens: its columns, charts and colours, read back from the store."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.common.colours import arm_colour
from experiments.tracking.client import open_local
from experiments.tracking.view import COLOUR, GREY, PARENT, kind_params, latest_experiments, prepare, view_url

GAINS = ("gain", "new_nll_drop")


@pytest.fixture
def client(root: Path) -> Any:
    return open_local(root)


@pytest.fixture
def experiment(client: Any) -> str:
    return str(client.create_experiment("demo"))


def add_run(client: Any, experiment: str, params: Mapping[str, Any], *metrics: str, **tags: str) -> str:
    run = client.create_run(experiment, tags={"journal_id": "of the bench", **tags}).info.run_id
    for name, value in params.items():
        client.log_param(run, name, value)
    for name in metrics:
        client.log_metric(run, name, 0.5)
    return str(run)


def state(client: Any, experiment: str) -> dict[str, Any]:
    view = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.forgetting"])
    assert view["name"] == "Forgetting"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    return found


def lines(client: Any, experiment: str) -> list[list[str]]:
    return [c["selectedMetricKeys"] for c in state(client, experiment)["compareRunCharts"] if c["type"] == "LINE"]


def test_what_tells_arms_apart_is_first_by_alphabet() -> None:
    """Compare opens on the first three params that differ, and arms with copies have control.* and cost/*."""
    params = kind_params("full", 1e-3)
    assert params == {"arm.learning_rate": 1e-3, "arm.method": "full", "learning_rate": 1e-3, "method": "full"}
    names = ["arm", "arms.0.method", "control.alpha", "cost/added_parameters", *params]
    assert sorted(names)[:3] == ["arm", "arm.learning_rate", "arm.method"]


def test_columns_and_charts(client: Any, experiment: str) -> None:
    add_run(client, experiment, {}, "gain", "retention", "cost/seconds", "layers/divergence_02", "layers/alpha_02")
    add_run(client, experiment, {}, "gain", "layers/divergence_01")
    prepare(client, experiment, GAINS)
    found = state(client, experiment)
    assert found["selectedColumns"] == [
        "params.`method`", "params.`learning_rate`",
        "metrics.`gain`", "metrics.`retention`", "metrics.`kl`", "metrics.`nfr`",
        "tags.`interval/gain`", "tags.`interval/retention`", "tags.`interval/kl`",
    ]  # fmt: skip
    scatters = [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in found["compareRunCharts"] if c["type"] == "SCATTER"]
    assert scatters[0] == ("gain", "retention")
    assert lines(client, experiment) == [
        ["gain"], ["retention"], ["kl"], ["loss"],
        ["layers/divergence_01", "layers/divergence_02"], ["layers/alpha_02"],
    ]  # fmt: skip
    sections = {section["name"]: section["display"] for section in found["compareRunSections"]}
    assert sections == {
        "Forgetting": True, "Over steps": True, "Inside the layers": True,
        "Model metrics": False, "cost": False, "layers": False,
    }  # fmt: skip


def test_texts_and_runs_of_earlier_versions(client: Any, experiment: str) -> None:
    add_run(client, experiment, {}, "new_nll_drop", "divergence/layer_02")
    prepare(client, experiment, GAINS)
    assert state(client, experiment)["orderByKey"] == "metrics.`new_nll_drop`"
    assert lines(client, experiment)[0] == ["new_nll_drop"]
    assert lines(client, experiment)[-1] == ["divergence/layer_02"]


def test_arms_have_the_colour_of_their_method(client: Any, experiment: str) -> None:
    arms = [{"method": "control", "learning_rate": rate} for rate in (0.01, 0.0001)]
    full, light = [add_run(client, experiment, arm) for arm in arms]
    own = add_run(client, experiment, arms[0], **{COLOUR: "#123456"})
    parent = add_run(client, experiment, {"learning_rate": "x"})
    prepare(client, experiment, GAINS)
    colours = [client.get_run(run).data.tags.get(COLOUR) for run in (full, light, own, parent)]
    assert colours[0] == "#029e73"
    assert colours[1] not in (None, colours[0])
    assert colours[2:] == ["#123456", GREY]  # chosen by hand; no arm


def test_a_trial_has_the_colour_of_its_arm(client: Any, experiment: str) -> None:
    """Both have a point in the same chart. Above arms of several colours it is grey; grey gives way to a hue."""
    study = add_run(client, experiment, {})
    trials = [add_run(client, experiment, {"learning_rate": "3"}, **{PARENT: study}) for _ in range(2)]
    rates = (0.01, 0.0001)
    prepare(client, experiment, GAINS)
    arms = [
        add_run(client, experiment, {"method": "full", "learning_rate": rate}, **{PARENT: trial})
        for trial, rate in zip(trials, rates, strict=True)
    ]
    prepare(client, experiment, GAINS)
    colours = [client.get_run(run).data.tags.get(COLOUR) for run in (*arms, *trials, study)]
    assert colours == [arm_colour("full", rate) for rate in rates] * 2 + [GREY]


def test_the_latest_experiment_comes_first_and_an_empty_one_not_at_all(client: Any) -> None:
    ids = {name: client.create_experiment(name) for name in ("old", "empty", "new")}
    for name, at in (("new", 9_000), ("old", 1_000), ("old", 2_000)):
        client.create_run(ids[name], at, {"journal_id": name})
    assert [one.name for one in latest_experiments(client)] == ["new", "old"]


def test_the_link() -> None:
    page = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=forgetting&"
    assert view_url("http://127.0.0.1:5000/", "1", charts=True) == (
        f"{page}compareRunsMode=CHART&workflowType=machine_learning"
    )
    assert view_url("http://127.0.0.1:5000", "1", charts=False) == f"{page}workflowType=machine_learning"


def test_experiments_and_runs_of_other_programs_stay_as_they_are(client: Any, experiment: str) -> None:
    foreign = client.create_run(experiment).info.run_id
    other = client.create_experiment("other")
    client.create_run(other)
    assert latest_experiments(client) == []
    add_run(client, experiment, {})
    assert [one.experiment_id for one in latest_experiments(client)] == [experiment]
    prepare(client, experiment, GAINS)
    assert COLOUR not in client.get_run(foreign).data.tags
