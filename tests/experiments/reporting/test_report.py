"""The report over invented arms: every figure has its place, and the page needs no other file."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.config import ExperimentConfig, parse_config
from experiments.records import ArmResult
from experiments.reporting.plots.caption import Asked
from experiments.reporting.report import write_report
from experiments.reporting.summary import summary
from experiments.reporting.tables import arms_table, format_table, tint
from tests.helpers.invented_arms import BASE, six, synthetic, twelve, untrained
from tests.helpers.small_run import SUMS

pytestmark = pytest.mark.slow

UI = "mlflow server --backend-store-uri sqlite:///mlruns/mlflow.db"


@pytest.fixture
def config() -> ExperimentConfig:
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    return parse_config({"name": "synthetic", "data": SUMS, "arms": arms})


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails where a tag is closed that is not open."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.sources = "", [""]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def read_page(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_report_is_whole_and_needs_no_other_file(tmp_path: Path, config: ExperimentConfig) -> None:
    results = [*six(), untrained()]
    path = write_report(tmp_path, config, BASE, results, UI, ["bf16 was slower here"])
    assert path == tmp_path / "report.html"
    page = read_page(path)
    assert [s[:26] for s in page.sources if s] == ["data:image/svg+xml;base64,"]
    assert base64.b64decode(page.sources[1][26:]).rstrip().endswith(b"</svg>")
    for expected in (
        "smollm2-135m-instruct",
        "chain_sum",
        "+.49",
        "[.41,.57]",
        "past tense",
        UI,
        "bf16 was slower here",
    ):
        assert expected in page.text
    assert "OutOfMemoryError: <no memory>" in page.text  # escaped, else the parser would take it for a tag
    assert "--fresh" in page.text
    assert all(sentence in page.text for sentence in summary(results))
    assert page.text.count("What would change my mind: ") == 5
    assert (tmp_path / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![retention against gain](forgetting.png)" in markdown
    assert "- broken 1e-3: failed: OutOfMemoryError: &lt;no memory> second line" in markdown  # no tag there either


@pytest.mark.parametrize(
    "results",
    [
        [],
        [untrained()],
        [replace(untrained(), status="pruned")],
        [synthetic("full", 1e-3, 0.4, 0.9)],
        [synthetic("full", 1e-3, math.nan, math.nan, math.nan), synthetic("full", 1e-4, 0.1, 0.9)],
        [ArmResult("bare", "full", 1e-3, "finished")],
        twelve(),
    ],
    ids=["none", "failed", "pruned", "one", "nan", "bare", "twelve"],
)
def test_any_number_of_arms_and_any_gap_in_them_makes_a_report(
    results: list[ArmResult], tmp_path: Path, config: ExperimentConfig
) -> None:
    page = read_page(write_report(tmp_path, config, {}, results, UI))
    table = format_table(results)
    for result in results:
        assert result.arm in page.text
        assert result.arm in table
        assert result.arm in arms_table(results).markdown()


def test_the_report_says_how_many_questions_there_were(tmp_path: Path, config: ExperimentConfig) -> None:
    page = read_page(write_report(tmp_path, config, BASE, six(), UI, asked=Asked({"new": 21, "kept": 1323})))
    assert " 21 + 1,323 " in page.text
    assert "n: 21 new, 1,323 kept; " in base64.b64decode(page.sources[1][26:]).decode()
    assert " in place of 1323)" in page.text


def test_a_report_is_replaced_when_it_is_made_again(tmp_path: Path, config: ExperimentConfig) -> None:
    write_report(tmp_path, config, BASE, six(), UI)
    page = read_page(write_report(tmp_path, config, BASE, six()[:1], UI))
    assert "partial" not in page.text


def test_the_tint_says_which_way_and_how_far() -> None:
    assert tint(1.0) == "#ffffff"
    assert tint(math.nan) == "#f1f3f5"
    red, _, blue = (int(tint(0.6)[i : i + 2], 16) for i in (1, 3, 5))
    assert red > blue
    assert int(tint(1.3)[5:7], 16) > int(tint(1.3)[1:3], 16)
    assert tint(0.5) == tint(0.1) != tint(0.7)
