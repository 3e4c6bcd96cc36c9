"""Try values of all fields of a run's YAML in several contexts, and find those that do nothing without a word.

python -m tests.helpers.effects                                # all fields in all contexts; half an hour of CPU
python -m tests.helpers.effects --contexts chats kl --only data.

A value has an effect (a figure, a record or a weight is another), is refused, or is said (a line of its own on the
screen). All else is silent, which is a fault unless `effects.yaml` has a reason; exit 1: there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli.main import main as control_llm
from tests.helpers.byte_level import byte_base
from tests.helpers.damaged import digests, without_pictures

TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
EFFECT, REFUSED, SAID, SILENT = "effect", "refused", "said", "silent"
NUMBER = re.compile(r"[\d.]+")


def values() -> dict[str, Any]:
    suites = {"new": {}, "kept": {"tasks": ["capitals"], "items": 4}, "drift": {"replies": 2, "reply_tokens": 4}}
    return {
        "name": "case", "base_model": "m", "precision": "fp32",
        "data": {"new": {"source": "file", "path": "sums.jsonl"}},
        "training": {"steps": 4, "batch_size": 4, "warmup_steps": 2, "keep": "last"},
        "evaluation": {"every": 4, "suites": suites, "new_items": 4, "bootstrap": 100},
        "arms": [{"name": "a", "method": "full", "learning_rates": [1e-2]}],
    }  # fmt: skip


def write_inputs(folder: Path) -> None:
    byte_base(folder / "m")
    sums = [{"question": f"{i} + {i + 1} =", "answer": str(2 * i + 1), "number": i} for i in range(40)]
    turns = ("user", "{}+1?"), ("assistant", "{}"), ("user", "and {}+2?"), ("assistant", "{}!")
    tables: dict[str, list[dict[str, Any]]] = {
        "sums": sums,
        "old": [{"question": f"{i} - 1 =", "answer": str(i - 1)} for i in range(1, 40)],
        "texts": [{"text": f"Text {i}: the sum of {i} and {i} is {2 * i}, as all know. " * 3} for i in range(40)],
        "choices": [{"question": f"Is it {i}?", "options": [f"{i}", f"{i + 1}"], "answer": f"{i}"} for i in range(24)],
        "chats": [
            {"messages": [{"role": "system", "content": f"Be brief {i % 3}."}]
             + [{"role": role, "content": text.format(i)} for role, text in turns]}
            for i in range(40)
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def put(config: Any, key: str, value: Any) -> None:
    """Set a field of plain values by its dotted key; what is no section on the way becomes one."""
    head, _, rest = key.partition(".")
    at: Any = int(head) if isinstance(config, list) else head
    if not rest:
        config[at] = value
        return
    if not isinstance(config, list) and not isinstance(config.get(at), dict | list):
        config[at] = {}
    put(config[at], rest, value)


@dataclass(frozen=True)
class Case:
    context: str
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.context}: {self.key}={json.dumps(self.value)}"


def cases() -> list[Case]:
    return [Case(c, key, value) for c in TABLE["contexts"] for key, found in TABLE["fields"].items() for value in found]


@dataclass
class Ran:
    """code: of the command. lines: on the screen, without numbers. facts: what was measured and trained."""

    code: Any
    lines: set[str]
    facts: dict[str, Any]


class Runs:
    """Runs in one folder. Each context is run twice: the second one says what it says when the base is measured."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "mlruns"
        self.known: dict[str, tuple[Ran, Ran]] = {}
        write_inputs(folder)

    def config(self, context: str) -> dict[str, Any]:
        config = values()
        for key, value in TABLE["contexts"][context].items():
            put(config, key, copy.deepcopy(value))
        return config

    def judge(self, case: Case) -> str:
        """Return EFFECT, REFUSED, SAID, SILENT, or what is wrong."""
        if case.context not in self.known:
            config = self.config(case.context)
            self.known[case.context] = self.run(config), self.run(config)
            assert self.known[case.context][1].facts == self.known[case.context][0].facts != {}
        before, again = self.known[case.context]
        config = self.config(case.context)
        try:
            put(config, case.key, case.value)
        except (ValueError, TypeError):  # a list where this context has several
            return REFUSED
        found = self.run(config)
        if found.code:
            return REFUSED if found.code in (1, 2) else f"BROKEN: exit {found.code}"
        if found.facts != before.facts:
            return EFFECT
        return SAID if found.lines - before.lines - again.lines else SILENT

    def run(self, config: dict[str, Any]) -> Ran:
        file, screen = self.folder / "case.yaml", io.StringIO()
        file.write_text(json.dumps(config))
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.chdir(self.folder)
            patch.setattr(gc, "collect", lambda *_: 0)  # half of the time
            without_pictures(patch)
            stack.enter_context(contextlib.redirect_stdout(screen))
            stack.enter_context(contextlib.redirect_stderr(screen))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            code = control_llm(["run", file.name, "--root", str(self.root), "--fresh"])
        folder = next(iter(re.findall(r"runs/(case-[0-9a-f]{8})", screen.getvalue())), "")
        lines = {NUMBER.sub("#", line.replace(folder, "")) for line in _said(screen.getvalue())}
        return Ran(code, lines, {} if code else facts(self.root / "runs" / folder))


def _said(text: str) -> Iterator[str]:
    """Leave out the lines of the closing table and of progress, which differ in time alone."""
    for line in text.splitlines():
        if line.strip() and not re.match(r"(a|full) +[\d.e-]+ |  gain |about .* min |report:|\r", line):
            yield line


def facts(run: Path) -> dict[str, Any]:
    """Return the figures, records and trained weights of a run."""
    results = {str(f.relative_to(run)): json.loads(f.read_text()) for f in sorted(run.glob("arms/*/result.json"))}
    figures = {name: {k: found.get(k) for k in ("scorecard", "trajectory", "steps")} for name, found in results.items()}
    return figures | digests(run, "base/items.jsonl", "arms/*/items-*.jsonl", "arms/*/trained/*.safetensors")


def silent(runs: Runs, chosen: list[Case], say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Return the cases that are faults. Prints them, and the count of each outcome, with `say`."""
    outcomes, faults = Counter[str](), []
    for case in chosen:
        outcome, now = runs.judge(case), _now(runs.config(case.context), case.key)
        if outcome == SILENT and (case.value == now or any(re.fullmatch(one, str(case)) for one in TABLE["same"])):
            outcome = "same, with a reason"
        outcomes[outcome] += 1
        if outcome == SILENT or outcome.isupper() or outcome.startswith("BROKEN"):
            faults.append(str(case))
            say(f"{case}: {outcome}")
    say(", ".join(f"{count} {what}" for what, count in outcomes.most_common()))
    return faults


def _now(config: Any, key: str) -> Any:
    """Return the value that the context has of a field; None if it sets none."""
    for part in key.split("."):
        if isinstance(config, list):
            config = config[int(part)] if part.isdigit() else None
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--contexts", nargs="+", choices=TABLE["contexts"], default=list(TABLE["contexts"]))
    parser.add_argument("--only", default="", help="keys that begin with this text")
    args = parser.parse_args(argv)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="effects-") as folder:
        chosen = [case for case in cases() if case.context in args.contexts and case.key.startswith(args.only)]
        return 1 if silent(Runs(Path(folder)), chosen, lambda text: print(text, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
