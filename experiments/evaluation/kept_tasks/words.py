"""Kept tasks about English words: past tense (lemminflect), plurals (inflect) and the number of a verb."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from experiments.evaluation.kept_tasks.question import Template

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


def past_tense() -> list[Template]:
    """Ask the past tense of a verb; the other options are its other forms (go, goes, going, gone)."""
    import lemminflect

    templates = []
    for verb in VERBS.split():
        past = lemminflect.getInflection(verb, "VBD")
        forms = (verb, *(form for tag in ("VBZ", "VBG", "VBN") for form in lemminflect.getInflection(verb, tag)))
        plain, chat = f'The past tense of the verb "{verb}" is', f"Every day they {verb}. What did they do last week?"
        reworded = f'The past tense form of "{verb}" is', f"Today they {verb}. What did they do yesterday?"
        templates.append(Template(verb, plain, chat, past[0], _without(past, forms), "They {}.", reworded))
    return templates


def plurals() -> list[Template]:
    """Ask the plural of a noun; the other options are mistakes of learners (mouses, mices).

    Nouns on whose plural two dictionaries disagree are left out.
    """
    import inflect
    import lemminflect

    engine = inflect.engine()
    templates = []
    for noun in NOUNS.split():
        accepted = lemminflect.getInflection(noun, "NNS")
        right = str(engine.plural_noun(noun))
        if right not in accepted:
            continue
        made_up = (noun + "s", noun + "es", noun[:-1] + "ies", right + "s", right + "es")
        plain, chat = f'The plural of the noun "{noun}" is', f'What is the plural of the noun "{noun}"?'
        reworded = f'The plural form of "{noun}" is', f'Which form does the noun "{noun}" take in the plural?'
        wrong = _without((noun, *accepted), made_up)
        templates.append(Template(noun, plain, chat, right, wrong, reworded=reworded))
    return templates


SUBJECTS = """
    author teacher pilot doctor farmer manager guard lawyer driver singer painter student waiter nurse neighbor uncle
    key letter picture car boat bottle chair lamp
"""
FRAMES = (
    "The {} near the {}",
    "The {} behind the {}",
    "The {} next to the {}",
    "The {} in front of the {}",
    "The {} that we saw with the {}",
    "The {} that nobody noticed near the {}",
)
VERB_FORMS = (("is", "are"), ("was", "were"), ("has", "have"), ("needs", "need"))


def agreement() -> list[Template]:
    """Ask which form of a verb agrees with its subject; a noun of the other number is nearer to the verb.

    Minimal pairs: two options, chance 1/2, and no second wording. A fixed shuffle mixes frames, numbers and verbs.
    """
    nouns = SUBJECTS.split()
    cells = list(itertools.product(range(len(nouns)), (1, 5), FRAMES, (True, False)))
    templates = []
    for index, (subject, distance, frame, plural) in enumerate(cells):
        other = nouns[(subject + distance) % len(nouns)]
        start = frame.format(nouns[subject] + "s" * plural, other + "s" * (not plural))
        singular_form, plural_form = VERB_FORMS[index % len(VERB_FORMS)]
        right, wrong = (plural_form, singular_form) if plural else (singular_form, plural_form)
        chat = f"Continue this sentence: {start}"
        templates.append(Template(start, start, chat, right, (wrong,), reply=f"{start} {{}}"))
    random.Random(0).shuffle(templates)
    return templates


def _without(right: Sequence[str], forms: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct forms that are not right."""
    return tuple(dict.fromkeys(form for form in forms if form not in right))
