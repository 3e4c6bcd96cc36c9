"""Suite `drift`: the KL divergence from the base model, on replies that the base model wrote."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import json_digest, text_id
from experiments.data.items import NewTask
from experiments.evaluation.log_probs import stored
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.models.generation import Progress, by_length, generate_ids, no_progress
from experiments.models.precision import Precision
from experiments.models.reading import reading
from experiments.models.tokens import asked_key, longest_chat, pad, prompt_ids
from experiments.records import Record

BATCH = 8  # replies at a time: 8 x 48 x 49,152 fp32 logits are 75 MB
GENERAL, NEW_PROMPTS = "base replies", "new_prompts"  # tasks of the records
PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List five fruits that are red.",
    "Translate into French: Good morning, my friend.",
    "What is photosynthesis?",
    "Give me three tips for sleeping better.",
    "Write the first lines of a story about a lonely lighthouse keeper.",
    "Summarise the plot of Romeo and Juliet.",
    "How do I make a cup of tea?",
    "Describe a busy market in the morning.",
    "What are the advantages of riding a bicycle to work?",
    "Write a polite email that asks for a day off.",
    "Why do leaves change colour in autumn?",
    "Name some famous painters and one work of each.",
    "What is the difference between a frog and a toad?",
    "Explain what a computer program is to a child.",
    "Rewrite this sentence in the past tense: She walks to the market and buys bread.",
    "Give a recipe for a simple vegetable soup.",
    "What should I pack for a week in the mountains?",
    "Write a dialogue between a teacher and a curious pupil.",
    "Who was Marie Curie?",
    "Suggest a name for a small bakery and say why.",
    "How does a bill become a law in the United States?",
    "What makes a good friend?",
)


@dataclass(frozen=True)
class Reply:
    """A prompt and the base model's reply to it, as token ids."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


class DriftSuite(Suite):
    """KL(base || trained) in nats per token, on the base model's own greedy replies.

    Task `base replies`: replies to general prompts. Task `new_prompts`: replies to the first questions of the new task;
    none if the new task is a text.
    """

    name = "drift"

    class Settings(SuiteSettings):
        """How many replies the KL divergence is measured on."""

        replies: int = Field(16, ge=1, description=f"replies to general prompts, at most {len(PROMPTS)}")
        new_replies: int = Field(8, ge=0, description="replies to questions of the new task")
        reply_tokens: int = Field(48, ge=1, le=10**5, description="most tokens of a reply")

    settings: Settings

    def draw(self) -> None:
        settings = self.settings
        if settings.replies > len(PROMPTS):
            raise ConfigError(
                f"evaluation.suites.drift.replies={settings.replies}, but there are only {len(PROMPTS)} general prompts"
            )
        general = [(GENERAL, f"prompt {i}", prompt) for i, prompt in enumerate(PROMPTS[: settings.replies])]
        by_task = (task.test for task in self.tasks if isinstance(task, NewTask))
        turns = [item for items in itertools.zip_longest(*by_task) for item in items if item]  # of each task in turn
        new = [(NEW_PROMPTS, item.id, item.question) for item in turns[: settings.new_replies]]
        self.prompts = general + new
        self.replies: list[Reply] = []
        self.references: dict[int, Tensor] = {}

    @property
    def size(self) -> int:
        return len(self.prompts)

    @property
    def longest(self) -> int:
        return longest_chat(self.tokenizer, [p for _, _, p in self.prompts], self.settings.reply_tokens)

    def content(self) -> Any:
        return [self.settings.reply_tokens, self.prompts, asked_key(self.tokenizer, [p for _, _, p in self.prompts])]

    def prepare(self, base: PreTrainedModel, precision: Precision) -> None:
        """Generate the base model's replies, unless they were restored, and its log-probabilities on them.

        The log-probabilities are read from the cache if they are there.
        """
        if not self.replies:
            prompts = [prompt for _, _, prompt in self.prompts]
            self.replies = base_replies(base, self.tokenizer, prompts, self.settings.reply_tokens)

        def compute() -> dict[int, Tensor]:
            return dict(reply_log_probs(base, self.replies))

        self.references = stored(self.cache_folder / self._file(), compute) if self.cache_folder else compute()

    def _file(self) -> str:
        """Return a name that depends on the replies: a run may hold other replies than the cache."""
        return f"log_probs-{json_digest(self.state())[:16]}.safetensors"

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        if not self.references:
            raise RuntimeError("suite 'drift' needs the base model's log-probabilities: call prepare(base_model) first")
        log_probs = reply_log_probs(model, self.replies, progress)
        kl = {i: kl_per_token(self.references[i].to(q.device), q) for i, q in log_probs}
        for i, (task, item, prompt) in enumerate(self.prompts):
            tokens = len(self.replies[i].reply)
            yield Record(self.name, task, "kl", item, value=kl[i], tokens=tokens, prompt=text_id(prompt))

    def state(self) -> dict[str, Any]:
        return {"replies": [{"prompt": list(r.prompt), "reply": list(r.reply)} for r in self.replies]}

    def restore(self, state: Mapping[str, Any]) -> None:
        replies = [Reply(tuple(r["prompt"]), tuple(r["reply"])) for r in state["replies"]]
        if len(replies) != len(self.prompts):
            raise ConfigError(
                f"the saved evaluation has {len(replies)} base replies, but replies and new_replies of "
                f"evaluation.suites.drift ask for {len(self.prompts)}: start a new run, or set the old numbers"
            )
        self.replies, self.references = replies, {}


