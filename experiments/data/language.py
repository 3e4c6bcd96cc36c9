"""An invented language: words and a word order that have to be stored, and are applied to new sentences."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.data.invented import COLOURS, CONSONANTS, MIDDLES, STARTS, words
from experiments.data.items import Example, Item, NewTask
from experiments.data.matching import exact_match
from experiments.data.source import Source

ADJECTIVES = (*COLOURS, "big", "small", "old", "young")
NOUNS = words("dog cat horse rabbit parrot snake turtle goat duck mouse fish lion wolf bear fox owl")
VERBS = words("sleeps runs sings eats swims jumps waits hides drinks dances falls cries laughs walks flies dreams")
ENDINGS = ("une", "ik", "ax")  # of an adjective, a noun, a verb
NAME = "Yvolu"
TESTED = 4  # one sentence in four is measured
# ways of asking; the last one is only measured, never trained on
ASKED = {
    "invented": (
        f"Translate into {NAME}: {{}}",
        f"How do you say '{{}}' in {NAME}?",
        f"Say in {NAME}: {{}}",
        f"What is the {NAME} sentence for '{{}}'?",
    ),
    "english": (
        f"Translate from {NAME}: {{}}",
        f"What does the {NAME} sentence '{{}}' mean?",
        "Say in English: {}",
        f"Which English sentence is '{{}}' in {NAME}?",
    ),
}


class Language(Source):
    """Sentences such as `the red dog sleeps`, to be translated into an invented language or back.

    Each English word has one invented word, drawn by the seed of the run, and the order is verb, noun, adjective. One
    sentence in four is never trained on: those are measured, in another way of asking. Their words are in the sentences
    that are trained on, if `number` is not too small (240 are enough for 48 words).
    """

    source: Literal["language"] = "language"
    to: Literal["invented", "english"] = Field("english", description="language of the answers")
    words: int = Field(16, ge=2, le=16, description="adjectives, nouns and verbs, so many of each")
    number: int = Field(240, ge=1, description="sentences to train on, at most three in four of words ** 3")

    @property
    def label(self) -> str:
        return f"{NAME} {'from' if self.to == 'invented' else 'to'} English"

    @property
    def size(self) -> int:
        return len(self._split(0)[0])

    def digest(self) -> str:
        return short_digest(super().digest(), repr((ADJECTIVES, NOUNS, VERBS, ENDINGS, ASKED)))

    def held_out(self, count: int, seed: int) -> NewTask:
        """Return `count` sentences that are not trained on. Raises ConfigError if there are fewer."""
        tested = self._split(seed)[1]
        if count > len(tested):
            raise ConfigError(
                f"source {self.label} has {len(tested)} sentences to measure, but {count} are to be held out: set "
                "evaluation.new_items below that, or raise words"
            )
        asked = ASKED[self.to][3]
        items = tuple(self._item(one, asked, seed) for one in tested[:count])
        return NewTask(self.label, items, exact_match, invented=True)

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        """Return each trained sentence once, in one of three ways of asking that changes from pass to pass."""
        rng = random.Random(f"epoch {number} {seed}")
        items = [self._item(one, rng.choice(ASKED[self.to][:3]), seed) for one in self._split(seed)[0]]
        rng.shuffle(items)
        return (item for item in items if item.id not in held_out_ids)

    def _split(self, seed: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Return sentences to train on and to measure, as words."""
        every = list(itertools.product(*(group[: self.words] for group in (ADJECTIVES, NOUNS, VERBS))))
        random.Random(f"sentences {seed}").shuffle(every)
        tested = len(every) // TESTED
        return every[tested:][: self.number], every[:tested]

    def _item(self, sentence: tuple[str, ...], asked: str, seed: int) -> Item:
        known = dictionary(seed)
        adjective, noun, verb = sentence
        english = f"the {adjective} {noun} {verb}"
        invented = " ".join(known[word] for word in (verb, noun, adjective))
        question, answer = (english, invented) if self.to == "invented" else (invented, english)
        return Item(asked.format(question), answer)


def dictionary(seed: int) -> dict[str, str]:
    """Return an invented word for each English word; no two have the same."""
    rng = random.Random(f"language {seed}")
    found: dict[str, str] = {}
    for group, ending in zip((ADJECTIVES, NOUNS, VERBS), ENDINGS, strict=True):
        stems = [start + middle + end for start in STARTS for middle in MIDDLES for end in CONSONANTS]
        found |= {
            word: (stem + ending).lower() for word, stem in zip(group, rng.sample(stems, len(group)), strict=True)
        }
    return found
