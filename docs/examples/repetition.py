"""A suite of your own, and its figure: how much the model's replies repeat themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from experiments.common.hashing import text_id
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.evaluation.suites import SUITES
from experiments.evaluation.suites.drift import PROMPTS
from experiments.models.generation import generate_replies
from experiments.models.sharing import Progress
from experiments.models.tokens import asked_key
from experiments.records import Record
from experiments.scorecard.bootstrap import Array, weighted
from experiments.scorecard.figure import CHANGE, FINE, Figure
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.pairing import require
from experiments.scorecard.sample import NotMeasured, Sample


class RepetitionSuite(Suite):
    """Greedy replies to general prompts; the value is the share of words that repeat an earlier word."""

    name = "repetition"

    class Settings(SuiteSettings):
        """How many replies are read."""

        replies: int = Field(16, ge=1, le=len(PROMPTS), description="number of replies")
        tokens: int = Field(64, ge=1, description="most tokens of a reply")

    settings: Settings

    def draw(self) -> None:
        self.prompts = PROMPTS[: self.settings.replies]

    @property
    def size(self) -> int:
        return len(self.prompts)

    def content(self) -> Any:
        return [self.settings.tokens, list(self.prompts), asked_key(self.tokenizer, self.prompts)]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        replies = generate_replies(model, self.tokenizer, self.prompts, self.settings.tokens, progress=progress)
        for prompt, reply in zip(self.prompts, replies, strict=True):
            yield Record(self.name, "general", "generate", text_id(prompt), value=repeated(reply), reply=reply)


def repeated(text: str) -> float:
    """Return the share of words that are in the text before; 0 without words."""
    words = text.lower().split()
    return (len(words) - len(set(words))) / max(len(words), 1)


SUITES["repetition"] = RepetitionSuite


def rise(sample: Sample) -> Array:
    """Draw the mean of after - before, paired by prompt."""
    pairs = sample.pairs["repetition"]
    if not pairs:
        raise NotMeasured("repetition")
    rows = ((after, require(after, "value") - require(before, "value"), 1.0) for before, after in pairs)
    return weighted(rows, sample.draws, sample.seed)


FIGURES["repetition_rise"] = Figure(
    "repetition_rise",
    "repetition",
    "rise of repetition",
    "share of repeated words in replies, after - before",
    "mean over replies of (1 - distinct words / words), after - before",
    "lower",
    places=FINE,
    signed=True,
    unchanged=0,
    tables=("further", "compare"),
    bounds=CHANGE,
    draw=rise,
)