def base_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_tokens: int,
    progress: Progress = no_progress,
) -> list[Reply]:
    """Generate the base model's greedy replies."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    replies = generate_ids(model, tokenizer, encoded, max_tokens, progress=progress)
    return [Reply(tuple(p), tuple(r)) for p, r in zip(encoded, replies, strict=True)]


@torch.no_grad()
def reply_log_probs(
    model: PreTrainedModel, replies: Sequence[Reply], progress: Progress = no_progress
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of a reply, log p(. | prompt, reply_<t) for its tokens t): a (tokens, vocabulary) tensor in fp32.

    Batches depend only on the replies, so the base model compared with itself gives exactly 0.
    """
    size = BATCH if reading(model).pads else 1
    for rows in by_length([len(r.prompt) + len(r.reply) for r in replies], size):
        texts = [replies[i].prompt + replies[i].reply for i in rows]
        mask = pad([[1] * len(text) for text in texts], 0, left=True).to(model.device)
        ids = pad(texts, 0, left=True).to(model.device)
        keep = max(len(replies[i].reply) for i in rows) + 1
        with fp32_head(model):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                logits_to_keep=keep,
                use_cache=False,
            ).logits
        for row, i in enumerate(rows):
            own = logits[row, -len(replies[i].reply) - 1 : -1]  # the token before predicts each reply token
            yield i, torch.log_softmax(own.float(), dim=-1)
        progress(len(rows))


def kl_per_token(base: Tensor, tuned: Tensor) -> float:
    """Return KL(base || trained) = sum over the vocabulary of p_base (log p_base - log p_trained), in nats per token.

    base, tuned: (tokens, vocabulary), log-probabilities in fp32. Computed in chunks of 16 tokens.
    """
    parts = []
    for p, q in zip(base.split(16), tuned.split(16), strict=True):
        terms = p.exp() * (p - q)
        parts.append(terms.masked_fill(p.isneginf(), 0.0).sum())  # 0 log 0 = 0; a NaN of the tuned model stays one
    return float(torch.stack(parts).sum() / base.shape[0])


@contextmanager
def fp32_head(model: PreTrainedModel) -> Iterator[None]:
    """Compute the logits in fp32 inside the block; the rest of the model computes as before.

    Rounded to bf16, logits are off by up to 0.06 each, which is more than a small KL.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return F.linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward
