"""Prepare what MLflow shows of an experiment: columns, charts and colours, as a view that a link opens.

MLflow stores a view as one tag of the experiment, in a format of its own. Only `prepare` knows it (MLflow 3.17).
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.colours import arm_colour
from experiments.tracking.client import pages

VIEW, TITLE = "forgetting", "Forgetting"
COLOUR, PARENT = "mlflow.runColor", "mlflow.parentRunId"
GREY = "#8a929c"  # of a run of no or several methods: a hue always means one
OURS = "tags.journal_id LIKE '%'"  # a tag that every run of the bench has, and no other
MOST_RUNS = 1000  # that are coloured, and whose metrics are looked at
INTERVAL = "interval/"  # tags of an arm: its gain and these figures as text, `+.93 [.85,.98]`
SPREADS = ("retention", "kl")
STEPS, CHART = ("retention", "kl", "loss"), "compareRunsMode=CHART&"
LAYERS = (("layers/divergence_", "divergence/layer_"), ("layers/alpha_", "alpha/layer_"))  # now, and of older runs


def prepare(client: Any, experiment: str, gains: Sequence[str]) -> None:
    """Write the shared view of an experiment, and colour the runs: arms by method and learning rate.

    client: MLflow's. experiment: its id. gains: names of the metric that is the gain; the first that was logged counts.
    Raises errors of MLflow.
    """
    runs = client.search_runs([experiment], OURS, max_results=MOST_RUNS)
    colours = _colours(runs)
    for run in runs:
        own, colour = run.data.tags.get(COLOUR), colours.get(run.info.run_id, GREY)
        if own in (None, GREY) and own != colour:
            client.set_tag(run.info.run_id, COLOUR, colour)
    metrics = sorted({name for run in runs for name in run.data.metrics})
    gain = next((name for name in gains if name in metrics), gains[0])
    packed = base64.b64encode(zlib.compress(json.dumps(_state(gain, metrics)).encode())).decode()
    now = int(time.time() * 1000)
    view = {"name": TITLE, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))


def kind_params(method: str, rate: float) -> dict[str, Any]:
    """Return what tells arms apart, as params. Twice: Compare opens on the first three names by alphabet."""
    return {"arm.learning_rate": rate, "arm.method": method, "learning_rate": rate, "method": method}


def latest_experiments(client: Any) -> list[Any]:
    """Return the experiments that have runs of ours, the one with the latest first.

    A store may have those of other programs too: nothing is written to them.
    """
    found = {}
    for experiment in pages(lambda token: client.search_experiments(page_token=token)):
        order = ["attributes.start_time DESC"]
        if runs := client.search_runs([experiment.experiment_id], OURS, max_results=1, order_by=order):
            found[runs[0].info.start_time, experiment.experiment_id] = experiment
    return [found[key] for key in sorted(found, reverse=True)]


def view_url(server: str, experiment: str, charts: bool) -> str:
    """Return the address of the view: its charts, or its table."""
    mode = CHART if charts else ""
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{page}?viewStateShareKey={VIEW}&{mode}workflowType=machine_learning"


def _colours(runs: Sequence[Any]) -> dict[str, str]:
    """Return the colour of each arm, and of each trial: that of its arm, since both have a point in the same charts."""
    known = {run.info.run_id: run for run in runs}
    found: dict[str, set[str]] = {}
    for run in runs:
        if colour := _colour(run.data.params):
            at: Any = run
            while at is not None:  # the arm, the runs above it
                found.setdefault(at.info.run_id, set()).add(colour)
                at = known.get(at.data.tags.get(PARENT))
    return {run: min(colours) for run, colours in found.items() if len(colours) == 1}


def _colour(params: Mapping[str, str]) -> str:
    try:
        return arm_colour(params["method"], float(params["learning_rate"]))
    except (KeyError, ValueError):  # not an arm
        return ""


def _state(gain: str, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the view as MLflow's page keeps it."""
    own = sorted({name.split("/")[0] if "/" in name else "Model metrics" for name in metrics})
    layers = [[m for m in metrics if m.startswith(names)] for names in LAYERS]
    sections = [_section("s1", TITLE), _section("s2", "Over steps"), _section("s3", "Inside the layers")]
    charts = [_scatter(gain, "retention"), _scatter("kl", "retention"), _scatter("kl", gain)]
    charts += [_lines("s2", [name]) for name in (gain, *STEPS)]
    charts += [_lines("s3", names) for names in layers if names]
    return {
        "searchFilter": "",
        "orderByKey": f"metrics.`{gain}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            "params.`method`",
            "params.`learning_rate`",
            *(f"metrics.`{name}`" for name in (gain, "retention", "kl", "nfr")),
            *(f"tags.`{INTERVAL}{name}`" for name in (gain, *SPREADS)),
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,  # otherwise the sections are sorted by name
        "compareRunSections": sections + [_section(f"own-{name}", name, shown=False, own=True) for name in own],
        "compareRunCharts": charts,
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _section(uuid: str, name: str, shown: bool = True, own: bool = False) -> dict[str, Any]:
    """own: a section that MLflow makes itself, for each prefix of the metrics' names."""
    return {
        "uuid": uuid, "name": name, "display": shown, "isReordered": False, "deleted": False, "isGenerated": own,
    }  # fmt: skip


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("s1", "SCATTER", f"{y}-{x}") | axes


def _lines(section: str, names: Sequence[str]) -> dict[str, Any]:
    return _chart(section, "LINE", names[0]) | {
        "metricKey": names[0],
        "selectedMetricKeys": list(names),
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "useGlobalLineChartConfig": True,
    }


def _chart(section: str, kind: str, name: str) -> dict[str, Any]:
    return {
        "uuid": f"{section}-{name}", "type": kind, "metricSectionId": section, "runsCountToCompare": 100,
        "deleted": False, "isGenerated": False,
    }  # fmt: skip
