"""Find measured questions in training data: the same but for case and punctuation, or with many words in sequence.

Rule, for each question, over all rows of a source: it is the *same* if a row's question (or its whole text) has the
same words. It is *similar* if half or more of its distinct sequences of 8 words are in rows of the source. (PaLM takes
70 % of the 8-grams, arXiv 2204.02311. One 13-gram, as in arXiv 2005.14165, is met by any common instruction.) Sequences
that more than a tenth of the task's questions share are such an instruction, and do not count. A question that has 4 to
7 words with its answer is similar if all of these are in one row in sequence.

Words are compared by random 64-bit sums, in chunks of rows with NumPy and by all cores.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.common.spread import cores, spread
from experiments.data.items import Example, Item
from experiments.data.spelling import without_tags
from experiments.models.conversation import said

N, LEAST, SHARE, COMMON = 8, 4, 0.5, 0.1
CHUNK, SHOWN, LETTERS = 5000, 3, 160  # rows at a time; examples of a task, and letters of each
# Scripts without spaces: each letter is a word. Operators count, so that 3 + 2 is not 3 - 2.
LETTER = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
OPERATOR = re.compile(r"[-+*/=<>^%$&|~#@\\{}\[\]]")
OTHER = re.compile(rf"(?:(?!{OPERATOR.pattern})[^\w])+")  # punctuation and space
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")  # soft hyphens, spaces without a width, directions
BLANK = {code: " " for code in range(128) if OTHER.fullmatch(chr(code))}  # the same in ASCII, at a third of the time
EMPHASIS = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")  # _so_, but not the one in snake_case
FACTORS = np.random.default_rng(0).integers(1, 2**63, N, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
Words = Sequence[str]
Ints = NDArray[Any]


@dataclass(frozen=True)
class Probe:
    """A measured question or document.

    asked: compared as a whole. statements: their sequences of words are looked for, such as a question and its answer.
    """

    suite: str
    task: str
    asked: str
    statements: tuple[str, ...]


@dataclass
class Overlap:
    """The questions of a task that are in a source. examples: (measured, trained on) texts, cut."""

    suite: str
    task: str
    source: str
    items: int
    same: int = 0
    similar: int = 0
    examples: list[list[str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def question_probe(suite: str, task: str, item: Item) -> Probe:
    """Return the probe of a question; a short one is looked for with its answer."""
    question = said(item.question)
    short = len(words(question)) < N
    return Probe(suite, task, question, (f"{question} {item.answer}" if short else question,))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, and its operators, without punctuation and tags of HTML."""
    text = without_tags(text)
    if text.isascii():
        text = text.translate(BLANK)
    else:
        text = UNSEEN.sub("", unicodedata.normalize("NFKC", text))
        text = OTHER.sub(" ", LETTER.sub(r" \g<0> ", text))
    if "_" in text:
        text = EMPHASIS.sub(" ", text)
    if OPERATOR.search(text):
        text = OPERATOR.sub(r" \g<0> ", text)
    return text.casefold().split()


def overlaps(
    probes: Sequence[Probe], rows: Sequence[Example], source: str, numbers: Sequence[int] | None = None
) -> list[Overlap]:
    """Return the tasks of which a question is in the rows of a source, in the order of the probes.

    numbers: of the rows that are read; by default all.
    """
    index, numbers = _Index(probes), range(len(rows)) if numbers is None else numbers
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    for hits in spread(lambda chunk: index.read([_texts(rows[i]) for i in chunk]), chunks, min(len(chunks), cores())):
        index.add(hits)
    return [found for found in index.found(source) if found.same or found.similar]


def _texts(row: Example) -> tuple[str, str]:
    """Return the question, or the whole text, and the reply."""
    return (said(row.question), row.reply) if isinstance(row, Item) else (row.text, "")


@dataclass(frozen=True)
class _Hits:
    """What was found in a chunk of rows: the text of the first row of each.

    same: by the number of a probe. sequences: by the place of a sequence, for each n.
    """

    same: dict[int, str]
    sequences: dict[int, dict[int, str]]


class _Sequences:
    """All sequences of n words that are looked for. first: text of the first row with each, by its place in `sums`."""

    def __init__(self, n: int, sums: Ints) -> None:
        self.n, self.sums = n, np.unique(sums)
        self.first: dict[int, str] = {}

    def read(self, ids: Ints, row_of: Ints, chunk: Sequence[tuple[str, str]]) -> dict[int, str]:
        """Return the first row of a chunk with each sequence."""
        if len(ids) < self.n:
            return {}
        known = np.concatenate([[0], np.cumsum(ids > 0)])
        starts = np.flatnonzero(known[self.n :] - known[: -self.n] == self.n)
        sums = _sums(ids, starts, self.n)
        places = np.searchsorted(self.sums, sums)
        hits = self.sums[np.minimum(places, len(self.sums) - 1)] == sums
        first = dict(zip(places[hits][::-1].tolist(), starts[hits][::-1].tolist(), strict=True))
        return {place: "\n".join(chunk[int(row_of[at])]).strip()[:LETTERS] for place, at in first.items()}

    def of(self, sums: Ints) -> list[int]:
        return np.searchsorted(self.sums, sums).tolist()


