"""The report over synthetic results: invented arms whose figures are chosen here, to see that each finds its place."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from experiments.config import ExperimentConfig, parse_config
from experiments.plots.forgetting import forgetting_figure, looks, points
from experiments.records import ArmResult, Estimate
from experiments.report import format_table, markdown_table, table_csv, tint, write_report
from experiments.summary import number, overlap, rate_text, summary, tied_best, with_interval

TASKS = ("capitals", "continents", "past_tense", "plurals")
UI = "mlflow server --backend-store-uri sqlite:///mlruns/mlflow.db"
BASE = {"new_accuracy": Estimate(0.03, 0.01, 0.08), "kept_accuracy": Estimate(0.84, 0.79, 0.88)}


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def synthetic(
    arm: str, rate: float, gain: float, retention: float, kl: float = 0.2, steps: int = 60, status: str = "finished"
) -> ArmResult:
    """An invented arm that gains fast at first and forgets steadily; half-widths 0.08 and 0.03."""
    rng = np.random.default_rng(round(1e6 * (max(0.0, gain) + 2 * retention + rate)) if gain == gain else 0)
    trajectory = [{"step": 0, "gain": Estimate(0.0, 0.0, 0.0), "retention": Estimate(1.0, 1.0, 1.0)}]
    for step in range(20, steps + 1, 20):
        share = step / steps
        trajectory.append(
            {
                "step": step,
                "gain": around(gain * share**0.5, 0.08),
                "retention": around(1 + (retention - 1) * share**1.3, 0.03),
            }
        )
    card = {
        "gain": around(gain, 0.08),
        "retention": around(retention, 0.03),
        "nfr": around(0.03 + max(0.0, 0.8 * (1 - retention)), 0.02),
        "kl": around(kl, kl / 8),
        "perplexity_drift": around(kl / 2 - 0.02, 0.03),
        **{f"retention/{task}": around(retention + rng.normal(0, 0.06), 0.07) for task in TASKS},
    }
    cost = {"tokens_per_s": 612.4, "peak_memory_gb": 2.31, "seconds": 61.0}
    reason = None if status == "finished" else "loss became nan at step 23: lower the learning rate (0.003)"
    return ArmResult(arm, arm, rate, status, reason, steps, trajectory, card, cost)  # type: ignore[arg-type]


def six() -> list[ArmResult]:
    return [
        synthetic("full", 1e-3, 0.39, 0.47, 8.5),
        synthetic("full", 1e-4, 0.45, 0.88, 0.58),
        synthetic("partial", 1e-3, 0.38, 0.88, 0.91),
        synthetic("partial", 3e-4, 0.41, 0.93, 0.35),
        synthetic("control", 1e-3, 0.42, 0.975, 0.24),
        synthetic("control", 3e-4, 0.49, 1.0, 0.1),
    ]


def twelve() -> list[ArmResult]:
    """Crowded at the upper right, as good arms are."""
    more = [
        synthetic("stack", 1e-3, 0.43, 0.90, 0.4),
        synthetic("stack", 3e-4, 0.46, 0.95, 0.2),
        synthetic("slerp", 1e-3, 0.47, 0.96, 0.2),
        synthetic("slerp", 3e-4, 0.48, 0.99, 0.1),
        synthetic("replay-25-percent", 2.5e-5, 0.30, 1.01, 0.004),
        synthetic("full", 3e-3, 0.10, 0.35, 9.0, steps=20, status="failed"),
    ]
    return [*six(), *more]


def untrained() -> ArmResult:
    return ArmResult("broken", "control", 1e-3, "failed", "OutOfMemoryError: <no memory>\nsecond line")


@pytest.fixture
def config() -> ExperimentConfig:
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    return parse_config({"name": "synthetic", "arms": arms})


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
    assert (tmp_path / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![retention against gain](forgetting.png)" in markdown
    assert "- broken 1e-3: failed: OutOfMemoryError: <no memory> second line" in markdown


@pytest.mark.parametrize(
    "results",
    [
        [],
        [untrained()],
        [synthetic("full", 1e-3, 0.4, 0.9)],
        [synthetic("full", 1e-3, math.nan, math.nan, math.nan), synthetic("full", 1e-4, 0.1, 0.9)],
        [ArmResult("bare", "full", 1e-3, "finished")],
        twelve(),
    ],
    ids=["none", "failed", "one", "nan", "bare", "twelve"],
)
def test_any_number_of_arms_and_any_gap_in_them_makes_a_report(
    results: list[ArmResult], tmp_path: Path, config: ExperimentConfig
) -> None:
    page = read_page(write_report(tmp_path, config, {}, results, UI))
    table = format_table(results)
    for result in results:
        assert result.arm in page.text
        assert result.arm in table
        assert result.arm in markdown_table(results)


def test_a_report_is_replaced_when_it_is_made_again(tmp_path: Path, config: ExperimentConfig) -> None:
    write_report(tmp_path, config, BASE, six(), UI)
    page = read_page(write_report(tmp_path, config, BASE, six()[:1], UI))
    assert "partial" not in page.text


def test_the_terminal_table_fits_and_shows_intervals() -> None:
    lines = format_table([*six(), untrained()]).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[0].split() == ["arm", "lr", "gain", "retention", "neg.", "flips", "KL", "ppl", "drift", "tok/s", "GB"]
    values = ["+.49 [.41,.57]", "1.00 [.97,1.03]", ".03 [.01,.05]", ".10 [.09,.11]", "+.03 [.00,.06]", "612", "2.3"]
    assert lines[7].split() == ["control", "3e-4", *" ".join(values).split()]
    assert lines[8] == "broken  1e-3 failed: OutOfMemoryError: <no memory> ..."


def test_the_csv_holds_every_figure_of_every_arm() -> None:
    results = [*six(), untrained()]
    rows = list(csv.DictReader(io.StringIO(table_csv(BASE, results))))
    assert [row["arm"] for row in rows] == ["base", *(r.arm for r in results)]
    assert float(rows[0]["kept_accuracy_high"]) == 0.88
    for row, result in zip(rows[1:7], results, strict=False):
        for name, estimate in result.scorecard.items():
            assert (float(row[name]), float(row[f"{name}_low"])) == (estimate.value, estimate.low)
        assert float(row["cost_tokens_per_s"]) == 612.4
    assert rows[-1]["reason"].startswith("OutOfMemoryError")
    assert rows[-1]["gain"] == ""


def test_the_words_follow_from_intervals() -> None:
    words = summary(six())
    assert words[0] == (
        "control 3e-4 gains most on the new task: +.49 [.41,.57], but it is not distinguishable from any other arm: "
        "the intervals overlap."
    )
    assert words[1] == (
        "control 3e-4 forgets least, by its retention of the kept tasks: 1.00 [.97,1.03]. It is not distinguishable "
        "from control 1e-3, and outside the intervals of the others."
    )
    assert words[2] == (
        "Among the 6 arms whose gain is level with the highest, control 3e-4 keeps most (1.00); below it, and outside "
        "its interval: full 1e-3 (.47), full 1e-4 (.88), partial 1e-3 (.88) and partial 3e-4 (.93)."
    )
    assert words[3] == (
        "Retention lies below 1 by more than its interval for full 1e-3, full 1e-4, partial 1e-3 and partial 3e-4."
    )
    assert words[4] == "Not distinguishable from no forgetting: control 1e-3 and control 3e-4."
    assert len(words) == 5


def test_the_words_for_a_clear_lead_one_arm_and_no_arm() -> None:
    far = [synthetic("full", 1e-3, 0.8, 0.5), synthetic("control", 1e-3, 0.05, 0.99)]
    assert summary(far)[0].endswith("+.80 [.72,.88], outside the intervals of all other arms.")
    assert summary(far)[1].startswith("control 1e-3 forgets least")
    assert summary(far)[-1] == "No gain outside the interval: control 1e-3; retention without a gain says little."
    assert summary(far[:1])[0] == (
        "full 1e-3 gains +.80 [.72,.88] on the new task at a retention of .50 [.47,.53] on the kept tasks."
    )
    failed = synthetic("full", 1e-3, 0.9, 1.0, status="failed")
    assert summary([failed])[0].startswith("No arm finished")
    assert summary([failed, *far]) == summary(far)


def test_only_arms_whose_intervals_overlap_are_tied() -> None:
    assert overlap(Estimate(1, 0, 2), Estimate(3, 2, 4))
    assert not overlap(Estimate(1, 0, 2), Estimate(3, 2.1, 4))
    assert overlap(Estimate(1), Estimate(9, 8, 10))
    results = six()
    assert [r.label for r in tied_best(results, "kl", higher=False)] == ["control 0.0003"]
    assert tied_best([untrained()], "kl", higher=False) == []


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.414, True, "+.41"), (-0.414, False, "-.41"), (0.0471, False, ".05"), (1.0, False, "1.00"),
        (12.34, False, "12.34"), (0.0, True, ".00"), (-0.0001, True, ".00"), (math.nan, True, "n/a"),
        (math.inf, False, "inf"), (-math.inf, False, "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_honest(value: float, signed: bool, text: str) -> None:
    assert number(value, signed) == text


def test_intervals_have_as_many_places_as_their_value() -> None:
    assert with_interval(Estimate(0.412, 0.05, -0.004), True) == "+.41 [.05,.00]"
    assert with_interval(Estimate(0.5)) == ".50"
    assert with_interval(None) == "-"
    nats = [with_interval(Estimate(v, v, v), places=(3, 2, 1)) for v in (0.0042, 0.0996, 0.58, 0.996, 8.47)]
    assert nats == [".004 [.004,.004]", ".10 [.10,.10]", ".58 [.58,.58]", "1.0 [1.0,1.0]", "8.5 [8.5,8.5]"]


def test_learning_rates_read_as_they_are_written() -> None:
    assert [rate_text(r) for r in (1e-3, 3e-4, 2.5e-5, 0.01, 1e-10, 0.5)] == [
        "1e-3", "3e-4", "2.5e-5", "0.01", "1e-10", "0.5",
    ]  # fmt: skip


def test_the_tint_says_which_way_and_how_far() -> None:
    assert tint(1.0) == "#ffffff"
    assert tint(math.nan) == "#f1f3f5"
    red, _, blue = (int(tint(0.6)[i : i + 2], 16) for i in (1, 3, 5))
    assert red > blue
    assert int(tint(1.3)[5:7], 16) > int(tint(1.3)[1:3], 16)
    assert tint(0.5) == tint(0.1) != tint(0.7)


def test_arms_differ_in_colour_and_marker_and_rates_in_line_and_fill() -> None:
    drawn = looks(twelve())
    assert len({(look.colour, look.marker, look.line, look.filled) for look in drawn}) == 12
    full, other = drawn[0], drawn[1]
    assert (full.colour, full.marker) == (other.colour, other.marker)
    assert full.line != other.line
    assert drawn[0].line == drawn[2].line
    assert drawn[0].colour != drawn[2].colour


@pytest.mark.parametrize("results", [six(), twelve(), twelve()[4:5]], ids=["six", "twelve", "one"])
def test_names_in_the_plot_do_not_cover_each_other(results: list[ArmResult]) -> None:
    figure = forgetting_figure(results, "synthetic")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    names = [t for t in axes.texts if re.search(r"e-\d", t.get_text())]
    assert len(names) == len(results)
    boxes = [t.get_window_extent() for t in names]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), names[i].get_text()
        assert box.x0 > 0
        assert box.x1 < figure.bbox.x1
        assert box.y1 < figure.bbox.y1
        ends = [axes.transData.transform([p.value for p in points(r)[-1]]) for r in results]
        assert not any(box.contains(*end) for end in ends), names[i].get_text()


def test_the_plot_starts_at_the_base_model_and_ends_at_the_last_step() -> None:
    result = synthetic("full", 1e-3, 0.4, 0.9)
    axes = forgetting_figure([result], "synthetic").axes[0]
    line = max(axes.lines, key=lambda each: len(each.get_xdata()))  # type: ignore[arg-type]
    assert line.get_xydata()[0].tolist() == [0, 1]
    assert line.get_xydata()[-1].tolist() == pytest.approx([0.4, 0.9])
    assert len(line.get_xdata()) == 4  # type: ignore[arg-type]
    result.trajectory[2]["gain"] = Estimate(math.nan)
    assert len(points(result)) == 2
