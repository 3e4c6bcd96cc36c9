"""Two machines with one storage and one MLflow store, and no disk in common."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.common.files import read_note
from experiments.studies.fetch import fetch_runs
from experiments.studies.launch import run_study
from experiments.studies.queue import Store
from experiments.studies.report.write import write_study_report
from experiments.studies.trial_results import has_records
from tests.helpers.shared_store import stored, use_shared_store
from tests.helpers.tiny_study import tiny_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
MISSING = "Item records are not on this machine"


def quiet(text: str) -> None: ...


@pytest.fixture(scope="module")
def machines(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of two roots, and the storage's URL. Machine `one` ran trial 0, and `two` the others."""
    folder = tmp_path_factory.mktemp("machines")
    url = f"sqlite:///{folder / 'optuna.db'}"
    with pytest.MonkeyPatch.context() as patch:
        use_shared_store(folder, patch, "tiny")
        search = {"arms.0.learning_rates.0": {"kind": "choice", "values": [1e-3, 1e-2]}}
        study = tiny_study(base, search=search, report={"select": "arms.0.learning_rates.0"})
        one = study.model_copy(update={"budget": study.budget.model_copy(update={"trials": 1})})
        run_study(one, folder / "one", storage=url, say=quiet)
        Store(url, name=study.name).add_trials(1)
        run_study(study, folder / "two", storage=url, say=quiet)
    return folder, url


@pytest.fixture
def shared(machines: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store, Path]:
    """A root of a third machine, the study, and the artifacts."""
    folder, url = machines
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'server' / 'mlflow.db'}")
    return tmp_path / "three", Store(url, name="tiny"), folder / "server" / "artifacts"


def test_the_second_machine_does_not_measure_the_base_again(machines: tuple[Path, str]) -> None:
    folder, _ = machines
    notes = [read_note(path) for root in ("one", "two") for path in (folder / root).glob("runs/*/base/timing.json")]
    assert [bool(note["measured"]) for note in notes] == [True, False]
    items = [path.read_bytes() for root in ("one", "two") for path in (folder / root).glob("runs/*/base/items.jsonl")]
    assert len(items) == 2
    assert items[0] == items[1]


def test_a_report_has_the_records_of_all_machines(shared: tuple[Path, Store, Path]) -> None:
    root, store, _ = shared
    said: list[str] = []
    fetch_runs(store.config, store.trials(), root, said.append)
    assert said == ["tiny: records of 2 of 2 runs on other machines are fetched from MLflow"]
    assert all(has_records(trial.runs, root) for trial in store.trials())
    assert len(list(root.glob("runs/*/config.yaml"))) == 2
    page = write_study_report(store, root, root / "report")
    assert MISSING not in page.read_text()
    fetch_runs(store.config, store.trials(), root, said.append)
    assert len(said) == 1  # nothing is missing any more
    shutil.rmtree(next(root.glob("runs/*/arms/*")))  # one of two half a run
    fetch_runs(store.config, store.trials(), root, said.append)
    assert "1 of 1" in said[-1]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("records/items-4.jsonl", lambda path: path.unlink()),
        ("records/items-2.jsonl", lambda path: path.write_text(path.read_text().replace("0", "1"))),
        ("base/items.jsonl", lambda path: path.write_text("")),
        ("scorecard/result.json", lambda path: path.write_text(path.read_text().replace("0", "1"))),
        ("scorecard/result.json", lambda path: path.write_text("{}")),
    ],
)
def test_what_is_damaged_or_gone_stays_away(
    name: str, damage: Callable[[Path], object], shared: tuple[Path, Store, Path]
) -> None:
    root, store, artifacts = shared
    kept = [(path, path.read_bytes()) for path in stored(artifacts, name)]
    assert len(kept) == 2
    try:
        for path, _ in kept:
            damage(path)
        said: list[str] = []
        fetch_runs(store.config, store.trials(), root, said.append)
        assert "of 0 of 2 runs" in said[0]
        assert not list(root.glob("runs/*/*"))
        assert MISSING in write_study_report(store, root, root / "report").read_text()
    finally:
        for path, content in kept:
            path.write_bytes(content)


def test_other_records_of_this_machine_stay(shared: tuple[Path, Store, Path]) -> None:
    """It began a trial that another one took over, with other records of the base model."""
    root, store, _ = shared
    own = [root / str(trial.runs[0]["folder"]) / "base" / "items.jsonl" for trial in store.trials()]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    fetch_runs(store.config, store.trials(), root, quiet)
    assert [path.read_text() for path in own] == ["mine", "mine"]
    assert not list(root.glob("runs/*/arms"))
