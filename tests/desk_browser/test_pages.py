"""MLflow, optuna-dashboard and reports as a browser shows them, over a study and a run of the tiny model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.common.colours import arm_colour
from experiments.config import parse_config
from experiments.desk.grid import Grid
from experiments.reporting.report import write_report
from experiments.reporting.table import Table
from experiments.runs.run import run_experiment
from experiments.studies.launch import run_study
from experiments.studies.report.write import write_study_report
from tests.helpers.browser import new_page, shoot
from tests.helpers.invented_arms import BASE, twelve
from tests.helpers.served_ui import served
from tests.helpers.small_run import SUMS, small_config, tiny_base
from tests.helpers.tiny_study import ARMS, RATE, tiny_study

pytestmark = pytest.mark.slow

PHONE, A4, A4_HEIGHT = 390, 703, 1032  # CSS pixels; A4 without its margins of 12 mm
# what reaches out of the page, and cells of a table that do not show all of their text
CUT = """() => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  const all = [...document.querySelectorAll('h1, h2, p, dt, dd, li, pre, th, td, figure img, .tile')];
  const shown = all.filter(one => one.getBoundingClientRect().width > 0);
  const out = shown.filter(one => {
    const place = one.getBoundingClientRect();
    const inside = one.tagName === 'PRE' || one.scrollWidth <= one.clientWidth + 1;
    return place.right > innerWidth + 1 || place.left < -1 || !inside;
  });
  const texts = out.map(one => one.tagName + ' ' + one.textContent.slice(0, 40));
  return [document.documentElement.scrollWidth > innerWidth, texts];
}"""
# for each cell of a table: whether the title of its column is next to it, and the size of its letters
CELLS = """() => [...document.querySelectorAll('.wide table')].flatMap(table => {
  const heads = [...table.querySelectorAll('thead th')].map(one => one.textContent.trim());
  const cells = row => [...row.cells].filter(cell => !cell.matches('.reason'));
  return [...table.querySelectorAll('tbody tr')].flatMap(row => cells(row).map((cell, i) => {
    const title = getComputedStyle(cell, '::before').content;
    return [heads[i], title === JSON.stringify(heads[i]), parseFloat(getComputedStyle(cell).fontSize)];
  }));
})"""
# the contrast of each text with what is behind it (WCAG 2.2), and the lightness of the page
CONTRAST = """() => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = colour => [.2126, .7152, .0722].reduce((sum, w, i) => sum + w * linear(parts(colour)[i]), 0);
  const behind = one => {
    const colour = getComputedStyle(one).backgroundColor, seen = parts(colour)[3] ?? 1;
    return seen > .5 || !one.parentElement ? colour : behind(one.parentElement);
  };
  const texts = [...document.querySelectorAll('main *')].filter(
    one => [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
  const ratios = texts.map(one => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), one.textContent.trim().slice(0, 40)];
  });
  return [light(getComputedStyle(document.body).backgroundColor), ratios];
}"""
COLOURED = "colour => [...document.querySelectorAll('*')].some(one => getComputedStyle(one).backgroundColor === colour)"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    """A store with a run of two arms, and a study of two trials with its report."""
    made, base = tmp_path_factory.mktemp("store"), tiny_base(tmp_path_factory.mktemp("base"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "STUDY_STORAGE"):
            patch.delenv(name, raising=False)
        run_experiment(small_config(base), made, say=lambda text: None)
        search = {"arm": {"kind": "arms", "arms": ARMS}, "rate": RATE | {"values": [1e-2]}}
        goals = [{"figure": "gain", "direction": "maximize"}, {"figure": "retention", "direction": "maximize"}]
        store = run_study(tiny_study(base, search=search, objectives=goals), made, say=lambda text: None)
        write_study_report(store, made, made / "studies" / "tiny")
    return made


@pytest.fixture(scope="module")
def said(root: Path) -> Iterator[str]:
    """What `control-llm ui --optuna` prints while both servers run."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "STUDY_STORAGE"):
            patch.delenv(name, raising=False)
        with served(root, "--optuna") as (_, text):
            yield text


