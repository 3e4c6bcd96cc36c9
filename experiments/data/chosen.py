"""Choose which old examples are replayed: at random, by the base model's loss, or by the direction of its gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from filelock import FileLock
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from ctrl.gap import evaluating
from ctrl.structure import decoder_layers
from experiments.common.errors import ConfigError
from experiments.common.files import read_note, write_json
from experiments.common.hashing import BLOCKS, json_digest, short_digest
from experiments.common.section import Section
from experiments.data.base_text import weight_files
from experiments.data.encoding import Encoder, Piece
from experiments.data.items import Example
from experiments.data.source import Finite, Source, SourceContext
from experiments.models.precision import Precision

NEW_EXAMPLES = 64  # of each new source, for the mean gradient of the new task


class ReplayChoice(Section):
    """Which examples of `old` are replayed: `keep` of the first `of` examples of each source, chosen before training.

    random: any of them. loss: those of the highest loss of the base model, in nats per token. gradient: those whose
    gradient is least similar to that of the new task: a step for the new task raises their loss most, to first order
    (after MIR, arXiv 1908.04742). The gradients are the base model's, by the weights of its last layer; similarity is
    the cosine with the mean gradient of the new task.
    """

    by: Literal["random", "loss", "gradient"] = Field("random", description="what chooses")
    of: int = Field(400, ge=1, le=10**6, description="examples of each source to choose from")
    keep: int = Field(100, ge=1, le=10**6, description="examples of each source that are replayed")

    @model_validator(mode="after")
    def _fewer(self) -> ReplayChoice:
        if self.keep > self.of:
            raise ValueError(f"keep={self.keep} of {self.of} examples: keep as many or fewer, or raise `of`")
        return self


class ChosenExamples(Finite):
    """The examples of a source that were chosen. Not a source of the YAML.

    candidates: how many could be chosen. said: the notes of that source. of: a digest of all of its data.
    """

    source: Literal["chosen"] = "chosen"
    name: str
    found: tuple[Any, ...]
    candidates: int = Field(ge=1)
    said: tuple[str, ...] = ()
    of: str = ""

    @property
    def label(self) -> str:
        return self.name

    @property
    def origin(self) -> str:
        """A digest of what was chosen from: two choices of equal files may differ, since the base model makes them."""
        return self.of

    @property
    def examples(self) -> Sequence[Example]:
        return self.found

    @property
    def notes(self) -> list[str]:
        few = ": too few to choose from, so raise choose.of or lower choose.keep"
        return [
            *self.said,
            f"data.choose keeps {self.size} of {self.candidates}{few if self.size == self.candidates else ''}",
        ]


@dataclass(frozen=True)
class Chooser:
    """Chooses examples of old sources as a choice says.

    new: the sources of the new task. held_out_ids: examples that are never used. The scores of examples are kept in the
    context's cache.
    """

    choice: ReplayChoice
    context: SourceContext
    encoder: Encoder
    new: Sequence[Source]
    seed: int
    held_out_ids: frozenset[str]

    def chosen(self, source: Source) -> Source:
        """Return a source of the chosen examples. Raises ConfigError if none of those to choose from can be used."""
        candidates = [one for one, _ in self._usable(source, self.choice.of)]
        if not candidates:
            raise ConfigError(
                f"data.choose: none of the first {self.choice.of} examples of {source.label} fits a row of "
                f"{self.encoder.length} tokens: raise data.length, or choose.of"
            )
        order: Sequence[int] = range(len(candidates))  # which is random already
        if self.choice.by != "random":
            scores = self._scores(source)
            order = sorted(order, key=lambda i: -scores[i])
        kept = sorted(order[: self.choice.keep])
        found = tuple(candidates[i] for i in kept)
        notes, of = tuple(source.notes), json_digest([source.digest(), source.origin])
        return ChosenExamples(
            share=source.share, name=source.label, found=found, candidates=len(candidates), said=notes, of=of
        )

    def _usable(self, source: Source, count: int) -> Iterator[tuple[Example, list[Piece]]]:
        """Yield those of the first examples of a source that fit a row, with their pieces."""
        encode = self.encoder.encode_or_skip if source.skips else self.encoder.encode
        for example in itertools.islice(source.epoch(0, self.seed, self.held_out_ids), count):
            if pieces := encode(example).pieces:
                yield example, pieces

    def _scores(self, source: Source) -> list[float]:
        """Return a score for each candidate, from the cache if it is there. Of two processes one computes them."""
        of = [source.digest(), *(one.digest() for one in self.new if self.choice.by == "gradient")]
        of += self._read(source, self.choice.of)
        of += [one for new in self.new if self.choice.by == "gradient" for one in self._read(new, NEW_EXAMPLES)]
        base = [self.context.base_model, repr(weight_files(self.context.base_model)), self.context.precision]
        base += self.context.otherwise.values()
        drawn = [str(self.seed), *sorted(self.held_out_ids), self.encoder.key, self.choice.model_dump_json()]
        file = self.context.cache / "chosen" / f"{short_digest(*of, *base, *drawn)}.json"
        content = json_digest(weight_files(self.context.base_model, BLOCKS))
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            note = read_note(file)
            whole = note.pop("digest", None) == json_digest(note | {"of": file.stem})
            if not whole or note.get("base", content) != content:  # changed, of another choice, or of another model
                note = {"scores": self._computed(source), "base": content}
                write_json(file, note | {"digest": json_digest(note | {"of": file.stem})})
        return [float(score) for score in note["scores"]]

    def _read(self, source: Source, count: int) -> list[str]:
        """Return the digest of a table as it is read, or the first examples of a stream.

        The digests of such sources may know their settings and files alone. Nothing for other sources.
        """
        if source.table is not None:
            return [source.table.digest]
        return [repr(example) for example, _ in self._usable(source, count)] if source.streamed else []

    def _computed(self, source: Source) -> list[float]:
        model = self.context.base()
        rows = (pieces for _, pieces in self._usable(source, self.choice.of))
        with evaluating(model), Precision(self.context.precision).autocast():
            if self.choice.by == "loss":
                with torch.no_grad():
                    return finite(float(loss(model, pieces)) for pieces in rows)
            with last_layer(model) as weights:
                new = torch.stack([g for one in self.new for g in self._gradients(model, weights, one)]).mean(0)
                return finite(-float(F.cosine_similarity(gradient(model, weights, one), new, dim=0)) for one in rows)

    def _gradients(self, model: PreTrainedModel, weights: list[Tensor], source: Source) -> Iterator[Tensor]:
        for _, pieces in self._usable(source, NEW_EXAMPLES):
            yield gradient(model, weights, pieces)


def finite(scores: Iterable[float]) -> list[float]:
    """Return the scores. Raises ConfigError for one that is no number, which has no place in their order."""
    found = list(scores)
    if not all(map(math.isfinite, found)):
        raise ConfigError("data.choose: the base model's scores are not finite: set by to random, or precision to fp32")
    return found


def loss(model: PreTrainedModel, pieces: Sequence[Piece]) -> Tensor:
    """Return the mean of -log p over the labelled tokens of an example, in nats."""
    total, count = torch.zeros((), device=model.device), 0
    for piece in pieces:
        ids, labels = (torch.tensor([one], device=model.device) for one in (piece.ids, piece.labels))
        logits = model(input_ids=ids).logits[0, :-1].float()
        total = total + F.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=-100)
        count += int((labels[0, 1:] != -100).sum())
    return total / max(count, 1)


def gradient(model: PreTrainedModel, weights: list[Tensor], pieces: Sequence[Piece]) -> Tensor:
    """Return the gradient of an example's `loss` by these weights, as one vector."""
    with torch.enable_grad():
        found = torch.autograd.grad(loss(model, pieces), weights)
    return torch.cat([one.float().flatten() for one in found])


@contextmanager
def last_layer(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Give the weights of the last decoder layer; inside the block only they have gradients."""
    before = {p: p.requires_grad for p in model.parameters()}
    weights: list[Tensor] = list(decoder_layers(model)[-1].parameters())
    model.requires_grad_(False)
    try:
        yield [weight.requires_grad_(True) for weight in weights]
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
