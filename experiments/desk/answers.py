"""Browse the answers of a run: question, the base model's answer, the arm's answer; chosen by a rule, not by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.errors import ConfigError
from experiments.common.paths import root_folder
from experiments.common.result_folders import find
from experiments.common.section import nearest
from experiments.config import run_config
from experiments.desk.grid import Grid
from experiments.records import Record, read_records
from experiments.reporting.answers import Questions, Turned, all_answers, question_texts
from experiments.reporting.table import Table
from experiments.runs.arm_records import is_whole
from experiments.runs.result_file import RESULT, check_files, result_values
from experiments.runs.run import open_run

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # answers of each arm and word
HEAD = ("arm", "answer", "task", "question", "right", "base model", "arm's answer")
WORDS = ("lost", "won", "kept")
CHOOSERS = ("arm", "answer", "task")
LONGEST = 400  # characters of a cell


class Answers:
    """Lost, won and kept answers of the arms of a run: a table with filters in a notebook, `frame` for more.

    Questions are counted: one that is asked in two forms has two answers, and is here once for each word. The rule: of
    each arm and each word (lost, won, kept) the `count` answers whose right option changed most in its lead over the
    best wrong one. Answers in free text have no such lead, and keep their order.
    """

    def __init__(self, found: Mapping[str, Sequence[tuple[str, Turned]]], count: int) -> None:
        self.found, self.count = found, count

    @property
    def frame(self) -> pd.DataFrame:
        """All of them as a pandas table: arm, answer, task, question, right, before, after, clarity."""
        import pandas as pd

        rows = [{"arm": arm, "answer": word, **asdict(one)} for arm, ones in self.found.items() for word, one in ones]
        return pd.DataFrame(rows, columns=["arm", "answer", *Turned.__dataclass_fields__])

    def _repr_html_(self) -> str:
        return str(Grid(self.table(), self._words(), CHOOSERS, prose=True).html())

    def sample(self, arm: str = "") -> list[str]:
        """Return the questions of an arm's clearest lost, won and kept answer: prompts that nobody picked by hand.

        arm: as its folder; default: the first. Raises ConfigError for an arm that is not there.
        """
        arm = arm or next(iter(self.found))
        if arm not in self.found:
            raise ConfigError(f"no arm {arm!r} among these answers: {nearest(arm, self.found)}")
        first: dict[str, str] = {}
        for word, one in self.found[arm]:
            first.setdefault(word, one.question)
        return [first[word] for word in WORDS if word in first]

    def table(self, words: Sequence[str] = WORDS) -> Table:
        """Make a table of the first ones. words: which of lost, won, kept."""
        return Table("", HEAD, tuple(row for row in self._shown() if row[1] in words))

    def _shown(self) -> list[tuple[str, ...]]:
        rows = []
        for arm, ones in self.found.items():
            seen: Counter[str] = Counter()
            for word, one in ones:
                seen[word] += 1
                if seen[word] <= self.count:
                    texts = map(_cut, (one.question, one.right, one.before, one.after))
                    rows.append((arm, word, one.task, *texts))
        return rows

    def _words(self) -> str:
        """Say of how many questions there are some, for example `full 0.001: 12 lost, 4 won, 80 kept`."""
        texts = []
        for arm, ones in self.found.items():
            counts = Counter(word for word, _ in ones)
            texts.append(f"{arm}: " + ", ".join(f"{counts[word]} {word}" for word in WORDS))
        counted = "Questions with a lost, won or kept answer (one that is asked in two forms has two answers): "
        rule = f"Below, of each the {self.count} whose right option changed most in its lead."
        return f"{counted}{'; '.join(texts)}. {rule}"


def answers(
    source: str | Path, root: str | Path | None = None, arms: Sequence[str] = (), count: int = SHOWN
) -> Answers:
    """Return the lost, won and kept answers of the arms of a run after their last step.

    source: the run's folder, its name, or the beginning of it. arms: `name-rate`, as their folders; default: all. Loads
    the base model's tokenizer and draws the questions again, as the run did. Raises ConfigError.
    """
    if count < 1:
        raise ConfigError(f"count={count}: give how many answers of each kind are shown, 1 or more")
    folder = find(str(source), root_folder(root))
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder.name} is no run: name a run, or the run of a trial")
    found = last_records(folder, arms)
    questions = question_texts(open_run(folder, say=lambda text: None).suites.suites.values())
    return Answers(sorted_answers(read_records(folder / "base" / "items.jsonl"), found, questions), count)


def sorted_answers(
    base: Sequence[Record], arms: Mapping[str, Sequence[Record]], questions: Questions
) -> dict[str, list[tuple[str, Turned]]]:
    """Return `all_answers` of each arm."""
    return {name: all_answers(base, records, questions) for name, records in arms.items()}


def last_records(folder: Path, arms: Sequence[str] = ()) -> dict[str, list[Record]]:
    """Return the records of each arm after its last evaluation, by the name of its folder.

    Raises ConfigError, and DamagedError for records that the arm's result was not made from.
    """
    names = [f"{arm.name}-{rate:g}" for arm in run_config(folder).arms for rate in arm.learning_rates]
    if unknown := [name for name in arms if name not in names]:
        raise ConfigError(f"no arm {unknown[0]!r} in {folder.name}: {nearest(unknown[0], names)}")
    found = {}
    for name in arms or names:
        if file := _last_file(folder / "arms" / name):
            found[name] = read_records(file)
    if not found:
        raise ConfigError(
            f"no arm of {folder.name} has been measured yet: run it first, or wait for its first evaluation"
        )
    return found


def _last_file(arm: Path) -> Path | None:
    """Return the records of an arm's last evaluation: of its result, or else the last that is as it was written."""
    result = arm / RESULT
    if step := result_values(result).get("steps"):
        check_files(result)
        return arm / f"items-{step}.jsonl"
    steps = {p.stem.removeprefix("items-"): p for p in arm.glob("items-*.jsonl") if is_whole(p)}
    return max((int(step), path) for step, path in steps.items() if step.isdigit())[1] if steps else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
