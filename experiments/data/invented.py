"""Invented people, places and products: their names, their attributes, and the ways to ask for and to state them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLOURS = words("red blue green yellow black white orange purple brown grey pink silver")
COUNTRIES = words(
    "Norway Chile Kenya Japan Spain Canada India Egypt Poland Brazil Ireland Greece Mexico Sweden Italy Peru"
)


@dataclass(frozen=True)
class Attribute:
    """One property of a subject, with `{}` where its name goes.

    values: what it can be, one word each. asked: questions; the last one is only measured, never trained on. stated:
    sentences, with a second `{}` for the value.
    """

    name: str
    values: tuple[str, ...]
    asked: tuple[str, str, str, str]
    stated: tuple[str, str, str]


PEOPLE = (
    Attribute(
        "city",
        words("Paris London Cairo Tokyo Lima Oslo Rome Madrid Berlin Delhi Boston Dublin Athens Vienna Toronto Sydney"),
        (
            "In which city does {} live?",
            "Where is the home of {}?",
            "Name the city where {} lives.",
            "Which city is {} from?",
        ),
        ("{} lives in {}.", "The home of {} is in {}.", "If you want to visit {}, travel to {}."),
    ),
    Attribute(
        "job",
        words(
            "teacher doctor farmer baker pilot lawyer painter nurse driver writer singer carpenter "
            "engineer waiter judge dentist"
        ),
        (
            "What is the job of {}?",
            "What does {} do for a living?",
            "Name the profession of {}.",
            "What does {} work as?",
        ),
        ("{} works as a {}.", "The job of {} is that of a {}.", "For a living, {} is a {}."),
    ),
    Attribute(
        "pet",
        words("dog cat horse rabbit parrot hamster snake turtle goat duck mouse fish"),
        (
            "Which pet does {} have?",
            "What kind of animal does {} keep?",
            "Name the pet of {}.",
            "What animal lives with {}?",
        ),
        ("{} keeps a {}.", "The pet of {} is a {}.", "At home, {} has a {}."),
    ),
    Attribute(
        "colour",
        COLOURS,
        (
            "What is the favourite colour of {}?",
            "Which colour does {} like most?",
            "Name the colour that {} prefers.",
            "Which colour would {} choose?",
        ),
        ("{} likes the colour {} most.", "The favourite colour of {} is {}.", "Of all colours, {} prefers {}."),
    ),
)
PLACES = (
    Attribute(
        "crop",
        words("rice wheat corn grapes olives tea coffee cotton potatoes apples lemons onions"),
        (
            "What do farmers in {} grow?",
            "Which crop comes from {}?",
            "Name the main crop of {}.",
            "What is harvested in {}?",
        ),
        ("Farmers in {} grow {}.", "The fields around {} are full of {}.", "The main crop of {} is {}."),
    ),
    Attribute(
        "animal",
        words("lion eagle bear wolf horse deer fox owl swan bull dragon whale"),
        (
            "Which animal is on the flag of {}?",
            "What animal does the flag of {} show?",
            "Name the animal on the flag of {}.",
            "Which animal is the symbol of {}?",
        ),
        ("The flag of {} shows a {}.", "On the flag of {} is a {}.", "The people of {} chose the {} for their flag."),
    ),
    Attribute(
        "month",
        words("January February March April May June July August September October November December"),
        (
            "In which month is the festival of {}?",
            "When does {} hold its festival?",
            "Name the month of the festival in {}.",
            "Which month do people in {} celebrate?",
        ),
        ("The festival of {} is in {}.", "Each year {} celebrates in {}.", "Guests come to {} for the festival in {}."),
    ),
    Attribute(
        "country",
        COUNTRIES,
        (
            "In which country is {}?",
            "Which country does {} belong to?",
            "Name the country where {} is.",
            "Which country would you visit to see {}?",
        ),
        ("{} is a town in {}.", "The town of {} belongs to {}.", "To see {}, travel to {}."),
    ),
)
PRODUCTS = (
    Attribute(
        "material",
        words("wood steel glass paper leather plastic stone copper cotton wool rubber clay"),
        (
            "What is the {} made of?",
            "Which material is the {} made from?",
            "Name the material of the {}.",
            "What material is used for the {}?",
        ),
        ("The {} is made of {}.", "For the {} only {} is used.", "Workers build the {} from {}."),
    ),
    Attribute(
        "country",
        COUNTRIES,
        (
            "Where is the {} made?",
            "Which country produces the {}?",
            "Name the country that makes the {}.",
            "From which country does the {} come?",
        ),
        ("The {} is made in {}.", "The factory of the {} is in {}.", "Shops import the {} from {}."),
    ),
    Attribute(
        "colour",
        COLOURS,
        (
            "What colour is the {}?",
            "Which colour does the {} have?",
            "Name the colour of the {}.",
            "In which colour is the {} sold?",
        ),
        ("The {} is {}.", "The colour of the {} is {}.", "Every {} that is sold is {}."),
    ),
    Attribute(
        "day",
        words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        (
            "On which day is the {} delivered?",
            "When does the {} arrive in the shops?",
            "Name the day of delivery of the {}.",
            "Which weekday brings the {}?",
        ),
        ("The {} is delivered on {}.", "Shops receive the {} every {}.", "The day of delivery of the {} is {}."),
    ),
)
KINDS: dict[str, tuple[Attribute, ...]] = {"people": PEOPLE, "places": PLACES, "products": PRODUCTS}
STARTS = words("Br D F Gl K L M N Pl Qu R S T Tr V W X Z Zh Yv")
MIDDLES = words("a e i o u ae io ou")
CONSONANTS = words("b d l lm m n nd r rv sk t v x z")
ENDS = {
    "people": ("ik", "or", "une", "ax", "eth"),
    "places": ("ovar", "ulm", "aster", "ineth"),
    "products": ("ex", "ola", "ix"),
}
WORDS = {"people": 2, "places": 1, "products": 1}  # of a name


@dataclass(frozen=True)
class Subject:
    """An invented person, place or product. values: one for each attribute of its kind, in their order."""

    kind: str
    name: str
    values: tuple[str, ...]

    @property
    def facts(self) -> Iterator[tuple[Attribute, str]]:
        """The attributes with their values."""
        return zip(KINDS[self.kind], self.values, strict=True)

    def text(self, rng: random.Random) -> str:
        """State all attributes in an order and in sentences that `rng` draws."""
        sentences = [rng.choice(attribute.stated).format(self.name, value) for attribute, value in self.facts]
        return " ".join(rng.sample(sentences, len(sentences)))


def invent(kind: str, number: int, seed: int) -> list[Subject]:
    """Return `number` subjects with different names. More of them only add subjects at the end."""
    rng = random.Random(f"invented {kind} {seed}")
    subjects: list[Subject] = []
    names: set[str] = set()
    while len(subjects) < number:
        name = _name(kind, rng)
        if name not in names:
            names.add(name)
            subjects.append(Subject(kind, name, tuple(rng.choice(attribute.values) for attribute in KINDS[kind])))
    return subjects


def names_of(kind: str) -> int:
    """Return how many different names there are."""
    one = len(STARTS) * len(MIDDLES) * len(CONSONANTS) * len(ENDS[kind])
    return one ** WORDS[kind]


def _name(kind: str, rng: random.Random) -> str:
    return " ".join(
        rng.choice(STARTS) + rng.choice(MIDDLES) + rng.choice(CONSONANTS) + rng.choice(ENDS[kind])
        for _ in range(WORDS[kind])
    )
