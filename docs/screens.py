"""Take the pictures of JupyterLab, MLflow and optuna-dashboard that the pages show, in docs/figures/.

    control-llm study facts-rates && control-llm report facts-rates
    python -m docs.screens mlruns

needs chromium (CONTRIBUTING.md). Nothing is trained: it shows what the study has left in the given root.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from experiments.reporting.page import few_colours
from tests.helpers.browser import new_page, open_browser
from tests.helpers.lab import Notebook, copied_project, open_lab
from tests.helpers.served_ui import served

FIGURES = Path(__file__).parent / "figures"
ARM = "name: lerp8-mse"  # whose layers have a divergence
STUDY, SHOWN = "facts-rates", (1100, 820)  # CSS pixels
COLOURS = 128  # of a PNG: it stays below 250 kB


def main(root: Path) -> None:
    """Write desk.png, mlflow.png and optuna.png."""
    with open_browser() as browser, tempfile.TemporaryDirectory() as folder:
        take_lab(browser, root.resolve(), Path(folder))
        with served(root, "--optuna") as (_, said):
            take_mlflow(browser, found(rf"{STUDY} +charts +(\S+)", said))
            take_optuna(browser, found(rf"(?m)^{STUDY} +(\S+/dashboard/studies/\d+)$", said))


def take_lab(browser: Any, root: Path, scratch: Path) -> None:
    """Show a trial of the study as `watch` draws it."""
    project = scratch / "project"
    project.mkdir()
    copied_project(project)
    configs = [path for path in sorted(root.glob(f"runs/{STUDY}-*/config.yaml")) if ARM in path.read_text()]
    run = next(path.parent for path in configs if list(path.parent.glob("arms/*/journal-*.jsonl")))  # has its steps
    weights = shutil.ignore_patterns("*.safetensors", "checkpoints", "cache")
    shutil.copytree(run, project / "mlruns" / "runs" / run.name, ignore=weights)  # the paths in the picture are short
    cell = nbformat.v4.new_code_cell(f'from experiments import watch\n\nwatch("{run.name}", "mlruns")')
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, project / "watch.ipynb")
    with open_lab(project, scratch) as address:
        opened = Notebook(browser, address, "watch.ipynb")
        opened.run_all()
        opened.finished()
        opened.page.wait_for_timeout(1000)
        save(opened.page, "desk")


KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def take_mlflow(browser: Any, address: str) -> None:
    page = new_page(browser, 1500, 1000)
    page.goto(address)
    for name in ("assistant.chat_panel.close", "experiment_page.shared_view.dismiss"):
        page.locator(f'[data-component-id="mlflow.{name}"]').click()
    page.locator(".js-plotly-plot .point").first.wait_for()
    page.wait_for_timeout(8000)  # all charts
    save(page, "mlflow")


def take_optuna(browser: Any, address: str) -> None:
    """Show a trial: its note, its values, its picture."""
    page = new_page(browser, *SHOWN)
    page.goto(f"{address}/trials?numbers=6")
    page.get_by_role("link", name="Trial 6 in MLflow").wait_for()
    page.wait_for_timeout(2000)
    save(page, "optuna")


def save(page: Any, name: str) -> None:
    """Write a PNG of few colours."""
    (FIGURES / f"{name}.png").write_bytes(few_colours(page.screenshot(), COLOURS))


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no study {STUDY!r} in this root: run it first, or give its root")
    return match[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
