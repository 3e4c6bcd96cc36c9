"""How far a model has moved from its base: KL on replies that the base wrote, and perplexity on general text."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.config import ConfigError
from experiments.data.tokens import pad, prompt_ids
from experiments.evaluation.generation import Advance, by_length, generate_ids, nothing
from experiments.evaluation.multiple_choice import log_likelihood

WINDOW = 256  # tokens of one document of general text
BATCH = 8  # replies at a time: 8 x 48 x 49,152 fp32 logits are 75 MB

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
    """What the base model answered to a general prompt, as token ids."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


def base_replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int, max_tokens: int, advance: Advance = nothing
) -> list[Reply]:
    """The base model's greedy replies to the first n general prompts. Raises ConfigError where there are fewer."""
    if n > len(PROMPTS):
        raise ConfigError(f"evaluation.replies={n}, but there are only {len(PROMPTS)} general prompts")
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS[:n]]
    replies = generate_ids(model, tokenizer, prompts, max_tokens, advance=advance)
    return [Reply(tuple(p), tuple(r)) for p, r in zip(prompts, replies, strict=True)]


@torch.no_grad()
def reply_log_probs(
    model: PreTrainedModel, replies: Sequence[Reply], advance: Advance = nothing
) -> Iterator[tuple[int, Tensor]]:
    """log p(. | prompt, reply_<t) for each token t of each reply: pairs of its index and (tokens, vocabulary) fp32.

    Batches depend on the replies alone, so that the base compared with itself gives exactly 0.
    """
    for rows in by_length([len(r.prompt) + len(r.reply) for r in replies], BATCH):
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
        advance(len(rows))


def kl_per_token(base: Tensor, tuned: Tensor) -> float:
    """KL(base || tuned) = sum over the vocabulary of p_base (log p_base - log p_tuned), averaged over tokens, in nats.

    base, tuned: (tokens, vocabulary), log-probabilities in fp32. In chunks of 16 tokens.
    """
    parts = []
    for p, q in zip(base.split(16), tuned.split(16), strict=True):
        terms = p.exp() * (p - q)
        parts.append(terms.masked_fill(p.isneginf(), 0.0).sum())  # 0 log 0 = 0; a NaN of the tuned model stays one
    return float(torch.stack(parts).sum() / base.shape[0])


def text_windows(tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[list[int]]:
    """The first `tokens` tokens of a public-domain story (In the Year 2889) in documents of 256.

    Raises ConfigError where the story is shorter in this tokenizer.
    """
    ids = list(tokenizer(_story(), add_special_tokens=False)["input_ids"])
    if tokens > len(ids):
        raise ConfigError(f"evaluation.perplexity_tokens={tokens}, but the text has only {len(ids)} tokens")
    ids = ids[:tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    return [window for window in windows if len(window) > 1]


@torch.no_grad()
def text_nll(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], batch_size: int = 4, advance: Advance = nothing
) -> list[float]:
    """-1/(T-1) * sum over t > 1 of log p(token_t | tokens before it in the window), in nats per token, per window.

    batch_size: 4 x 256 x 49,152 bf16 logits are 100 MB.
    """
    nll = [0.0] * len(windows)
    for rows in by_length([len(window) for window in windows], batch_size):
        ids = pad([windows[i] for i in rows], 0).to(model.device)
        mask = pad([[1] * len(windows[i]) for i in rows], 0).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        chosen = log_likelihood(logits[:, :-1], ids[:, 1:])
        for row, i in enumerate(rows):
            nll[i] = -float(chosen[row, : len(windows[i]) - 1].mean())
        advance(len(rows))
    return nll


@contextmanager
def fp32_head(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the logits are computed in fp32: rounded to bf16, they are off by up to 0.06 each, which a small
    KL would drown in. The rest of the model computes as before."""
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


def _story() -> str:
    """Between the markers of the file that reasoning_gym ships, one line per paragraph."""
    file = importlib.resources.files("reasoning_gym") / "data" / "in_the_year_2889.txt"
    text = file.read_text(encoding="utf-8")
    body = re.split(r"\*\*\* (?:START|END) OF THE PROJECT GUTENBERG.*\*\*\*", text)[1]
    body = body.split("IN THE YEAR 2889.", 1)[1]  # behind the title and the editor's note
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", body) if paragraph.strip())
