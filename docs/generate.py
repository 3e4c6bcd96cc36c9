"""Fill the generated parts of the pages, draw the figure, write the lines of `control-llm list`.

Run it with `python -m docs.generate`, or `make docs`.

A generated part is the text between the lines `<!-- generated: NAME ... -->` and `<!-- end -->`. NAME is a key of
PARTS; the words after it are its arguments.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from ctrl import ControlConfig
from docs.figures import method
from docs.sections import control_table, fields_table, variant, variants
from docs.verdicts import architectures
from experiments.cli import catalogue
from experiments.cli.main import parser
from experiments.config import SHIPPED, ExperimentConfig
from experiments.data.chosen import ReplayChoice
from experiments.data.config import DataConfig
from experiments.data.grader import Grader
from experiments.data.graders import GRADERS, Function
from experiments.data.procedural import OtherQuestions
from experiments.data.sources import SOURCES
from experiments.data.tested import TestSet
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.kept_tasks.own import KeptFile
from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS
from experiments.evaluation.suites import SUITES
from experiments.methods import AVERAGES, LOSS_TERMS, METHODS, TUNINGS
from experiments.methods.base import Average, LossTerm, Tuning
from experiments.methods.config import ArmConfig
from experiments.methods.tuning import Control
from experiments.reporting.figures_page import figures_markdown
from experiments.reporting.table import Table
from experiments.studies import config as study
from experiments.studies.space import DIMENSIONS
from experiments.training.arguments import OWNED, OWNED_STARTS, PASSED
from experiments.training.config import TrainingConfig
from experiments.training.groups import Rates
from experiments.training.schedules import SCHEDULES

HERE = Path(__file__).parent
PART = re.compile(r"(<!-- generated: (\w+)((?: [\w.-]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTIONS: dict[str, type[BaseModel]] = {
    "run": ExperimentConfig,
    "data": DataConfig,
    "choose": ReplayChoice,
    "training": TrainingConfig,
    "rates": Rates,
    "evaluation": EvaluationConfig,
    "arms": ArmConfig,
    "study": study.StudyConfig,
    "objectives": study.Objective,
    "constraints": study.Constraint,
    "sampler": study.Sampler,
    "pruner": study.Pruner,
    "budget": study.Budget,
    "report": study.ReportConfig,
    "posthoc": study.Posthoc,
}
ANCHORS: dict[type, str] = {cls: name for name, cls in SECTIONS.items()} | {ControlConfig: "control"}
ANCHORS |= {
    ReplayChoice: "Choice of replayed examples",
    Grader: "Graders",
    TestSet: "Test sets",
    OtherQuestions: "Test sets",
    KeptFile: "Kept tasks",
}
ANCHORS |= {Tuning: "What trains", LossTerm: "Loss terms", Average: "Averages of weights"}
ANCHORS |= dict.fromkeys(SOURCES.values(), "Sources") | dict.fromkeys(DIMENSIONS.values(), "Dimensions")


def fields(name: str) -> str:
    """The table of one section."""
    return fields_table(SECTIONS[name], ANCHORS)


def kept_tasks() -> str:
    """The kept tasks with their number of questions."""
    rows = tuple((f"`{name}`", len(task()), first_line(task)) for name, task in KEPT_TASKS.items())
    return Table("", ("task", "questions", "contents"), rows).markdown()


def suites() -> str:
    """Every suite with its settings."""
    return "\n\n".join(variant("Suite", name, suite, ANCHORS, suite.Settings) for name, suite in SUITES.items())


def test_sets() -> str:
    """The test set of a source of rows, and that of a generator."""
    return "\n\n".join(f"{inspect.getdoc(cls)}\n\n{fields_table(cls, ANCHORS)}" for cls in (TestSet, OtherQuestions))


def tunings() -> str:
    """What can train. The fields of Control LLM have a section of their own."""
    parts = []
    for name, cls in TUNINGS.items():
        own = issubclass(cls, Control)
        parts.append(variant("Tuning", name, cls, ANCHORS, None if own else cls))
        if own:
            parts.append("Fields: those of [control](#control).")
    return "\n\n".join(parts)


def shorthands() -> str:
    """The short names of methods."""
    kinds: dict[str, Mapping[str, object]] = {"train": TUNINGS, "loss": LOSS_TERMS, "average": AVERAGES}
    rows = []
    for name in METHODS:
        kind = next(kind for kind, table in kinds.items() if name in table)
        place = "control" if kind == "train" and TUNINGS[name].in_control else "options"
        rows.append((f"`{name}`", f"`{kind}: {f'[{name}]' if kind == 'loss' else name}`", f"`{place}`"))
    return Table("", ("method", "is short for", "its fields are in"), tuple(rows)).markdown()


def arguments() -> str:
    """The fields of TrainingArguments that can be given, and those that the bench has for itself."""
    passed = Table("", ("argument", "meaning"), tuple((f"`{name}`", text) for name, text in PASSED.items()))
    reasons: dict[str, list[str]] = {}
    for name, why in [*OWNED.items(), *((f"{start}...", why) for start, why in OWNED_STARTS.items())]:
        reasons.setdefault(why, []).append(f"`{name}`")
    refused = tuple((", ".join(names), why) for why, names in reasons.items())
    return (
        f"{passed.markdown()}\n\nRefused, with the reason:\n\n{Table('', ('argument', 'reason'), refused).markdown()}"
    )


def first_line(value: object) -> str:
    """The first line of a docstring."""
    return (value.__doc__ or "").splitlines()[0]


def commands() -> str:
    """Every command of control-llm with its arguments."""
    top = parser()
    actions = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in actions._choices_actions}
    return "\n\n".join(_command(name, str(helps[name]), command) for name, command in actions.choices.items())


def _command(name: str, text: str, command: argparse.ArgumentParser) -> str:
    rows = [
        (_argument(action), (action.help or "") % {"default": action.default})
        for action in command._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    table = Table("", ("argument", "meaning"), tuple(rows)).markdown() if rows else "It takes no arguments."
    return f"### control-llm {name}\n\n{text[0].upper()}{text[1:].rstrip(' .')}.\n\n{table}"


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[-1]}{value}`" + (" (required)" if action.required else "")


def config(name: str) -> str:
    """A shipped YAML file."""
    return f"```yaml\n{(SHIPPED / f'{name}.yaml').read_text(encoding='utf-8')}```"


def example(name: str) -> str:
    """A file of docs/examples."""
    return f"```python\n{(HERE / 'examples' / name).read_text(encoding='utf-8')}```"


PARTS: dict[str, Callable[..., str]] = {
    "fields": fields,
    "control": control_table,
    "sources": lambda: variants("Source", SOURCES, ANCHORS),
    "graders": lambda: variants("Grader", {**GRADERS, "FILE:FUNCTION": Function}, ANCHORS),
    "test_sets": test_sets,
    "tunings": tunings,
    "loss_terms": lambda: variants("Loss term", LOSS_TERMS, ANCHORS),
    "averages": lambda: variants("Average", AVERAGES, ANCHORS),
    "shorthands": shorthands,
    "arguments": arguments,
    "suites": suites,
    "schedules": lambda: variants("Schedule", SCHEDULES, ANCHORS),
    "dimensions": lambda: variants("Dimension", DIMENSIONS, ANCHORS),
    "kept_tasks": kept_tasks,
    "kept_file": lambda: fields_table(KeptFile, ANCHORS),
    "figures": figures_markdown,
    "commands": commands,
    "architectures": architectures,
    "config": config,
    "example": example,
}


def filled(text: str) -> str:
    """The text of a page with its generated parts made again. Raises KeyError for an unknown name."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]](*part[3].split())}\n\n{part[4]}", text)


def main() -> None:
    """Write all pages, the figure, and the lines that `control-llm list` shows."""
    catalogue.write()
    method.draw(HERE / "figures" / "method.svg")
    for page in sorted(HERE.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
