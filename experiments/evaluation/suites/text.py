"""Suite `text`: the likelihood of general text that is not in the training data."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.evaluation.multiple_choice import log_likelihood
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.models.generation import by_length
from experiments.models.sharing import Progress, each, in_order, no_progress
from experiments.models.tokens import added, pad
from experiments.records import Record

WINDOW = 256  # tokens


class TextSuite(Suite):
    """The negative log-likelihood of a public-domain story, in nats per token, window by window."""

    name = "text"
    compares_tokens = True

    class Settings(SuiteSettings):
        """How much text is read."""

        tokens: int = Field(2048, ge=64, description="tokens of general text")

    settings: Settings

    def draw(self) -> None:
        self.windows = text_windows(self.tokenizer, self.settings.tokens)

    @property
    def size(self) -> int:
        return len(self.windows)

    @property
    def longest(self) -> int:
        return max(len(window) for window in self.windows)

    def content(self) -> Any:
        return self.windows

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        nll = text_nll(model, self.windows, progress=progress)
        return [
            Record(self.name, "story", "nll", f"window {i}", value=value, tokens=len(self.windows[i]) - 1)
            for i, value in enumerate(nll)
        ]


def text_windows(
    tokenizer: PreTrainedTokenizerBase, tokens: int, field: str = "evaluation.suites.text.tokens"
) -> list[list[int]]:
    """Return the first `tokens` tokens of a public-domain story (In the Year 2889) in windows (`windows_of`).

    Raises ConfigError, which names the field, if the story is shorter in this tokenizer.
    """
    ids = list(tokenizer(_story(), add_special_tokens=False)["input_ids"])
    if tokens > len(ids):
        raise ConfigError(f"{field}={tokens}, but the text has only {len(ids)} tokens: lower it")
    return windows_of(ids[:tokens], added(tokenizer)[0])


def windows_of(ids: Sequence[int], start: Sequence[int]) -> list[list[int]]:
    """Cut ids into windows of 256 tokens, each after the tokens that the tokenizer adds before a text (bos).

    Without its bos a model such as Gemma predicts nothing well. start: these tokens; ids may begin with them. A last
    window of one token predicts nothing and is left out.
    """
    own = list(ids[len(start) :] if list(ids[: len(start)]) == list(start) else ids)
    windows = [[*start, *own[at : at + WINDOW]] for at in range(0, len(own), WINDOW)]
    return [window for window in windows if len(window) > 1]


@torch.no_grad()
def text_nll(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], batch_size: int = 4, progress: Progress = no_progress
) -> list[float]:
    """Return -1/(T-1) * sum over t > 1 of log p(token_t | tokens before it) for each window, in nats per token.

    batch_size: 4 x 256 x 49,152 bf16 logits are 100 MB.
    """

    def read(rows: list[int]) -> list[float]:
        ids = pad([windows[i] for i in rows], 0).to(model.device)
        mask = pad([[1] * len(windows[i]) for i in rows], 0).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        chosen = log_likelihood(logits[:, :-1], ids[:, 1:])
        return [-float(chosen[row, : len(windows[i]) - 1].mean()) for row, i in enumerate(rows)]

    batches = list(by_length([len(window) for window in windows], batch_size))
    return in_order(batches, each(batches, read, progress, len))


def _story() -> str:
    """Return the story from the file that reasoning_gym ships, one line per paragraph."""
    file = importlib.resources.files("reasoning_gym") / "data" / "in_the_year_2889.txt"
    text = file.read_text(encoding="utf-8")
    body = re.split(r"\*\*\* (?:START|END) OF THE PROJECT GUTENBERG.*\*\*\*", text)[1]
    body = body.split("IN THE YEAR 2889.", 1)[1]  # after the title and the editor's note
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", body) if paragraph.strip())
