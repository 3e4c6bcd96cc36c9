"""README, CONTRIBUTING and the pages of docs/ are true: links, commands, code, YAML, generated parts, numbers."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from ctrl.config import Structure
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import INTERPOLATIONS
from docs.figures import method
from docs.generate import PART, filled
from docs.sections import meaning
from experiments.cli.main import parser
from experiments.config import SHIPPED, parse_config
from experiments.data.shapes import SHAPES
from experiments.evaluation.suites import SUITES
from experiments.methods import METHODS
from experiments.posthoc.operations import OPERATIONS
from experiments.records import Estimate
from experiments.reporting.text import with_interval
from experiments.studies.load import parse_study
from experiments.studies.space import DIMENSIONS
from tests.helpers.pages import FENCE, ROOT, blocks

PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
COMMAND = re.compile(r"(?:\S+=\S+ )*(?:control-llm|\S+ .*-m experiments\.cli) (.*)")
FRAGMENT: dict[str, Any] = {"name": "x", "arms": [{"name": "full", "method": "full", "learning_rates": [1e-4]}]}
WORDS = (
    "arm", "run", "study", "trial", "base model", "pretrained layer", "copy", "expanded layer", "alpha", "divergence",
    "new task", "kept tasks", "gain", "retention", "negative flip", "A/A floor", "KL", "perplexity drift", "replay",
    "stage", "suite", "item", "record", "figure", "held-out", "checkpoint", "progress", "broadcast, all_gather",
    "main process", "significant", "LoRA", "EWC", "product", "trajectory", "preset", "CKA", "Pareto front", "NSGA-II",
)  # fmt: skip

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def prose(document: Path) -> str:
    """The text without code blocks and generated parts."""
    return FENCE.sub("", PART.sub("", document.read_text()))


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert filled(text) == text, "run `make docs`"


def test_a_part_that_is_out_of_date_is_found() -> None:
    stale = "<!-- generated: config quickstart -->\n\n```yaml\nname: old\n```\n\n<!-- end -->\n"
    assert "source: facts" in filled(stale)
    with pytest.raises(KeyError, match="nothing"):
        filled("<!-- generated: nothing -->\n<!-- end -->")


def test_a_field_keeps_the_description_of_the_one_that_it_replaces() -> None:
    class Base(BaseModel):
        kind: str = Field(description="kind of thing")
        bare: int = 0

    class Own(Base):
        kind: Literal["own"] = "own"

    assert meaning(Own, "kind") == "kind of thing"
    with pytest.raises(KeyError, match=r"Own\.bare has no description: write Field"):
        meaning(Own, "bare")


def test_the_figure_is_up_to_date_and_small() -> None:
    drawn = io.BytesIO()
    method.draw(drawn)
    committed = (ROOT / "docs" / "figures" / "method.svg").read_bytes()
    assert drawn.getvalue() == committed, "run `make docs`"
    assert len(committed) < 80_000


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    targets = [target for target in re.findall(r"""(?:\]\(|src=")([^)"\s]+)""", text) if "://" not in target]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


@every_document
def test_python_blocks_compile(document: Path) -> None:
    for text in blocks(document, "python"):
        compile(text, document.name, "exec")


@every_document
def test_yaml_blocks_are_configs(document: Path) -> None:
    """Whole runs and studies, or parts of a run."""
    for text in blocks(document, "yaml"):
        values = yaml.safe_load(text)
        if "apiVersion" in values:  # of Kubernetes: test_clusters.py
            continue
        if "search" in values:
            parse_study(values, source=document.name)
        else:
            parse_config(FRAGMENT | values, document.name)


@every_document
def test_commands_exist(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = document.read_text()
    lines = [line for block in blocks(document, "bash") for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`(control-llm [a-z][^`]*)`", FENCE.sub("", text))]
    commands = [found[1] for line in lines if (found := COMMAND.match(line))]
    for command in commands:
        words = [word for word in shlex.split(command, comments=True) if word != "&"]
        code, args = parsed(words)
        assert code == 0, f"{command}: {capsys.readouterr().err}"
        config = str(getattr(args, "config", "x.yaml"))
        folder = SHIPPED / "studies" if words[0] == "study" else SHIPPED
        assert config.endswith(".yaml") or (folder / f"{config}.yaml").is_file(), command


def parsed(words: list[str]) -> tuple[int | str | None, Namespace]:
    """(exit code, arguments) of a command line; a command alone is asked for its help."""
    try:
        return 0, parser().parse_args(words if len(words) > 1 else [*words, "--help"])
    except SystemExit as end:
        return end.code, Namespace()


@every_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= targets


@every_document
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(r"\b((?:ctrl|experiments|tests|docs|benchmarks|notebooks)/[\w./-]*\w)", prose(document))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@every_document
def test_figures_with_an_interval_are_those_of_a_committed_result(document: Path) -> None:
    found = re.findall(r"\+?(-?\d*\.\d+ \[[^\]\s]+\])", prose(document))
    assert [figure for figure in found if figure not in committed_figures()] == []


@functools.cache
def committed_figures() -> set[str]:
    """Every figure with its interval in committed reports, tables, notebooks and the log, without a plus sign."""
    folder = ROOT / "experiments"
    texts = [
        path.read_text()
        for path in (*folder.glob("results/*/*.md"), folder / "LOG.md", *(ROOT / "notebooks").glob("*.ipynb"))
    ]
    found = {figure for text in texts for figure in re.findall(r"-?\d*\.\d+ \[[^\]\s]+\]", text)}
    for path in folder.glob("results/*/*.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {
                    with_interval(Estimate(*(float(row[name + end]) for end in ("", "_low", "_high"))))
                    for name in row
                    if row[name] and row.get(f"{name}_low")
                }
    return found


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@every_document
def test_lines_of_prose_fit_a_window(document: Path) -> None:
    lines = [line for line in prose(document).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 160] == []


def test_the_glossary_has_every_word_and_where_it_is_used() -> None:
    page = ROOT / "docs" / "glossary.md"
    entries = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", page.read_text(), re.DOTALL | re.MULTILINE)
    names = [name for name, _ in entries]
    assert len(set(names)) == len(names)
    assert set(WORDS) <= set(names)
    for name, text in entries:
        assert "Page: [" in text, name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("method.md", [*Structure.__args__, *INTERPOLATIONS, *DIVERGENCES, *METHODS]),  # type: ignore[attr-defined]
        ("scorecard.md", list(SUITES)),
        ("data.md", [shape.name for shape in SHAPES]),
        ("compare-and-gate.md", list(OPERATIONS)),
        ("studies.md", [*DIMENSIONS, *(path.stem for path in SHIPPED.glob("studies/*.yaml"))]),
    ],
)
def test_every_variant_has_a_row_in_its_table(page: str, names: list[str]) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert [name for name in names if f"\n| `{name}` |" not in text] == []


def test_every_page_is_in_the_navigation_the_index_and_the_readme() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    index, readme = ((ROOT / name).read_text() for name in ("docs/index.md", "README.md"))
    for page in PAGES:
        assert f": {page.name}\n" in navigation, page.name
        if page.name != "index.md":
            assert f"]({page.name})" in index, page.name
            assert f"](docs/{page.name})" in readme, page.name


def test_each_picture_is_small_and_shown_by_a_page() -> None:
    """docs/screens.py takes them."""
    pages = "".join(page.read_text() for page in DOCUMENTS)
    pictures = list((ROOT / "docs" / "figures").glob("*.png"))
    assert {"desk.png", "mlflow.png", "optuna.png"} <= {picture.name for picture in pictures}
    for picture in pictures:
        assert picture.stat().st_size < 250_000
        assert f"(figures/{picture.name})" in pages


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Strict: mkdocs fails on a link or an anchor that leads nowhere. Formulas are MathML, linked code is a page."""
    pytest.importorskip("material", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "method.html").read_text()
    assert "<math" in page
    assert "arithmatex" not in page
    assert "class Lerp" in re.sub(r"<[^>]+>", "", (tmp_path / "project/ctrl/interpolation.py.html").read_text())
    assert (tmp_path / "project/experiments/results/quickstart/forgetting.png").is_file()
