"""Text of others in the pages of MLflow and optuna-dashboard: it is shown, and runs, loads and links nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from experiments.common.printable import escaped
from experiments.records import ArmResult, Estimate
from experiments.reporting.tables import arms_table
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from experiments.tracking.tracker import Tracker
from tests.helpers.browser import new_page, shoot
from tests.helpers.served_ui import served
from tests.helpers.toy_study import open_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]

WORD = "hostiletext"  # by which a page shows that it has the text
TEXT = (
    f'{WORD}<img src="http://evil.example/x.png" onerror="window.hit=1"><script>window.hit=1</script>'
    "![](http://evil.example/y.png)[here](javascript:window.hit=1)"
)
ACTIVE = "[src*='evil.example'], [href*='evil.example'], [href^='javascript'], [onerror]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an arm, and a study with a complete and a failed trial; all their names and reasons are hostile."""
    made = tmp_path_factory.mktemp("hostile")
    search = {"system": {"kind": "choice", "path": "data.system", "values": [TEXT, f"{TEXT}2"]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("STUDY_STORAGE", raising=False)
        card = {"gain": Estimate(0.5, 0.4, 0.6)}
        result = ArmResult(TEXT, TEXT, 1e-3, "failed", TEXT, 4, [], card, {})
        params = {"arm": TEXT, "method": TEXT, "learning_rate": 1e-3}
        with Tracker(made, "hostile").run(TEXT, kind="arm", params=params, tags={"pruned": TEXT}) as run:
            run.log_metrics({"gain": 0.5}, 4)
            run.log_note(escaped(arms_table([result]).markdown()))
            run.log_text(TEXT, "config.yaml")
            run.fail(TEXT)
        runs = [{"seed": 0, "folder": "runs/x", "result": result.to_dict()}]

        def work(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
            if number:
                raise TrialFailed(TEXT, runs)
            return TrialOutcome([0.5], {TEXT: 0.0}, runs, {"gain": 0.5})

        open_store(made, search=search, question=TEXT).work(work, lambda text: None)
    return made


@pytest.fixture(scope="module")
def addresses(root: Path) -> Iterator[dict[str, str]]:
    """The addresses of the pages by name."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("STUDY_STORAGE", raising=False)
        with served(root, "--optuna") as (_, said):
            client = Tracker(root, "hostile")
            (run,) = client.client.search_runs([client.experiment_id])
            server = re.findall(r"http://127\.0\.0\.1:\d+", said)
            mlflow, view = f"{server[0]}/#/experiments/{client.experiment_id}/runs", "?workflowType=machine_learning"
            study = re.search(r"(?m)^toy +(http\S+)$", said)
            assert study, said
            yield {
                "mlflow runs": f"{mlflow}{view}",
                "mlflow run": f"{mlflow}/{run.info.run_id}{view}",
                "mlflow artifact": f"{mlflow}/{run.info.run_id}/artifacts/config.yaml{view}",
                "optuna study": study[1],
                "optuna trials": f"{study[1]}/trials?numbers=0",
                "optuna failed": f"{study[1]}/trials?numbers=1",
            }


PAGES = ("mlflow runs", "mlflow run", "mlflow artifact", "optuna study", "optuna trials", "optuna failed")


@pytest.mark.parametrize("name", PAGES)
def test_text_of_others_is_text(name: str, browser: Any, addresses: dict[str, str]) -> None:
    page, asked = new_page(browser, 1700, 1300), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(addresses[name])
    if name != "optuna study":  # which draws values alone
        page.get_by_text(WORD).first.wait_for(state="attached")
    page.wait_for_timeout(2000)
    shoot(page, f"hostile-{name.replace(' ', '-')}")
    assert page.evaluate("window.hit") is None
    assert page.locator(ACTIVE).count() == 0
    hosts = {urlparse(url).hostname for url in asked if url.startswith("http")}
    assert "evil.example" not in hosts
    page.close()