class _Index:
    """The probes by their words. same: text of the first row with the words of a probe, by its number."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = probes
        self.ids: dict[str, int] = {}
        self.same: dict[int, str] = {}
        self.asked: dict[str, list[int]] = {}
        for number, probe in enumerate(probes):
            self.asked.setdefault(" ".join(words(probe.asked)), []).append(number)
        self.wanted = list(self._wanted())
        by_length: dict[int, list[Ints]] = {}
        for _, n, sums in self.wanted:
            by_length.setdefault(n, []).append(sums)
        self.sequences = {n: _Sequences(n, np.concatenate(sums)) for n, sums in by_length.items()}

    def _wanted(self) -> Iterator[tuple[int, int, Ints]]:
        """Yield (number of the probe, n, sums of its sequences) of each statement."""
        found = []
        for number, probe in enumerate(self.probes):
            for text in map(words, probe.statements):
                if len(text) >= LEAST:
                    ids = np.array([self.ids.setdefault(word, len(self.ids) + 1) for word in text], dtype=np.uint64)
                    n = min(N, len(ids))
                    found.append((number, n, np.unique(_sums(ids, np.arange(len(ids) - n + 1), n))))
        common = self._common(found)
        for number, n, sums in found:
            own = sums[~np.isin(sums, common.get(self._task(number), []))] if n == N else sums
            if len(own):
                yield number, n, own

    def _common(self, found: Iterable[tuple[int, int, Ints]]) -> dict[tuple[str, str], list[int]]:
        """Return the sequences that are in more than a tenth of a task's questions, and in three or more."""
        counts: dict[tuple[str, str], Counter[int]] = {}
        for number, _, sums in found:
            counts.setdefault(self._task(number), Counter()).update(sums.tolist())
        sizes = Counter(map(self._task, range(len(self.probes))))
        return {
            task: [one for one, times in own.items() if times > max(2, COMMON * sizes[task])]
            for task, own in counts.items()
        }

    def _task(self, number: int) -> tuple[str, str]:
        return self.probes[number].suite, self.probes[number].task

    def read(self, chunk: Sequence[tuple[str, str]]) -> _Hits:
        """Look for the probes in a chunk of (question or whole text, reply)."""
        tokens: list[str] = []
        ends, same = [], dict[int, str]()
        for asked, reply in chunk:
            own = words(asked)
            for number in self.asked.get(" ".join(own), ()):
                same.setdefault(number, asked[:LETTERS])
            tokens += own
            tokens += words(reply)
            tokens.append("")
            ends.append(len(tokens))
        ids = np.fromiter(map(self.ids.get, tokens, itertools.repeat(0)), dtype=np.uint64, count=len(tokens))
        row_of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        return _Hits(same, {n: one.read(ids, row_of, chunk) for n, one in self.sequences.items()})

    def add(self, hits: _Hits) -> None:
        """Keep what was found in a chunk, after those of the chunks before."""
        self.same = hits.same | self.same
        for n, found in hits.sequences.items():
            self.sequences[n].first = found | self.sequences[n].first

    def found(self, source: str) -> list[Overlap]:
        sizes = Counter(map(self._task, range(len(self.probes))))
        tasks = {task: Overlap(*task, source, size) for task, size in sizes.items()}
        similar = self._similar()
        for number, probe in enumerate(self.probes):
            one, text = tasks[self._task(number)], self.same.get(number) or similar.get(number)
            one.same += number in self.same
            one.similar += number in similar and number not in self.same
            if text and len(one.examples) < SHOWN:
                one.examples.append([probe.asked[:LETTERS], text])
        return list(tasks.values())

    def _similar(self) -> dict[int, str]:
        """Return the text of a row by the number of each probe with enough of its sequences in rows."""
        found = {}
        for number, n, sums in self.wanted:
            sequences = self.sequences[n]
            seen = [place for place in sequences.of(sums) if place in sequences.first]
            if len(seen) >= SHARE * len(sums):
                found[number] = Counter(sequences.first[place] for place in seen).most_common(1)[0][0]
        return found


def _sums(ids: Ints, starts: Ints, n: int) -> Ints:
    """Return a sum of n words from each start: random factors times ids, modulo 2^64."""
    total = np.zeros(len(starts), dtype=np.uint64)
    for i in range(n):
        total += ids[starts + i] * FACTORS[i]
    return total
