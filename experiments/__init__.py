"""The bench: train a base model in several ways, and measure what each learns and forgets.

What notebooks and scripts need is here, under one import:

    import experiments
    config = experiments.load_config("quickstart", {"training.steps": 20})
    outcome = experiments.run_experiment(config)
    print(experiments.format_table(outcome.results))

A name is imported from its room when it is first used: `import experiments` takes no time and does not load torch.
This module is the face of all rooms. It alone may import from each of them, and no room may import from it.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the only list of the names: type checkers read it, and so does _homes
    from experiments.cli.console import quiet
    from experiments.common.errors import BenchError, ConfigError
    from experiments.comparison.compare import compare
    from experiments.comparison.gate import gate
    from experiments.comparison.inputs import read_runs
    from experiments.comparison.plot import comparison_figure
    from experiments.comparison.report import figures_table, format_comparison, write_comparison
    from experiments.config import ExperimentConfig, load_config, parse_config
    from experiments.desk.answers import answers
    from experiments.desk.buttons import Buttons
    from experiments.desk.compared import comparison_hover
    from experiments.desk.dial import Dial
    from experiments.desk.explore import Picture, branches_hover, forgetting_hover, projection_hover
    from experiments.desk.grid import Grid
    from experiments.desk.listing import Results, open_result
    from experiments.desk.picker import Picker
    from experiments.desk.search import StudyView
    from experiments.desk.watch import start, stop, watch, watch_async
    from experiments.evaluation.suites.alignment import branch_table, hidden_states, layer_table, sentences
    from experiments.evaluation.weights import update_sizes
    from experiments.measure.callback import ForgettingCallback
    from experiments.measure.run import measure as measure_models  # `measure` is the room
    from experiments.models.base import load_base
    from experiments.plan.plan import plan_run
    from experiments.plan.report import plan_text
    from experiments.posthoc.export import export as export_model
    from experiments.posthoc.run import posthoc as run_posthoc  # `posthoc` is the room
    from experiments.reporting.plots.alignment import alignment_figure, projection_figure
    from experiments.reporting.plots.caption import Asked, asked_in, caption
    from experiments.reporting.plots.dial import dial_figure
    from experiments.reporting.plots.forgetting import forgetting_figure
    from experiments.reporting.tables import arms_table, format_table
    from experiments.runs.preview import preview
    from experiments.runs.run import open_run, run_experiment
    from experiments.runs.trained import load_trained, replies, replies_at
    from experiments.soften.plot import path_figure
    from experiments.soften.run import soften as soften_model  # `soften` is the room
    from experiments.studies.frame import frame
    from experiments.studies.launch import run_study
    from experiments.studies.load import load_study, parse_study
    from experiments.tracking.sync import download


def _homes() -> dict[str, tuple[str, str]]:
    """Return name -> (module, name there), from the imports above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {one.asname or one.name: (str(node.module), one.name) for node in imports for one in node.names}


_HOMES = _homes()
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'experiments' has no attribute {name!r}; it has {', '.join(_HOMES)}")
        module, other = _HOMES[name]
        value = globals()[name] = getattr(importlib.import_module(module), other)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