SORTED = "i => [...document.querySelectorAll('tbody tr')].map(row => row.cells[i].textContent)"


def test_a_click_on_a_head_sorts_by_numbers_with_their_units(browser: Any) -> None:
    ages = ("40 s", "90 s", "5 min", "3 h", "2 d")
    columns = (
        ("-.02 [-.1,.0]", "+.1 [.0,.2]", "+.41 [.3,.5]", "+1.2 [1,2]", "n/a"),
        ages,
        ("7", "64", "1,024", "2,048", ""),
        ("<.001", ".012", ".500", "1.000", "n/a"),
        ("3.1%", "12.5%", "50 %", "100%", "-"),
    )
    rows = tuple(zip(*(column[::-1] for column in columns), strict=True))
    page = new_page(browser)
    page.set_content(str(Grid(Table("", ("gain", "age", "tokens", "p", "share"), rows)).html()))
    for i, column in enumerate(columns):
        wanted = [text.replace(" [", "[") for text in column]
        numbers = [text for text in wanted if text not in ("n/a", "", "-")]  # the others are last in both directions
        for order in (numbers, numbers[::-1]):
            page.locator("th").nth(i).click()
            assert page.evaluate(SORTED, i) == [*order, *wanted[len(numbers) :]]
    page.close()


def link(said: str, words: str) -> str:
    """Return the address that is printed after words, in a line of its own or next to them."""
    found = re.search(rf"(?m)^{words} +(http\S+)$", said)
    assert found, said
    return found[1]


def test_mlflow_opens_on_the_table_of_the_arms(browser: Any, said: str) -> None:
    page = new_page(browser, 1900)
    page.goto(link(said, "small +charts").replace("compareRunsMode=CHART&", ""))
    page.get_by_text("control 0.01").first.wait_for()
    heads = [text.strip() for text in page.locator(".ag-header-cell").all_inner_texts()]
    shoot(page, "mlflow-table")
    assert {"method", "learning_rate", "gain", "retention", "kl", "nfr", "interval/gain"} <= set(heads)
    for method, rate in (("full", 1e-3), ("control", 1e-2)):
        assert page.evaluate(COLOURED, rgb(method, rate)), method
    page.close()


@pytest.mark.parametrize(
    ("experiment", "names"),
    [("small", ("full 0.001", "control 0.01")), ("tiny", ("#0 full rate=0.01", "#1 control rate=0.01"))],
)
def test_compare_shows_names_and_the_gain_at_its_first_click(
    browser: Any, said: str, experiment: str, names: tuple[str, str]
) -> None:
    """Two arms of a run, and two trials of a study of one seed, which are one run each."""
    page = new_page(browser, 1900)
    page.goto(link(said, rf"{experiment} +charts").replace("compareRunsMode=CHART&", ""))
    for name in ("assistant.chat_panel.close", "experiment_page.shared_view.dismiss"):  # they cover the buttons
        page.locator(f'[data-component-id="mlflow.{name}"]').click()
    for name in names:
        row = page.locator(".ag-row").filter(has_text=name).first
        page.locator(f'.ag-row[row-index="{row.get_attribute("row-index")}"] input[type=checkbox]').first.click(
            force=True
        )
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_text("Comparing 2 Runs").wait_for()
    page.get_by_text("Clear All").wait_for()
    shoot(page, f"mlflow-compare-{experiment}")
    text = page.inner_text("body")
    assert text.partition("Metrics:")[2].partition("Clear All")[0].split() == ["gain"]
    assert {"arm", "arm.method"} <= set(text.partition("Parameters:")[2].partition("Metrics:")[0].split())
    for name in names:
        assert name in text.partition("Run Name:")[2].partition("Start Time:")[0]
    page.close()


