"""What a run writes down: one record per item and checkpoint, one result per arm. Plain JSON on disk.

Every figure of the scorecard is computed from the item records, so any metric can be recomputed later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.common.errors import DamagedError
from experiments.common.files import json_lines, parse_json, write_text

NAMES = ("suite", "task", "form", "item")
KINDS: dict[str, Any] = {  # of the fields of a record
    **dict.fromkeys((*NAMES, "reply", "prompt"), str), **dict.fromkeys(("correct", "tokens", "choice", "parsed"), int),
    "value": (int, float), "answer": (int, str), "options": tuple, "scores": tuple,
}  # fmt: skip
MEASURED = "measured"  # method of a model that was trained elsewhere; its learning rate is not known, and 0


@dataclass(frozen=True)
class Record:
    """One item, measured once.

    suite: name of the suite (`new`, `kept`, `drift`, ...); suite lm_eval writes `new` or `kept`.
    task: name within the suite (`capitals`). form: how it was asked (`generate`, `chat`, `plain`, `kl`, `nll`,
    `lm_eval`); replies that are drawn at a temperature are `sample 1`, `sample 2` and so on.
    item: id of the question, the same for base and arms, so that records pair.
    correct: 0 or 1 for suites new, kept and instructions. value: nats per token for drift and texts; tokens: how many
    were averaged. prompt: twelve hex digits of the SHA-256 of the question's text.
    choice, options, scores: multiple choice (index chosen, option texts, length-normalised log-likelihoods;
    of lm_eval sums).
    reply, parsed: generated text and whether an answer could be read from it.
    """

    suite: str
    task: str
    form: str
    item: str
    correct: int | None = None
    value: float | None = None
    tokens: int | None = None
    choice: int | None = None
    answer: int | str | None = None
    options: tuple[str, ...] | None = None
    scores: tuple[float, ...] | None = None
    reply: str | None = None
    parsed: bool | None = None
    prompt: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What pairs two records of the same item."""
        return (self.suite, self.task, self.form, self.item)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; low and high are None where no interval exists."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class ArmResult:
    """One method at one learning rate, from start to end or to the point where it stopped.

    trajectory: one entry per evaluation, {"step": int, "gain": Estimate, "retention": Estimate, ...}, step 0 included.
    scorecard: the figures after the last step, by name. cost: tokens, seconds, tokens_per_s, peak_memory_gb,
    trainable_parameters, added_parameters. operation: what was done to the trained weights afterwards (`wise 0.5`).
    """

    arm: str
    method: str
    learning_rate: float
    status: Literal["finished", "failed", "pruned"]
    reason: str | None = None
    steps: int = 0
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    scorecard: dict[str, Estimate] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    operation: str | None = None

    @property
    def label(self) -> str:
        return f"{self.arm} {self.learning_rate:g}" + (f" {self.operation}" if self.operation else "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArmResult:
        def estimate(value: Any) -> Any:
            return Estimate(**value) if isinstance(value, dict) and "value" in value else value

        values = dict(values)
        values["scorecard"] = {name: estimate(value) for name, value in values["scorecard"].items()}
        values["trajectory"] = [{k: estimate(v) for k, v in point.items()} for point in values["trajectory"]]
        return cls(**values)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """JSON lines, replaced as a whole: a reader sees the old file or the new one, never half of one."""
    lines = (json.dumps({k: v for k, v in asdict(r).items() if v is not None}, ensure_ascii=False) for r in records)
    write_text(path, "".join(line + "\n" for line in lines))


def read_records(path: Path) -> list[Record]:
    """Inverse of write_records. Raises DamagedError naming the file and line that is not a record."""
    try:
        return list(_read(path))
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} holds no item records ({error}); delete the file to redo it") from error


def _read(path: Path) -> Iterator[Record]:
    for number, line in json_lines(path.read_text(encoding="utf-8")):
        try:
            values = parse_json(line)
            for name in ("options", "scores"):
                if name in values:
                    values[name] = tuple(values[name])
            record = Record(**values)
            if wrong := odd_field(record):
                raise ValueError(f"{wrong}={getattr(record, wrong)!r}")
            yield record
        except (ValueError, TypeError) as error:
            raise DamagedError(
                f"{path}, line {number} is not an item record ({error}); delete the file to redo it"
            ) from error


def odd_field(record: Record) -> str:
    """Return the name of a field with a value that it cannot have; empty if there is none."""
    for name, kinds in KINDS.items():
        value = getattr(record, name)
        if not (isinstance(value, kinds) or (value is None and name not in NAMES)):
            return name
    if record.correct not in (0, 1, None):
        return "correct"
    for name, kind in (("options", str), ("scores", (int, float))):
        if not all(isinstance(one, kind) for one in getattr(record, name) or ()):
            return name
    known = record.choice is None or record.options is None or 0 <= record.choice < len(record.options)
    return "" if known else "choice"


def arm_and_rate(text: str) -> tuple[str, float] | None:
    """Split the name of an arm's folder, `control-0.0003` or `control-3e-4`; None if no learning rate is at its end."""
    found = re.fullmatch(r"(.+?)-(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return (found[1], float(found[2])) if found else None
