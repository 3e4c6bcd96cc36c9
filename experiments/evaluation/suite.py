"""One evaluation of a model: the new task, the kept tasks, the drift from the base and general text, item by item."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.config import ConfigError, ExperimentConfig
from experiments.data.items import NewTask
from experiments.data.tokens import continuation_ids, prompt_ids, reply_ids
from experiments.evaluation.drift import (
    Reply,
    base_replies,
    kl_per_token,
    reply_log_probs,
    text_nll,
    text_windows,
)
from experiments.evaluation.generation import Advance, generate_replies, parse_answer
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.probes import Probe, kept_items
from experiments.models import Precision
from experiments.records import Record

PARTS = ("new", "kept", "drift", "text")
FORMS = ("plain", "chat")
CHOICES_AT_ONCE = 32  # more is slower on a CPU: the caches of all their options no longer fit
ROOM = 24  # tokens that a reply may be longer than the longest answer


class Suite:
    """What is measured, drawn once: the base and every arm at every step see the same items.

    Call `prepare` with the base model before `evaluate` with part `drift`.
    """

    def __init__(self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[NewTask]) -> None:
        self.config, self.tokenizer, self.tasks = config, tokenizer, tuple(tasks)
        self.probes = kept_items(config.evaluation.kept_items, config.seed)
        self.choices = {form: [_choice(tokenizer, probe, form) for probe in self.probes] for form in FORMS}
        self.windows = text_windows(tokenizer, config.evaluation.perplexity_tokens)
        self.replies: list[Reply] = []
        self.references: dict[int, Tensor] = {}

    def prepare(self, base: PreTrainedModel, precision: Precision | None = None) -> None:
        """Let the base model write its replies, unless they were restored, and keep its log-probabilities on them."""
        settings = self.config.evaluation
        with evaluating(base, precision or Precision(self.config.precision)):
            if not self.replies:
                self.replies = base_replies(base, self.tokenizer, settings.replies, settings.reply_tokens)
            self.references = dict(reply_log_probs(base, self.replies))

    def state(self) -> dict[str, Any]:
        """The base model's replies as plain JSON, for a process that resumes the run."""
        return {"replies": [{"prompt": list(r.prompt), "reply": list(r.reply)} for r in self.replies]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the replies of an earlier process. Raises ConfigError where their number is not the config's."""
        replies = [Reply(tuple(r["prompt"]), tuple(r["reply"])) for r in state["replies"]]
        if len(replies) != self.config.evaluation.replies:
            raise ConfigError(
                f"the saved evaluation has {len(replies)} base replies, but evaluation.replies="
                f"{self.config.evaluation.replies}: start a new run, or set the old number"
            )
        self.replies, self.references = replies, {}

    def evaluate(
        self, model: PreTrainedModel, precision: Precision, parts: Sequence[str] = PARTS, progress: bool = True
    ) -> list[Record]:
        """Measure `parts` and return one record per item and form.

        The model's modes and all random states are as before afterwards. Raises ConfigError for an unknown part,
        RuntimeError for part `drift` before `prepare` and for a model whose logits are not finite.
        """
        measures = {"new": self._new, "kept": self._kept, "drift": self._drift, "text": self._text}
        for part in parts:
            if part not in measures:
                raise ConfigError(unknown_name("part", part, PARTS))
        if "drift" in parts and not self.references:
            raise RuntimeError("part 'drift' needs the base model's log-probabilities: call prepare(base_model) first")
        total = sum(self._size(part) for part in parts)
        # disable=None: no bar where nobody watches a terminal
        bar = tqdm(total=total, desc="evaluate", unit="item", leave=False, disable=None if progress else True)
        with bar, evaluating(model, precision):
            records = [record for part in parts for record in measures[part](model, bar.update)]
        if any(math.isnan(number) for r in records for number in (r.value or 0.0, *(r.scores or ()))):
            raise RuntimeError("the model's logits are not finite, so nothing can be measured: lower the learning rate")
        return records

    def _size(self, part: str) -> int:
        sizes = {
            "new": sum(len(task.test) for task in self.tasks),
            "kept": 2 * len(self.probes),
            "text": len(self.windows),
        }
        return sizes.get(part, len(self.replies))

    def _new(self, model: PreTrainedModel, advance: Advance) -> list[Record]:
        return [record for task in self.tasks for record in self._answered(task, model, advance)]

    def _answered(self, task: NewTask, model: PreTrainedModel, advance: Advance) -> Iterator[Record]:
        questions = [item.question for item in task.test]
        most = ROOM + max(len(reply_ids(self.tokenizer, item.question, item.reply)) for item in task.test)
        replies = generate_replies(model, self.tokenizer, questions, most, advance=advance)
        for item, reply in zip(task.test, replies, strict=True):
            answer = parse_answer(reply, task.numeric)
            yield Record(
                "new",
                task.name,
                "generate",
                item.id,
                correct=int(task.correct(answer, item)),
                answer=item.answer,
                reply=reply,
                parsed=answer is not None,
            )

    def _kept(self, model: PreTrainedModel, advance: Advance) -> list[Record]:
        records = []
        for form in FORMS:
            scores = score_options(model, self.choices[form], CHOICES_AT_ONCE, advance)
            records += [_kept_record(p, form, s) for p, s in zip(self.probes, scores, strict=True)]
        return records

    def _drift(self, model: PreTrainedModel, advance: Advance) -> list[Record]:
        kl = {i: kl_per_token(self.references[i], q) for i, q in reply_log_probs(model, self.replies, advance)}
        return [
            Record("drift", "base replies", "kl", f"prompt {i}", value=kl[i], tokens=len(reply.reply))
            for i, reply in enumerate(self.replies)
        ]

    def _text(self, model: PreTrainedModel, advance: Advance) -> list[Record]:
        nll = text_nll(model, self.windows, advance=advance)
        return [
            Record("text", "story", "nll", f"window {i}", value=value, tokens=len(self.windows[i]) - 1)
            for i, value in enumerate(nll)
        ]


def _choice(tokenizer: PreTrainedTokenizerBase, probe: Probe, form: str) -> Choice:
    if form == "plain":
        prompt = list(tokenizer(probe.question_plain)["input_ids"])
        options = [continuation_ids(tokenizer, probe.question_plain, f" {option}") for option in probe.options]
    else:
        prompt = prompt_ids(tokenizer, probe.question_chat)
        options = [reply_ids(tokenizer, probe.question_chat, probe.reply.format(option)) for option in probe.options]
    return Choice(tuple(prompt), tuple(tuple(option) for option in options))


def _kept_record(probe: Probe, form: str, scores: Sequence[float]) -> Record:
    choice = max(range(len(scores)), key=lambda i: scores[i])
    return Record(
        "kept",
        probe.task,
        form,
        probe.id,
        correct=int(choice == probe.answer),
        choice=choice,
        answer=probe.answer,
        options=probe.options,
        scores=tuple(scores),
    )


@contextmanager
def evaluating(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """Evaluation mode, no gradients and the run's precision; modules' modes, weights and random states come back."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(_random_states_kept())
        stack.callback(_set_modes, modes)
        model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(precision.autocast())
        if precision.bf16:
            stack.enter_context(_linear_weights_in_bf16(model))
        yield


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _linear_weights_in_bf16(model: nn.Module) -> Iterator[None]:
    """Inside the block linear layers hold bf16 weights; afterwards the very same fp32 tensors.

    Autocast would cast them again at every product, half of the time of a decoding step; the values are the same.
    A weight tied to an embedding stays, since embeddings are not cast.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tied]
    parameters = {id(p): p for module in linear for p in module.parameters(recurse=False)}.values()
    originals = [(p, p.data) for p in parameters if p.dtype == torch.float32]
    try:
        for parameter, data in originals:
            parameter.data = data.to(torch.bfloat16)
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
