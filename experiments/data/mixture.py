"""What an experiment trains on and measures its new task on: the same rows in the same order for every arm."""

from __future__ import annotations

import itertools

from transformers import PreTrainedTokenizerBase

from experiments.config import ArmConfig, ExperimentConfig
from experiments.data.rows import ChatDataset, Collator


class ExperimentData:
    """The data section of a config, ready to use.

    tasks: what the new task is measured on. collator: makes a batch of rows.
    """

    def __init__(self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.tasks = tuple(s.held_out(config.evaluation.new_items, config.seed) for s in config.data.new)
        self.collator = Collator(tokenizer)

    def rows(self, arm: ArmConfig) -> ChatDataset:
        """The rows of an arm, in the order in which they are trained on."""
        training, evaluation = self.config.training, self.config.evaluation
        count = training.steps * training.batch_size * training.gradient_accumulation
        (source,) = self.config.data.new
        items = list(itertools.islice(source.train(self.config.seed, evaluation.new_items), count))
        return ChatDataset(items, self.tokenizer, self.config.seed)
