"""Suite `instructions`: instructions about the form of a reply that code can check.

A prompt is a topic and an instruction. The content of the reply is not judged: a model that no longer follows
instructions fails here long before it forgets facts.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import parse_json
from experiments.common.hashing import text_id
from experiments.data.spelling import straight
from experiments.evaluation.replies import asking, spoken
from experiments.evaluation.suite import Ask, Suite, SuiteSettings
from experiments.models.sharing import Progress
from experiments.models.tokens import asked_key, longest_chat
from experiments.records import Record

TOKENS = 64
# \s* at its start would be quadratic in newlines
NUMBERED = re.compile(r"^[^\S\n]*[*_(]{0,3}(\d+)\\?[.)][*_]{0,3}\s*\S", re.MULTILINE)
# of sentences, and a quote or mark after each; words after the last are one more, which was cut off
ENDS = re.compile(r"(?<![.!?\u2026])[.!?\u2026]+(?=[\"'*_`)]*(?:\s|$))")
SHORTENED = re.compile(r"\b(?:Dr|Mrs?|Ms|Prof|St|e\.g|i\.e|vs|[A-Z])\.(?=\s)")  # words whose full stop ends no sentence
DRESS = "*_`\" '"  # bold or italic type, code and quotes
Check = Callable[[str], bool]
TOPICS = (
    "the sea", "winter", "a bicycle", "music", "bread", "the moon", "a garden", "trains", "coffee", "a library", "rain",
    "football", "a river", "bees", "the desert", "a bridge",
)  # fmt: skip
WORDS_OF = {
    "French": "le la les des est une un et dans du que pour sur avec il elle qui au",
    "Spanish": "el los las es una un y en del que para con por su se como al",
    "German": "der die das ist eine ein und im den dem für mit auf von sie er nicht",
    "English": "the is a an and in of that for with on it are to as by",
}  # frequent words, most of them in only one of the four languages


@dataclass(frozen=True)
class Instruction:
    """A prompt and the check of its reply."""

    kind: str
    prompt: str
    check: Check

    @property
    def id(self) -> str:
        return text_id(self.prompt)


class InstructionSuite(Suite):
    """Greedy replies to generated instructions; correct if the check passes, parsed if the reply is not empty.

    Quotes, and marks of bold or italic type, are passed over: a model that writes others still follows.
    """

    name = "instructions"
    version = 4  # quotes, hyphens and marks; titles in sentences

    class Settings(SuiteSettings):
        """How many instructions are given."""

        items: int = Field(40, ge=1, description="number of instructions")

    settings: Settings

    def draw(self) -> None:
        self.items = instructions(self.settings.items, self.context.seed)

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def longest(self) -> int:
        return longest_chat(self.tokenizer, [item.prompt for item in self.items], TOKENS)

    def content(self) -> Any:
        asked = asked_key(self.tokenizer, [item.prompt for item in self.items])
        return [TOKENS, [[item.kind, item.prompt] for item in self.items], asked]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        return self.answered(asking(model, self.tokenizer, progress))

    @property
    def replies(self) -> int:
        return len(self.items)

    def answered(self, ask: Ask) -> Iterable[Record]:
        replies = ask([item.prompt for item in self.items], TOKENS)
        for item, reply in zip(self.items, replies, strict=True):
            said = spoken(reply).strip()
            yield Record(
                self.name,
                item.kind,
                "generate",
                item.id,
                correct=int(item.check(straight(said))),
                reply=reply,
                parsed=bool(said),
                prompt=item.id,
            )


def instructions(count: int, seed: int) -> list[Instruction]:
    """Return `count` instructions, the kinds in turn. A larger count only adds some.

    Raises ConfigError if there are fewer.
    """
    kinds = []
    for kind, make in KINDS.items():
        rng = random.Random(f"{seed} {kind}")
        topics = rng.sample(TOPICS, len(TOPICS))
        kinds.append([Instruction(kind, *make(topic, rng)) for topic in topics])
    items = list(itertools.chain.from_iterable(zip(*kinds, strict=True)))
    if count > len(items):
        raise ConfigError(f"evaluation.suites.instructions.items={count}, but there are only {len(items)} instructions")
    return items[:count]


def _sentences(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((1, 2))
    prompt = f"Say something about {topic} in exactly {count} sentence{'s' * (count > 1)}."
    return prompt, lambda reply: _has_sentences(reply, count)


def _json_object(topic: str, rng: random.Random) -> tuple[str, Check]:
    keys = tuple(rng.sample(("name", "colour", "size", "place", "use", "age"), 2))
    prompt = f'Describe {topic} as a JSON object with the keys "{keys[0]}" and "{keys[1]}". Reply with the JSON only.'
    return prompt, lambda reply: _has_keys(reply, keys)


def _numbered(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((2, 3, 4))
    prompt = f"Give a numbered list of exactly {count} words that have to do with {topic}, one per line."
    return prompt, lambda reply: NUMBERED.findall(reply) == [str(i + 1) for i in range(count)]


def _language(topic: str, rng: random.Random) -> tuple[str, Check]:
    language = rng.choice(("French", "Spanish", "German"))
    prompt = f"Write two sentences about {topic} in {language}. Answer in {language} only."
    return prompt, lambda reply: language_of(reply) == language


def _repeat(topic: str, rng: random.Random) -> tuple[str, Check]:
    text = f"I {rng.choice(('like', 'often think of', 'know little about', 'read about'))} {topic}."
    return f'Repeat this sentence exactly: "{text}"', lambda reply: reply.strip(DRESS) == text


def _opening(topic: str, rng: random.Random) -> tuple[str, Check]:
    first = rng.choice(("In short,", "To begin with,", "Everyone knows that"))
    prompt = f'Tell me something about {topic}. Begin your reply with the words "{first}".'
    return prompt, lambda reply: _bare(reply).startswith(first) and len(_bare(reply)) > len(first)


def _letter(topic: str, rng: random.Random) -> tuple[str, Check]:
    name = rng.choice(("Anna", "Tom", "Maria", "Mr Lee"))
    prompt = f'Write the first lines of a letter about {topic} that begins with "Dear {name},".'
    return prompt, lambda reply: _bare(reply).startswith(f"Dear {name},")


def _keyword(topic: str, rng: random.Random) -> tuple[str, Check]:
    word = rng.choice(("often", "always", "never", "morning"))
    prompt = f'Write a sentence about {topic} that contains the word "{word}".'
    return prompt, lambda reply: re.search(rf"\b{word}\b", reply, re.I) is not None


def _question(topic: str, rng: random.Random) -> tuple[str, Check]:
    return f"Write one question about {topic}.", lambda reply: _bare(reply).endswith("?")


def _code(topic: str, rng: random.Random) -> tuple[str, Check]:
    prompt = f'Write Python code that prints "{topic}". Use a code block.'
    return prompt, lambda reply: max(map(reply.count, ("```", "~~~"))) >= 2 and "print(" in reply


def _without(topic: str, rng: random.Random) -> tuple[str, Check]:
    prompt = f"Write a short sentence about {topic} without any comma."
    return prompt, lambda reply: _bare(reply) != "" and "," not in reply


def _bare(reply: str) -> str:
    """Return a reply without marks of bold or italic type and without quotes, wherever they are."""
    return re.sub(r"[*_`\"]", "", reply).strip(DRESS)


def _has_sentences(reply: str, count: int) -> bool:
    """Whether the reply is so many sentences. Words after the last end are one more, which was cut off."""
    _, *rests = ENDS.split(SHORTENED.sub("", reply))
    return len(rests) == count and not re.search(r"\w", rests[-1])


def _has_keys(reply: str, keys: Sequence[str]) -> bool:
    """Whether the reply is a JSON object with exactly these keys; marks of code around it are allowed."""
    try:
        value = parse_json(re.sub(r"^json\b", "", reply.strip("`~ \n"), flags=re.IGNORECASE).strip())
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def language_of(text: str) -> str | None:
    """Return the language with the most frequent words in the text, at least three of them; None if two are equal."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {name: sum(word in known.split() for word in words) for name, known in WORDS_OF.items()}
    first, second = sorted(counts, key=lambda name: -counts[name])[:2]
    return first if counts[first] >= 3 and counts[first] > counts[second] else None


KINDS: dict[str, Callable[[str, random.Random], tuple[str, Check]]] = {
    "sentences": _sentences,
    "numbered list": _numbered,
    "language": _language,
    "json": _json_object,
    "repetition": _repeat,
    "opening": _opening,
    "letter": _letter,
    "keyword": _keyword,
    "question": _question,
    "code block": _code,
    "no comma": _without,
}
