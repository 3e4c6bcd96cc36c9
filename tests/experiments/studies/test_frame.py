"""One table of figures from runs, studies and MLflow: the same values, typed; what is not there is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import frame
from experiments.common.errors import CompareError, ConfigError, DamagedError, StudyError
from experiments.common.files import write_json, write_text
from experiments.common.owner import CONFIG, SOURCES
from experiments.common.yaml_values import dump_yaml
from experiments.desk.search import StudyView
from experiments.posthoc.run import operation_name
from experiments.records import ArmResult, Estimate
from experiments.runs.result_file import write_result
from experiments.studies.frame import TYPES
from experiments.studies.trial_results import TrialOutcome
from experiments.tracking.tracker import Tracker
from tests.helpers.planted_study import TABLE5, synthetic_store
from tests.helpers.run_folders import make_run
from tests.helpers.toy_study import open_store, quiet, toy_study

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
GAINS = (Estimate(0.0, -0.1, 0.1), Estimate(0.25, 0.2, 0.3), Estimate(0.5, 0.4, 0.6))


def run_of(root: Path, name: str) -> Path:
    folder = make_run(root, name)
    trajectory = [{"step": step, "gain": gain} for step, gain in zip((0, 10, 20), GAINS, strict=True)]
    card = {"gain": GAINS[2], "kl": Estimate(1.0)}
    result = ArmResult("control", "control", 1e-3, "finished", None, 20, trajectory, card, {"seconds": 60.0})
    write_result(folder / "arms" / "control-0.001", result)
    return folder


def test_a_run_has_a_row_for_each_step_and_figure(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "demo-0123abcd")
    for source in (folder, str(folder), "demo-0123abcd", "demo"):
        table = frame(source, root=tmp_path)
        assert {name: str(kind) for name, kind in table.dtypes.items()} == TYPES
        rows = table[["step", "figure", "value"]].itertuples(index=False, name=None)
        expected = [
            (0, "gain", 0.0),
            (10, "gain", 0.25),
            (20, "gain", 0.5),
            (20, "kl", 1.0),
            (20, "cost/seconds", 60.0),
        ]
        assert list(rows) == expected
        assert set(table["arm"]) == {"control"}
        assert set(table["learning_rate"]) == {1e-3}
        assert set(table["seed"]) == {0}
        assert table.query("step == 20 and figure == 'gain'")[["low", "high"]].to_numpy().tolist() == [[0.4, 0.6]]
        assert table["trial"].isna().all()
    assert len(frame(root=str(tmp_path))) == len(frame("demo", folder, root=tmp_path)) == 5  # one run, named twice


def test_a_learning_rate_of_0_is_a_learning_rate(tmp_path: Path) -> None:
    make_run(tmp_path, "demo-0123abcd", {"noise 0": {"gain": 0.1}})
    assert frame("demo", root=tmp_path)["learning_rate"].tolist() == [0.0]


def test_without_runs_the_table_is_empty_and_typed(tmp_path: Path) -> None:
    table = frame(root=tmp_path)
    assert (len(table), {name: str(kind) for name, kind in table.dtypes.items()}) == (0, TYPES)


def test_a_trial_that_repeats_another_has_no_rows(tmp_path: Path) -> None:
    """A random sampler over two values, six trials: two are run, and a mean over the table counts each once."""
    search = {"training.steps": {"kind": "choice", "values": [1, 2]}}
    store = open_store(tmp_path, search=search, sampler="random", budget={"trials": 6})

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        gain = float(picks["training.steps"])
        result = ArmResult("x", "full", 1e-3, "finished", None, 1, [], {"gain": Estimate(gain)}, {})
        return TrialOutcome([gain], runs=[{"seed": 0, "folder": "runs/x", "result": result.to_dict()}])

    store.work(run, quiet)
    write_text(tmp_path / "studies" / "toy" / "study.yaml", dump_yaml(store.config.to_dict()))
    table = frame("toy", root=tmp_path)
    assert sorted(table["value"]) == [1.0, 2.0]
    own = {trial.number for trial in store.trials() if trial.repeats is None}
    assert set(table["trial"]) == own
    made = ArmResult("x", "full", 1e-3, "finished", None, 1, [], {"gain": Estimate(0.5)}, {}, operation="wise 0.5")
    write_result(tmp_path / "runs/x/posthoc/x-wise-0.5", made)  # of both trials here, which have one run
    rows = frame("toy", root=tmp_path).dropna(subset="operation")
    assert rows[["operation", "figure", "value"]].to_numpy().tolist() == [["wise 0.5", "gain", 0.5]] * 2
    assert set(rows["trial"]) == own


def test_a_study_without_its_database_is_refused_and_none_is_made(tmp_path: Path) -> None:
    """It would be a table without rows, and the next `study` would begin anew in the empty database."""
    write_text(tmp_path / "studies" / "toy" / "study.yaml", dump_yaml(toy_study().to_dict()))
    for read in (frame, StudyView):
        with pytest.raises(StudyError, match=r"no study 'toy': there is no database .*optuna\.db\. Of a study in"):
            read("toy", root=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["studies"]


@pytest.mark.slow
def test_a_study_has_its_picks(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    write_text(tmp_path / "studies" / "toy" / "study.yaml", dump_yaml(store.config.to_dict()))
    table = frame("toy", root=tmp_path)
    assert list(table.columns) == [*TYPES, "pick/arm", "pick/rate"]
    for trial in (trial for trial in store.trials() if trial.runs):
        own = table[table["trial"] == trial.number]
        assert set(own["pick/rate"]) == {trial.picks["rate"]}
        last = own.query(f"figure == 'gain' and step == {own['step'].max()}")
        assert last["value"].tolist() == [trial.runs[0]["result"]["scorecard"]["gain"]["value"]]


@pytest.mark.slow
def test_mlflow_has_the_same_values_without_intervals(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "demo")
    params = {"arm": "control", "method": "control", "learning_rate": 1e-3, "seed": 3}
    with tracker.run("control 0.001", kind="arm", params=params) as run:
        for step, gain in zip((0, 10, 20), GAINS, strict=True):
            run.log_metrics({"gain": gain.value}, step)
    table = frame("mlflow:demo", root=tmp_path)
    assert table["value"].tolist() == [0.0, 0.25, 0.5]
    assert table["step"].tolist() == [0, 10, 20]
    assert set(table["seed"]) == {3}
    assert table["low"].isna().all()
    assert set(table["status"]) == {"finished"}
    with tracker.run("control 0.001", kind="arm", params=params, run_id=run.id) as again:
        again.set_tags({"pruned": "kl was 9"})
    assert set(frame("mlflow:demo", root=tmp_path)["status"]) == {"pruned"}
    del params["seed"]  # it is the arm's
    for tags in ({"operation": "merge"}, {"operation": "task_vectors", "others": "r/a-1, r/b-1", "alpha": "1.0"}):
        with tracker.run("made", kind="posthoc", params=params, tags={**tags, "source_run": run.id}) as made:
            made.log_metrics({"gain": 0.75}, 20)
    rows = frame("mlflow:demo", root=tmp_path).dropna(subset="operation")
    assert set(rows["operation"]) == {
        "merge",
        operation_name("task_vectors", 1.0, [Path("r/arms/a-1"), Path("r/arms/b-1")]),
    }
    assert set(rows["seed"]) == {3}
    assert rows["value"].tolist() == [0.75, 0.75]
    with pytest.raises(CompareError, match="no such experiment: did you mean 'demo'"):
        frame("mlflow:dem", root=tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    run_of(tmp_path, "demo-0123abcd")
    run_of(tmp_path, "demo-89abcdef")
    with pytest.raises(ConfigError, match="2 names begin with 'demo': demo-0123abcd, demo-89abcdef"):
        frame("demo", root=tmp_path)
    with pytest.raises(ConfigError, match=r"no run or study 'demi-0123abcd' .*: did you mean 'demo-0123abcd'"):
        frame("demi-0123abcd", root=tmp_path)
    write_text(tmp_path / "runs" / "measure-x" / "measure.json", "{}")
    with pytest.raises(CompareError, match=r"measure-x is a measurement, .* figures\.json: name a run"):
        frame("measure-x", root=tmp_path)
    with pytest.raises(CompareError, match=r"there is no store .*mlflow\.db"):
        frame("mlflow:demo", root=tmp_path)
    assert not (tmp_path / "mlflow.db").exists()  # reading makes nothing
    changed = tmp_path / "runs" / "demo-0123abcd" / "arms" / "control-0.001" / "result.json"
    changed.write_text(changed.read_text().replace("0.25", "0.75"))
    with pytest.raises(DamagedError, match="was changed after it was written"):
        frame("demo-0123abcd", root=tmp_path)


def test_a_seed_of_an_edited_config_is_refused(tmp_path: Path) -> None:
    """The column seed would have a number with which the run was not made."""
    config = toy_study().run_config({"training.steps": 1, "rate": 0.1}, 0, 3)
    folder = tmp_path / "runs" / f"{config.name}-{config.digest()}"
    write_text(folder / "config.yaml", dump_yaml(config.to_dict()))
    write_json(folder / SOURCES, {CONFIG: config.digest()})
    write_result(folder / "arms" / "x-0.1", ArmResult("x", "full", 0.1, "finished", scorecard={"gain": GAINS[1]}))
    assert set(frame(folder, root=tmp_path)["seed"]) == {3}
    write_text(folder / "config.yaml", dump_yaml(config.model_copy(update={"seed": 4}).to_dict()))
    with pytest.raises(ConfigError, match=r"config\.yaml was edited: it has other settings"):
        frame(folder, root=tmp_path)


def test_a_study_named_by_its_folder_is_that_of_its_own_root(tmp_path: Path) -> None:
    """Another root has a study of the same name, with other values."""
    roots = [tmp_path / "here", tmp_path / "there"]
    for root, truth in zip(roots, ("full", "lerp8"), strict=True):
        root.mkdir()
        store = synthetic_store(root, {truth: TABLE5[truth]}, name="toy")
        write_text(root / "studies" / "toy" / "study.yaml", dump_yaml(store.config.to_dict()))
    folder = roots[1] / "studies" / "toy"
    assert set(frame(folder, root=roots[0])["arm"]) == {"lerp8"}
    assert {trial.picks["arm"] for trial in StudyView(folder, roots[0]).trials} == {"lerp8"}
