"""The list of all results, and one of them opened: texts, tables and links, without writing anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.desk.explore import Picture
from experiments.desk.listing import Html, Results, links, mlflow_url, open_result
from experiments.records import ArmResult, Estimate
from experiments.runs.result_file import write_result
from experiments.tracking.tracker import Tracker
from tests.helpers.live_run import make_live_run
from tests.helpers.run_folders import add_result, make_measurement, make_run, make_study

CARD = {"gain": 0.25, "retention": 0.9}


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_all_are_listed_with_status_and_best_arm(tmp_path: Path) -> None:
    run = make_run(tmp_path, results={"full 0.001": CARD})
    (run / "report.html").write_text("x")
    make_study(tmp_path, "toy", ended="all trials done", trials={"complete": 2}, limit=2)
    make_measurement(tmp_path, "measured-1", "measure", {"a": CARD})
    make_live_run(tmp_path, "live-0123abcd")
    before, found = files(tmp_path), Results(tmp_path)
    page = found._repr_html_()
    assert files(tmp_path) == before
    assert sorted(found.names) == ["demo-0123abcd", "live-0123abcd", "measured-1", "toy"]
    row = re.search(r"<tr><td[^>]*>demo-0123abcd.*?</tr>", page)
    assert row
    for text in ("run", "stopped", "1/3 arms", "+0.25", "0.90", "full 0.001"):
        assert text in row.group(), text
    assert re.search(r'<a href="[^"]*demo-0123abcd/report.html">open</a>', row.group())  # a link, not its text
    assert "2/2 trials" in page
    assert ">running<" in page
    assert "ui --optuna" in page


def test_without_results_the_first_command_is_named(tmp_path: Path) -> None:
    assert "run quickstart" in Results(tmp_path)._repr_html_()


def test_a_broken_folder_hides_no_other(tmp_path: Path) -> None:
    make_run(tmp_path)
    (make_run(tmp_path, "broken-0123abcd") / "config.yaml").write_text("[")
    assert ">unreadable<" in Results(tmp_path)._repr_html_()


def test_a_run_is_opened_with_its_arms_and_a_picture(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    point = {"step": 20, "gain": Estimate(0.25, 0.2, 0.3), "retention": Estimate(0.9, 0.8, 1.0)}
    card = {name: value for name, value in point.items() if isinstance(value, Estimate)}
    write_result(folder / "arms" / "full-0.001", ArmResult("full", "full", 1e-3, "finished", None, 20, [point], card))
    words, table, picture, last = open_result("demo", tmp_path).parts
    assert "demo-0123abcd: stopped, 1 of 3 arms done" in words._repr_html_()
    assert "0.90" in table._repr_html_() or ".90" in table._repr_html_()
    assert isinstance(picture, Picture)
    assert isinstance(last, Html)
    assert len(open_result(make_run(tmp_path, "empty-0123abcd"), tmp_path).parts) == 2
    with pytest.raises(ConfigError, match="no run or study 'nothing'"):
        open_result("nothing", tmp_path)


def test_a_measurement_shows_its_text(tmp_path: Path) -> None:
    folder = make_measurement(tmp_path, "measured-1", "measure", {"a": CARD})
    (folder / "report.txt").write_text("kept <all>", encoding="utf-8")
    first, _ = open_result("measured", tmp_path).parts
    assert first._repr_html_() == "<pre>kept &lt;all&gt;</pre>"


def test_links_are_relative_and_only_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path)
    add_result(folder, "full 0.001", "finished", CARD)
    assert "href" not in links(folder, tmp_path)
    (folder / "report.html").write_text("x")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert 'href="../runs/demo-0123abcd/report.html"' in links(folder, tmp_path)


@pytest.mark.slow
def test_the_page_of_a_run_in_mlflow_is_linked(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert mlflow_url(folder, tmp_path) == ""
    tracker = Tracker(tmp_path, "demo")
    with tracker.run("demo", folder=folder) as run:
        pass
    (folder / "mlflow.json").write_text(f'{{"run_id": "{run.id}"}}')
    assert mlflow_url(folder, tmp_path) == tracker.run_url(run.id)


def test_a_choice_shows_the_python_that_it_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    make_run(tmp_path)
    said, shown = list[str](), list[object]()
    monkeypatch.setattr("builtins.print", said.append)
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr("ipywidgets.interact", lambda call, name: [call(one) for one in name])
    results = Results(tmp_path)
    results.choose()
    assert said == [f">>> open_result({name!r}, root)" for name in results.names]
    assert len(shown) == len(results.names) == 1  # the empty choice shows nothing
