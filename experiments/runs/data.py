"""Prepare the data of an experiment: the same rows in the same order for every arm, and held-out items."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.data.base_text import BaseText
from experiments.data.chosen import Chooser
from experiments.data.counts import MOST, NEW, held, lengths, refused, special, too_long
from experiments.data.encoding import Encoder, PackedCollator, PaddingCollator
from experiments.data.mixture import Mixture, Part, Rows
from experiments.data.packing import Packing, PackingCollator, packing
from experiments.data.source import Source, SourceContext
from experiments.data.stages import Earlier, stage_parts
from experiments.data.tokenised import sizes_of_epoch
from experiments.methods import Batch
from experiments.methods.config import ArmConfig
from experiments.models.turns import said_unwritten
from experiments.runs.held_out import asked, cut_documents, distinct, remarks, said_cut

OWN_TOKENS = 64  # of each text that the base model writes for a method if data.old is empty


class ExperimentData:
    """The data section of a config, ready to use.

    tasks: held-out items of the new task. collator: makes a batch of rows. base: returns the base model; called only if
    a source samples from it. cache: folder of sampled text. packed: whether the base model keeps several documents of
    one row apart (`documents_apart`); if not, none is packed. Raises ConfigError for data that cannot be read.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        tokenizer: PreTrainedTokenizerBase,
        base: Callable[[], PreTrainedModel] | None = None,
        cache: Path | None = None,
        packed: bool = True,
    ) -> None:
        self.config, self.tokenizer, data = config, tokenizer, config.data
        packed = packed and data.packs
        self.encoder = Encoder(tokenizer, data.regime, data.length, packed, data.loss, data.overlong)
        self.packing = packed and data.regime == "sft"
        self.padding = PackedCollator() if self.encoder.packs else PaddingCollator(tokenizer)
        self.collator: Any = PackingCollator(tokenizer, data.length) if self.packing else self.padding
        _check_old(config)
        held_out = [source.held_out(config.evaluation.new_items, config.seed) for source in data.new]
        self.held_out_of = [task.ids for task in held_out]  # by source of data.new
        self.held_out_ids = frozenset[str]().union(*self.held_out_of)
        kept = [asked(self.encoder, source, task) for source, task in zip(data.new, held_out, strict=True)]
        cut = [cut_documents(tokenizer, task, data.length) for task, _ in kept]
        self.tasks = distinct(cut)
        self.unasked = [line for _, lines in kept for line in lines]
        for source, (whole, _), part in zip(data.new, kept, cut, strict=True):
            self.unasked += said_cut(source, whole, part, data.length)
        self.unasked += [line for one in zip(data.new, held_out, strict=True) for line in remarks(*one)]
        load = functools.partial(_load, config)
        cache = cache or Path("mlruns") / "cache"
        # without `base`, which may hold a model that is no longer needed
        loaded = " ".join(filter(None, (config.quantised, config.attention)))
        self.context = SourceContext(tokenizer, load, config.base_model, config.precision, cache, loaded)
        self._base = base or load  # until it has written: it may hold a model
        self.new = data.new

    @functools.cached_property
    def old(self) -> tuple[Source, ...]:
        """The sources of replayed text, if an arm replays any. The base model writes its text at the first call."""
        context = dataclasses.replace(self.context, base=self._base)
        self._base = self.context.base
        if not any(_replay(self.config, arm) for arm in self.config.arms):
            return ()
        made = tuple(source.materialise(context) for source in self.config.data.old)
        choice = self.config.data.choose
        if choice is None:
            return made
        chooser = Chooser(choice, context, self.encoder, self.new, self.config.seed, self.held_out_ids)
        return tuple(map(chooser.chosen, made))

    def rows(self, arm: ArmConfig) -> Rows:
        """Return the rows of an arm in the order of training."""
        training = self.config.training
        ends = self.config.data.stage_ends(training.steps)
        step_rows = training.step_rows
        stages = [step_rows * (end - start) for start, end in zip((0, *ends), ends, strict=False)]
        parts = self._parts(_replay(self.config, arm))
        return Rows(Mixture(parts, self.encoder, self.config.seed, self.held_out_ids), *stages)

    def check_rows(self) -> None:
        """Read the first examples of each source of each mixture. Raises ConfigError if none of one fits a row."""
        for arm in {_replay(self.config, arm): arm for arm in self.config.arms}.values():
            rows = self.rows(arm)
            rows.mixture.check()
            _ = rows[0]

    def old_batches(self, count: int) -> list[Batch]:
        """Return `count` batches of text that the model should keep, the same at every call, replayed or not.

        They come from data.old without the earlier tasks of a stream, which the base model has not learned. If nothing
        is left, they are chats that the base model writes for this (kept in the cache).
        """
        size, config = self.config.training.batch_size, self.config
        given = [source for source in config.data.old if not isinstance(source, Earlier)]
        sources = given or (BaseText(number=size * count, max_tokens=OWN_TOKENS),)
        whole = sum(source.share for source in sources)
        parts = [Part(source.materialise(self.context), source.share / whole, True) for source in sources]
        rows = Rows(Mixture(parts, self.encoder, config.seed, self.held_out_ids), size * count)
        batches = [self.padding([rows[start + i] for i in range(size)]) for start in range(0, len(rows), size)]
        return [{key: value for key, value in batch.items() if key != "replayed"} for batch in batches]

    def counted(self) -> list[str]:
        """Say for each source which chats are too long or refused, and which words hold special tokens.

        Lengths are those of all examples that the rows of an arm need, but of at most NEW that are not in the cache;
        of an endless or streamed source, and in cpt, where nothing is too long, of at most MOST. Words are those of
        MOST examples. Raises ConfigError for the first that is too long if data.overlong is error.
        """
        sources = [one for one in (*self.new, *self.old) if not isinstance(one, Earlier)]
        found = [f"source {one.label}: {line}" for one in sources for line in self._counted(one)]
        return said_unwritten(self.encoder.tokenizer) + self.unasked + found

    def _counted(self, source: Source) -> list[str]:
        training, epoch = self.config.training, (0, self.config.seed, self.held_out_ids)
        rows = training.steps * training.step_rows
        sizes = sizes_of_epoch(source, *epoch, self.encoder)
        few = source.size is None or self.config.data.regime == "cpt"
        found = lengths(sizes, rows, MOST if few else NEW)
        words = special(source.epoch(*epoch), self.encoder, min(MOST, rows))
        return [*too_long(found, self.encoder), *refused(found), *held(words)]

    def packing_of(self, rows: Rows, batch: int, most: int | None = None) -> Packing | None:
        """Count what packing makes of the first `most` rows of an arm, or of all; None if nothing is packed.

        batch: conversations that a process reads at a time.
        """
        if not self.packing:
            return None
        lengths = (len(rows[i]["input_ids"]) for i in range(min(len(rows), most or len(rows))))
        return packing(lengths, batch, self.config.data.length)

    def drawn(self, arm: ArmConfig, rows: Rows | None = None) -> list[dict[str, Any]]:
        """Count what the arm's rows took from each source. Reads all rows once more, if `rows` have not been read.

        One dict for each source and stage: name, stage (from 1; mixed data has one), replayed, share (of the stage's
        tokens), asked (the share in the config), tokens, pieces, examples, epochs (times the source was begun),
        repeats (examples that an earlier epoch had), too_long (chats longer than data.length, which are left out),
        shortened (of which only a part is left out), tokens_left_out (of both), refused (`Encoded`).
        """
        rows = rows or self.rows(arm)
        drawn = rows.drawn()
        total: Counter[int] = Counter()
        for part, one in zip(rows.mixture.parts, drawn, strict=True):
            total[part.stage] += one.tokens
        return [
            {
                "name": part.source.label,
                "stage": part.stage + 1,
                "replayed": part.replayed,
                "asked": part.share,
                "share": one.tokens / total[part.stage],
                **dataclasses.asdict(one),
            }
            for part, one in zip(rows.mixture.parts, drawn, strict=True)
        ]

    def describe(self, arm: ArmConfig | None = None) -> list[dict[str, Any]]:
        """Describe each source for a run's records: name, kind, digest, items (or "endless"), replayed, share.

        share: of all tokens of the arm; without an arm, of the arms that do not set their own `replay`.
        """
        replay = _replay(self.config, arm) if arm else self.config.data.replay
        return [
            {
                "name": source.label,
                "kind": source.source,
                "digest": source.digest(),
                "items": "endless" if source.size is None else source.size,
                "share": side * source.share,
                "replayed": replayed,
            }
            for sources, side, replayed in ((self.new, 1 - replay, False), (self.old, replay, True))
            for source in sources
        ]

    def _parts(self, replay: float) -> list[Part]:
        return stage_parts(self.new, self.old, replay, self.config.data.sequential)


def _load(config: ExperimentConfig) -> PreTrainedModel:
    return config.load_base()[0]


def _replay(config: ExperimentConfig, arm: ArmConfig) -> float:
    return config.data.replay if arm.replay is None else arm.replay


def _check_old(config: ExperimentConfig) -> None:
    """Raise ConfigError for an arm that replays if there is nothing to replay."""
    for arm in config.arms:
        if arm.replay and not config.data.old:
            raise ConfigError(
                f"arm {arm.name!r}: replay={arm.replay:g} needs something to replay: write data.old, for example "
                "old: {source: self}"
            )
