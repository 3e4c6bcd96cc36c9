"""Suite `instructions`: orders about the form of a reply that code can check.

A prompt is a topic and an order. What the reply says is not judged: a model that forgets to follow instructions fails
here long before it forgets facts.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from experiments.evaluation.generation import Advance, generate_replies
from experiments.evaluation.suite import Suite, text_id
from experiments.records import Record
from experiments.section import ConfigError

TOKENS = 64
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
}  # frequent words that mostly belong to one of the four


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
    """Greedy replies to generated orders; correct where the check passes, parsed where there is any reply."""

    name = "instructions"

    def draw(self) -> None:
        self.items = instructions(self.config.evaluation.instruction_items, self.config.seed)

    @property
    def size(self) -> int:
        return len(self.items)

    def content(self) -> Any:
        return [TOKENS, [[item.kind, item.prompt] for item in self.items]]

    def measure(self, model: PreTrainedModel, advance: Advance) -> Iterable[Record]:
        replies = generate_replies(model, self.tokenizer, [i.prompt for i in self.items], TOKENS, advance=advance)
        for item, reply in zip(self.items, replies, strict=True):
            yield Record(
                "instructions",
                item.kind,
                "generate",
                item.id,
                correct=int(item.check(reply.strip())),
                reply=reply,
                parsed=bool(reply.strip()),
                prompt=item.id,
            )


def instructions(count: int, seed: int) -> list[Instruction]:
    """`count` orders, the kinds in turn; more items change none. Raises ConfigError where there are fewer."""
    kinds = []
    for kind, make in KINDS.items():
        rng = random.Random(f"{seed} {kind}")
        topics = rng.sample(TOPICS, len(TOPICS))
        kinds.append([Instruction(kind, *make(topic, rng)) for topic in topics])
    items = list(itertools.chain.from_iterable(zip(*kinds, strict=True)))
    if count > len(items):
        raise ConfigError(f"evaluation.instruction_items={count}, but there are only {len(items)} instructions")
    return items[:count]


def _words(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((3, 4, 5))
    prompt = f"Describe {topic} in exactly {count} words. Write nothing else."
    return prompt, lambda reply: len(reply.split()) == count


def _sentences(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((1, 2))
    prompt = f"Say something about {topic} in exactly {count} sentence{'s' * (count > 1)}."
    return prompt, lambda reply: len(re.findall(r"[.!?]+(?=\s|$)", reply)) == count


def _upper(topic: str, rng: random.Random) -> tuple[str, Check]:
    return f"Write one short sentence about {topic} in upper case letters only.", str.isupper


def _lower(topic: str, rng: random.Random) -> tuple[str, Check]:
    return f"Write one short sentence about {topic} in lower case letters only, without any capital.", str.islower


def _json_object(topic: str, rng: random.Random) -> tuple[str, Check]:
    keys = tuple(rng.sample(("name", "colour", "size", "place", "use", "age"), 2))
    prompt = f'Describe {topic} as a JSON object with the keys "{keys[0]}" and "{keys[1]}". Reply with the JSON only.'
    return prompt, lambda reply: _has_keys(reply, keys)


def _numbered(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((2, 3, 4))
    prompt = f"Give a numbered list of exactly {count} words that have to do with {topic}, one per line."
    return prompt, lambda reply: re.findall(r"^\s*(\d+)[.)]\s*\S", reply, re.M) == [str(i + 1) for i in range(count)]


def _bullets(topic: str, rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((2, 3, 4))
    prompt = f'Write exactly {count} words about {topic}, each on its own line behind "- ".'
    return prompt, lambda reply: [line[:2] for line in reply.splitlines() if line.strip()] == ["- "] * count


def _language(topic: str, rng: random.Random) -> tuple[str, Check]:
    language = rng.choice(("French", "Spanish", "German"))
    prompt = f"Write two sentences about {topic} in {language}. Answer in {language} only."
    return prompt, lambda reply: language_of(reply) == language


def _ending(topic: str, rng: random.Random) -> tuple[str, Check]:
    last = rng.choice(("Thank you.", "That is all.", "The end."))
    prompt = f'Say one sentence about {topic} and end your reply with the words "{last}"'
    return prompt, lambda reply: reply.endswith(last) and len(reply) > len(last)


def _quoted(topic: str, rng: random.Random) -> tuple[str, Check]:
    prompt = f"Write one short sentence about {topic} without any comma, in quotation marks."
    return prompt, lambda reply: len(reply) > 2 and reply[0] == reply[-1] == '"' and "," not in reply


def _has_keys(reply: str, keys: Sequence[str]) -> bool:
    """Whether the reply, a code fence around it allowed, is a JSON object with these keys and no others."""
    try:
        value = json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", reply))
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def language_of(text: str) -> str | None:
    """The language whose frequent words are most of the text: at least three, and more than any other's."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {name: sum(word in known.split() for word in words) for name, known in WORDS_OF.items()}
    first, second = sorted(counts, key=lambda name: -counts[name])[:2]
    return first if counts[first] >= 3 and counts[first] > counts[second] else None


KINDS: dict[str, Callable[[str, random.Random], tuple[str, Check]]] = {
    "words": _words,
    "sentences": _sentences,
    "upper case": _upper,
    "lower case": _lower,
    "json": _json_object,
    "numbered list": _numbered,
    "bullets": _bullets,
    "language": _language,
    "ending": _ending,
    "quotation": _quoted,
}