def test_mlflow_opens_on_the_charts(browser: Any, said: str) -> None:
    page = new_page(browser, 1900, 1400)
    page.goto(link(said, "small +charts"))
    for title in ("Forgetting", "Over steps", "gain vs. retention", "kl vs. retention"):
        page.get_by_text(title).first.wait_for()
    page.locator(".js-plotly-plot .point").first.wait_for()
    shoot(page, "mlflow-charts")
    full, control = [
        page.locator(f'.point[style*="{rgb(*arm)}"]').count() for arm in (("full", 1e-3), ("control", 1e-2))
    ]
    assert full >= 3
    assert control >= 3
    page.close()


def rgb(method: str, rate: float) -> str:
    """Return an arm's colour as a browser writes it."""
    colour = arm_colour(method, rate)
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_optuna_dashboard_shows_names_notes_and_pictures(browser: Any, said: str) -> None:
    page = new_page(browser, 1500, 1400)
    study = link(said, "tiny")
    page.goto(study)
    for axis in ("Objective X:", "Objective Y:"):
        page.get_by_text(axis).first.wait_for()
    chosen = page.locator(".MuiSelect-select").all_inner_texts()
    assert chosen[:2] == ["gain", "retention"]
    pictures = page.locator('a[href*="/artifacts/"]')
    pictures.nth(3).wait_for(state="attached")  # front, forgetting, steps, one per objective
    shoot(page, "optuna-study")
    page.goto(f"{study}/trials?numbers=0")
    back = page.get_by_role("link", name="Trial 0 in MLflow")
    assert re.search(r"/#/experiments/\d+/runs/\w{32}", back.get_attribute("href"))
    page.get_by_text("retention: ").first.wait_for()
    page.get_by_text("forgetting-seed-0.png").first.wait_for()
    assert (
        page.locator('img[src^="/artifacts/"]').first.evaluate("one => one.decode().then(() => one.naturalWidth)") > 300
    )
    shoot(page, "optuna-trial")
    page.close()


@pytest.fixture(scope="module", params=["run", "study", "wide"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's and a study's page, and one of twelve arms with long names and a failure."""
    if request.param == "wide":
        values = {"name": "wide", "data": SUMS, "arms": [{"name": "full", "method": "full", "learning_rates": [1e-3]}]}
        return write_report(tmp_path_factory.mktemp("wide"), parse_config(values), BASE, twelve(), "control-llm ui")
    root: Path = request.getfixturevalue("root")
    return next(root.glob("runs/small-*/report.html" if request.param == "run" else "studies/tiny/report.html"))


def test_a_report_on_a_phone(browser: Any, report: Path) -> None:
    page = new_page(browser, PHONE, 844)
    page.goto(report.as_uri())
    shoot(page, f"phone-{report.parent.name[:5]}", whole=True)
    assert page.evaluate(CUT) == [False, []]
    cells = page.evaluate(CELLS)
    assert len(cells) > 10
    assert [head for head, titled, size in cells if not titled or size < 11] == []
    page.close()


def test_a_report_in_the_dark(browser: Any, report: Path) -> None:
    page = new_page(browser, color_scheme="dark")
    page.goto(report.as_uri())
    shoot(page, f"dark-{report.parent.name[:5]}", whole=True)
    lightness, contrasts = page.evaluate(CONTRAST)
    assert lightness < 0.05
    assert [text for ratio, text in contrasts if ratio < 4.5] == []
    page.close()


def test_a_report_on_paper(browser: Any, report: Path) -> None:
    page = new_page(browser, A4)
    page.goto(report.as_uri())
    printed = page.pdf(format="A4")
    page.emulate_media(media="print")
    shoot(page, f"paper-{report.parent.name[:5]}", whole=True)
    assert page.evaluate(CUT) == [False, []]
    whole = page.evaluate("document.documentElement.scrollHeight") / A4_HEIGHT
    assert whole <= len(re.findall(rb"/Type /Page\b", printed)) <= 2 * whole + 1  # rows and pictures are not split
    page.close()
